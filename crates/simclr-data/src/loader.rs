//! Which image when, decoded and augmented ahead of the training step by worker threads.
//!
//! The batch of a step is a pure function of (data, configuration, seed, step): the order of an epoch is one
//! permutation keyed by (seed, epoch), a view is keyed by (seed, epoch, image, view). So the number of threads changes
//! nothing, and a run that resumes at step k sees what an uninterrupted one would have seen.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use rayon::{ThreadPool, prelude::*};

use crate::{
    AugmentConfig, Batch, Chunk, Chunking, DataError, Dataset, ViewParams,
    augment::{self, EvalTransform, Scratch},
    batch::{Spare, Views},
    chunking::Dealt,
    deferred::{DeferredImage, DeferredViews, ViewSpec},
    error::allowed_bad,
    rng::Key,
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A batch, or why there is none and which images failed in it.
type Made = Result<Batch, (DataError, Vec<(usize, String)>)>;

/// An image and its views, each with what it belongs to.
type Job<T> = (usize, Vec<(u64, T)>);

/// Images that could not be decoded, and why.
type Failures = Vec<(usize, String)>;

/// How batches are made.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Views of each image: 2 to contrast them, 1 to train with labels.
    pub views: usize,
    /// N: images per batch. The last, smaller batch of an epoch is dropped (official `data.py`, `drop_remainder`).
    pub batch: usize,
    /// Side S of a view in pixels.
    pub size: usize,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Batches, or chunks, made ahead.
    pub prefetch: usize,
    /// Share of the data set that may fail to decode before the run fails.
    pub max_bad_share: f64,
}

/// Batches of a run, step by step, or their chunks.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    augment: AugmentConfig,
    config: LoaderConfig,
    chunking: Option<Chunking>,
    spare: Arc<Spare>,
    /// Where views are made elsewhere: memory of their images.
    spare_bytes: Option<Arc<Spare<u8>>>,
    /// Which part of every batch, of how many.
    part: (usize, usize),
}

impl Loader {
    /// A loader over `dataset`.
    ///
    /// # Errors
    /// [`DataError::Config`] where the data set holds fewer images than one batch.
    pub fn new(
        dataset: Arc<Dataset>,
        augment: AugmentConfig,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        if dataset.len() < config.batch || config.batch == 0 {
            return Err(DataError::Config {
                key: "train.batch",
                value: config.batch.to_string(),
                reason: format!(
                    "expected at least 1 and at most the {} images of the data set",
                    dataset.len()
                ),
            });
        }
        let spare = Arc::default();
        Ok(Self { dataset, augment, config, chunking: None, spare, spare_bytes: None, part: (0, 1) })
    }

    /// Makes part `index` of `count` of every batch only, for the process that has this part: without overlap, the same
    /// images and views that all parts together have in one process. Chunks are those of the part.
    ///
    /// # Panics
    /// If there is no such part, or fewer images in a batch than parts.
    pub fn part(self, index: usize, count: usize) -> Self {
        assert!(index < count && count <= self.config.batch, "part {index} of {count}");
        Self { part: (index, count), ..self }
    }

    /// Makes every batch in chunks: `batches` then gives those of a step one after the other, pass after pass.
    pub fn chunked(self, chunking: Chunking) -> Self {
        Self { chunking: Some(chunking), ..self }
    }

    /// Decodes and draws, but makes no pixels: batches then hold [`DeferredViews`].
    pub fn deferred(self) -> Self {
        Self { spare_bytes: Some(Arc::default()), ..self }
    }

    /// Full batches per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.dataset.len() / self.config.batch) as u64
    }

    /// Starts the workers at `first_step` (0, or where a run resumes); the last batch is that of `end_step - 1`.
    ///
    /// # Errors
    /// Threads that the system does not give.
    pub fn batches(&self, first_step: u64, end_step: u64) -> Result<Batches, DataError> {
        let pool = worker_pool(self.config.threads)?;
        let (sender, receiver) = crossbeam_channel::bounded(self.config.prefetch.max(1));
        let (loader, abandoned) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&abandoned);
        let producer = std::thread::Builder::new()
            .name("loader".into())
            .spawn(move || loader.produce(&pool, first_step..end_step, &sender, &seen))?;
        Ok(Batches {
            receiver,
            producer: Some(producer),
            abandoned,
            passes: self.chunking.map_or(1, |chunking| chunking.passes),
            next_step: first_step,
            end_step,
            waited: Duration::ZERO,
            failed_images: Vec::new(),
        })
    }

    /// Makes batches until the last one, an error, or nobody listens any more.
    fn produce(
        &self,
        pool: &ThreadPool,
        steps: std::ops::Range<u64>,
        out: &Sender<Made>,
        abandoned: &AtomicBool,
    ) {
        let mut order = (u64::MAX, Vec::new());
        let mut bad = HashSet::new();
        for step in steps {
            let epoch = step / self.steps_per_epoch();
            if order.0 != epoch {
                order = (epoch, Key::order(self.config.seed, epoch).stream().permutation(self.dataset.len()));
            }
            let slot = (step % self.steps_per_epoch()) as usize;
            let ids = &order.1[slot * self.config.batch..][..self.config.batch];
            let sent = self.make_step((step, epoch, ids), pool, abandoned, &mut |made| {
                let made = made.and_then(|batch| self.count_bad(batch, &mut bad));
                let failed = made.is_err();
                out.send(made).is_ok() && !failed
            });
            if !sent {
                return;
            }
        }
    }

    /// What the batch of a step is made of, as far as it is this part's: the part, or its chunks in every pass.
    fn deal(&self, step: u64, epoch: u64, ids: &[usize]) -> (Vec<Dealt>, usize) {
        let (views, (index, count)) = (self.config.views, self.part);
        match self.chunking {
            Some(chunking) => {
                let key = Key::dealing(self.config.seed, epoch, step);
                let mut all = chunking.deal(ids, views, key, count);
                let own = all.len() / count;
                (all.drain(index * own..(index + 1) * own).collect(), chunking.passes)
            }
            None => {
                let first = ids[index * ids.len() / count..(index + 1) * ids.len() / count].to_vec();
                let second = if views > 1 { first.clone() } else { Vec::new() };
                (vec![Dealt { first, second }], 1)
            }
        }
    }

    /// Makes the chunks of a step, pass after pass, and hands them to `send` until it wants no more. Says whether it wanted
    /// all.
    fn make_step(
        &self,
        (step, epoch, ids): (u64, u64, &[usize]),
        pool: &ThreadPool,
        abandoned: &AtomicBool,
        send: &mut dyn FnMut(Made) -> bool,
    ) -> bool {
        let (mut chunks, passes) = self.deal(step, epoch, ids);
        let (count, mut bad) = (chunks.len(), HashSet::new());
        // The other parts' views count in the statistics, too.
        let least = if self.part.1 > 1 { self.config.views } else { 2 };
        for pass in 0..passes {
            for (index, dealt) in chunks.iter_mut().enumerate() {
                let first_pass = pass == 0;
                if first_pass {
                    dealt.leave_out(&bad);
                }
                let chunk = Chunk { index, count, pass };
                let made = pool.install(|| self.make((step, epoch, chunk), dealt, abandoned));
                let made = made.and_then(|batch| {
                    bad.extend(batch.failed.iter().map(|(id, _)| *id));
                    if first_pass {
                        // Exactly the views that this pass saw are made again in the next one.
                        dealt.leave_out(&bad);
                    }
                    enough(batch, ids.len() - bad.len(), first_pass, least)
                });
                if !send(made) {
                    return false;
                }
            }
        }
        true
    }

    /// A batch or a chunk of one, without the images that cannot be decoded.
    fn make(&self, (step, epoch, chunk): (u64, u64, Chunk), dealt: &Dealt, abandoned: &AtomicBool) -> Made {
        let (views, failures) = match &self.spare_bytes {
            None => self.make_pixels(epoch, dealt, abandoned),
            Some(spare) => self.make_recipes(spare, epoch, dealt, abandoned),
        };
        let mut left = dealt.clone();
        left.leave_out(&failures.iter().map(|(id, _)| *id).collect());
        Ok(Batch {
            step,
            epoch,
            chunk,
            ids: left.first,
            second_view_ids: left.second,
            views,
            failed: failures,
        })
    }

    /// All views of an image from one decode, images in parallel.
    fn make_pixels(&self, epoch: u64, dealt: &Dealt, abandoned: &AtomicBool) -> (Views, Failures) {
        let view = self.dataset.channels() * self.config.size * self.config.size;
        let mut pixels = self.spare.take(dealt.rows() * view);
        let jobs = by_image(dealt.views().zip(pixels.chunks_exact_mut(view)));
        let failures: Failures = jobs
            .into_par_iter()
            .filter_map(|(id, views)| match abandoned.load(Ordering::Relaxed) {
                // Nobody will see this batch: its other images are not worth a decode.
                true => None,
                false => self.views_of(epoch, id, views).err().map(|error| (id, error.to_string())),
            })
            .collect();
        if failures.is_empty() {
            return (Views::Pixels(pixels), failures);
        }
        let bad: HashSet<usize> = failures.iter().map(|(id, _)| *id).collect();
        let rows = dealt.views().zip(pixels.chunks_exact(view));
        let pixels =
            rows.filter(|((id, _), _)| !bad.contains(id)).flat_map(|(_, row)| row).copied().collect();
        (Views::Pixels(pixels), failures)
    }

    /// Images and dice of all views.
    fn make_recipes(
        &self,
        spare: &Arc<Spare<u8>>,
        epoch: u64,
        dealt: &Dealt,
        abandoned: &AtomicBool,
    ) -> (Views, Failures) {
        let found: Vec<Result<DeferredImage, (usize, String)>> = by_image(dealt.views().zip(0..))
            .into_par_iter()
            .filter_map(|(id, views)| match abandoned.load(Ordering::Relaxed) {
                true => None,
                false => Some(self.ingredients(epoch, id, views).map_err(|error| (id, error.to_string()))),
            })
            .collect();
        let (mut images, mut failures) = (Vec::new(), Vec::new());
        for image in found {
            match image {
                Ok(image) => images.push(image),
                Err(failure) => failures.push(failure),
            }
        }
        let len = images.iter().map(DeferredImage::len).sum();
        let bytes = spare.take_with_room(len, len + len / 8);
        (Views::Deferred(DeferredViews::collect(images, bytes, self.method())), failures)
    }

    fn views_of(&self, epoch: u64, id: usize, views: Vec<(u64, &mut [f32])>) -> Result<(), DataError> {
        let image = self.dataset.decode(id)?;
        for (view, out) in views {
            let params = self.draw(epoch, id, view, (image.width, image.height));
            SCRATCH.with_borrow_mut(|scratch| {
                augment::apply(&image, &params, &self.augment, self.config.size, out, scratch);
            });
        }
        Ok(())
    }

    fn ingredients(
        &self,
        epoch: u64,
        id: usize,
        views: Vec<(u64, usize)>,
    ) -> Result<DeferredImage, DataError> {
        let image = self.dataset.decode(id)?;
        let size = (image.width, image.height);
        let views = views.into_iter().map(|(view, row)| (row, self.draw(epoch, id, view, size))).collect();
        Ok(DeferredImage::new(image, views, &self.method()))
    }

    fn method(&self) -> ViewSpec {
        ViewSpec {
            channels: self.dataset.channels(),
            size: self.config.size,
            interpolation: self.augment.interpolation,
            antialias: self.augment.antialias,
            color_model: self.augment.color_model,
            blurs: self.augment.blur > 0.0,
        }
    }

    fn draw(&self, epoch: u64, id: usize, view: u64, (width, height): (usize, usize)) -> ViewParams {
        let key = Key { seed: self.config.seed, epoch, image: id as u64, view };
        self.augment.draw(key, width, height)
    }

    /// Counts distinct bad images since this stream began, and fails above the allowed number.
    fn count_bad(&self, batch: Batch, bad: &mut HashSet<usize>) -> Made {
        bad.extend(batch.failed.iter().map(|(id, _)| *id));
        let allowed = self.config.max_bad_share;
        if bad.len() <= allowed_bad(allowed, self.dataset.len()) {
            return Ok(batch);
        }
        let first = batch.failed.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        Err((
            DataError::TooManyBad { bad: bad.len(), seen: self.dataset.len(), allowed, first },
            batch.failed,
        ))
    }
}

/// Views by their image, in order of first appearance.
fn by_image<T>(views: impl Iterator<Item = ((usize, u64), T)>) -> Vec<Job<T>> {
    let mut jobs: Vec<Job<T>> = Vec::new();
    let mut job_of = HashMap::new();
    for ((id, number), place) in views {
        let job = *job_of.entry(id).or_insert_with(|| {
            jobs.push((id, Vec::new()));
            jobs.len() - 1
        });
        jobs[job].1.push((number, place));
    }
    jobs
}

/// Refuses a batch of which fewer than two images are `left`: there is nothing to contrast. Likewise a chunk of fewer than
/// `least` views, which has no statistics, and one that lost images since the pass before.
fn enough(batch: Batch, left: usize, first_pass: bool, least: usize) -> Made {
    let rows = batch.ids.len() + batch.second_view_ids.len();
    if rows < least || batch.chunk.is_last() && left < 2 || !first_pass && !batch.failed.is_empty() {
        let first = batch.failed.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        return Err((DataError::EmptyBatch { step: batch.step, first }, batch.failed));
    }
    Ok(batch)
}

fn worker_pool(threads: usize) -> Result<ThreadPool, DataError> {
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|n| format!("loader-{n}"));
    pool.build().map_err(|error| DataError::Io(std::io::Error::other(error)))
}

/// The stream of batches. Dropping it ends the workers, after the images that they are at.
pub struct Batches {
    receiver: Receiver<Made>,
    producer: Option<JoinHandle<()>>,
    abandoned: Arc<AtomicBool>,
    passes: usize,
    next_step: u64,
    end_step: u64,
    waited: Duration,
    failed_images: Vec<(usize, String)>,
}

impl Batches {
    /// Seconds that [`Iterator::next`] has waited for the workers so far.
    pub fn waited(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// After an error: the images of the batch that failed which could not be decoded, index and reason.
    pub fn failed_images(&self) -> &[(usize, String)] {
        &self.failed_images
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_step >= self.end_step {
            return None;
        }
        let start = Instant::now();
        // A closed channel before the end means that the producer panicked.
        let lost = || Err((DataError::WorkerLost { step: self.next_step }, Vec::new()));
        let made = self.receiver.recv().unwrap_or_else(|_| lost());
        self.waited += start.elapsed();
        self.next_step = match &made {
            Ok(batch) if batch.chunk.is_last() && batch.chunk.pass + 1 == self.passes => self.next_step + 1,
            Ok(_) => self.next_step,
            Err(_) => self.end_step,
        };
        Some(made.map_err(|(error, failed_images)| {
            self.failed_images = failed_images;
            error
        }))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        // A producer that waits for room in the channel wakes up when the receiver is gone.
        self.receiver = crossbeam_channel::never();
        // A panic of the producer was reported as `WorkerLost`, or nobody asked for its batch.
        let _ = self.producer.take().map(JoinHandle::join);
    }
}

/// Decodes `indices` and makes of each what `transform` declares, on `threads` threads, in that order.
///
/// Returns the indices that could be decoded with their pixels `[len, C, S, S]`, and the others with the reason.
///
/// # Errors
/// Threads that the system does not give.
pub fn evaluation_pixels(
    dataset: &Dataset,
    indices: &[usize],
    transform: &EvalTransform,
    threads: usize,
) -> Result<EvaluationPixels, DataError> {
    let view = dataset.channels() * transform.size * transform.size;
    let mut result = EvaluationPixels { pixels: vec![0.0; indices.len() * view], ..Default::default() };
    let prepared: Vec<Result<(), DataError>> = worker_pool(threads)?.install(|| {
        let places = result.pixels.par_chunks_exact_mut(view);
        let prepare = |(&index, out): (&usize, &mut [f32])| {
            let image = dataset.decode(index)?;
            SCRATCH.with_borrow_mut(|scratch| {
                transform.apply(&image, out, scratch);
            });
            Ok(())
        };
        indices.par_iter().zip(places).map(prepare).collect()
    });
    for (at, (&index, prepared)) in indices.iter().zip(prepared).enumerate() {
        match prepared {
            Ok(()) => {
                // Closes the gap of those before it that failed.
                result.pixels.copy_within(at * view..(at + 1) * view, result.ids.len() * view);
                result.ids.push(index);
            }
            Err(error) => result.failed.push((index, error.to_string())),
        }
    }
    result.pixels.truncate(result.ids.len() * view);
    Ok(result)
}

/// Images prepared for evaluation.
#[derive(Debug, Default)]
pub struct EvaluationPixels {
    /// Indices of the images that could be decoded, in the order asked for.
    pub ids: Vec<usize>,
    /// `[ids.len(), C, S, S]`.
    pub pixels: Vec<f32>,
    /// The others: index and reason.
    pub failed: Vec<(usize, String)>,
}
