//! Which image when, decoded and augmented ahead of the training step by worker threads.
//!
//! The batch of a step is a pure function of (data, configuration, seed, step): the order of an epoch is one
//! permutation keyed by (seed, epoch), a view is keyed by (seed, epoch, image, view). So the number of threads changes
//! nothing, and a run that resumes at step k sees what an uninterrupted one would have seen.

use std::{
    cell::RefCell,
    collections::HashSet,
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
    AugmentConfig, Batch, DataError, Dataset,
    augment::{self, Scratch},
    rng::Key,
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A batch, or why there is none and which images failed in it.
type Made = Result<Batch, (DataError, Vec<(usize, String)>)>;

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
    /// Batches made ahead.
    pub prefetch: usize,
    /// Share of the data set that may fail to decode before the run fails.
    pub max_bad_share: f64,
}

/// Batches of a run, step by step.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    augment: AugmentConfig,
    config: LoaderConfig,
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
        Ok(Self { dataset, augment, config })
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
            next_step: first_step,
            end_step,
            waited: Duration::ZERO,
            left_out: Vec::new(),
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
            let batch = pool.install(|| self.make(step, epoch, ids, abandoned));
            let batch = batch.and_then(|batch| self.count_bad(batch, &mut bad));
            let failed = batch.is_err();
            if out.send(batch).is_err() || failed {
                return;
            }
        }
    }

    /// The batch of one step: all views of an image from one decode, images in parallel.
    fn make(&self, step: u64, epoch: u64, ids: &[usize], abandoned: &AtomicBool) -> Made {
        let view = self.dataset.channels() * self.config.size * self.config.size;
        let mut pixels = vec![0.0; self.config.views * ids.len() * view];
        let mut places: Vec<Vec<&mut [f32]>> = ids.iter().map(|_| Vec::new()).collect();
        for (row, place) in pixels.chunks_exact_mut(view).enumerate() {
            places[row % ids.len()].push(place);
        }
        let failures: Vec<Option<String>> = places
            .into_par_iter()
            .zip(ids)
            .map(|(places, &id)| match abandoned.load(Ordering::Relaxed) {
                // Nobody will see this batch: its other images are not worth a decode.
                true => None,
                false => self.views_of(epoch, id, places).err().map(|error| error.to_string()),
            })
            .collect();
        let bad: Vec<_> = ids.iter().zip(&failures).filter_map(|(&id, f)| Some((id, f.clone()?))).collect();
        if ids.len() - bad.len() < 2 {
            let first = bad.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
            return Err((DataError::EmptyBatch { step, first }, bad));
        }
        if !bad.is_empty() {
            let rows = failures.iter().cycle().map(Option::is_none);
            pixels = pixels
                .chunks_exact(view)
                .zip(rows)
                .filter(|(_, good)| *good)
                .flat_map(|(v, _)| v)
                .copied()
                .collect();
        }
        let ids =
            ids.iter().zip(&failures).filter(|(_, failure)| failure.is_none()).map(|(&id, _)| id).collect();
        Ok(Batch { step, epoch, ids, pixels, bad })
    }

    fn views_of(&self, epoch: u64, id: usize, views: Vec<&mut [f32]>) -> Result<(), DataError> {
        let image = self.dataset.decode(id)?;
        for (view, out) in views.into_iter().enumerate() {
            let key = Key { seed: self.config.seed, epoch, image: id as u64, view: view as u64 };
            let params = self.augment.draw(key, image.width, image.height);
            SCRATCH.with_borrow_mut(|scratch| {
                augment::apply(&image, &params, &self.augment, self.config.size, out, scratch);
            });
        }
        Ok(())
    }

    /// Counts distinct bad images since this stream began, and fails above the allowed share.
    fn count_bad(&self, batch: Batch, bad: &mut HashSet<usize>) -> Made {
        bad.extend(batch.bad.iter().map(|(id, _)| *id));
        let allowed = self.config.max_bad_share;
        if bad.len() as f64 <= allowed * self.dataset.len() as f64 {
            return Ok(batch);
        }
        let first = batch.bad.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        Err((DataError::TooManyBad { bad: bad.len(), seen: self.dataset.len(), allowed, first }, batch.bad))
    }
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
    next_step: u64,
    end_step: u64,
    waited: Duration,
    left_out: Vec<(usize, String)>,
}

impl Batches {
    /// Seconds that [`Iterator::next`] has waited for the workers so far.
    pub fn waited(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// After an error: the images of the batch that failed which could not be decoded, index and reason.
    pub fn left_out(&self) -> &[(usize, String)] {
        &self.left_out
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
        self.next_step = if made.is_ok() { self.next_step + 1 } else { self.end_step };
        Some(made.map_err(|(error, left_out)| {
            self.left_out = left_out;
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

/// Decodes and prepares `indices` for evaluation on `threads` threads, in that order, with the usual crop.
///
/// # Errors
/// See [`evaluation_pixels_of`].
pub fn evaluation_pixels(
    dataset: &Dataset,
    indices: &[usize],
    size: usize,
    threads: usize,
) -> Result<EvaluationPixels, DataError> {
    evaluation_pixels_of(dataset, indices, (size, augment::EVALUATION_SHARE), threads)
}

/// The same with the crop of `share` of the shorter side; see [`augment::evaluation_view_of`].
///
/// Returns the indices that could be decoded with their pixels `[len, C, S, S]`, and the others with the reason.
///
/// # Errors
/// Threads that the system does not give.
pub fn evaluation_pixels_of(
    dataset: &Dataset,
    indices: &[usize],
    (size, share): (usize, f64),
    threads: usize,
) -> Result<EvaluationPixels, DataError> {
    let view = dataset.channels() * size * size;
    let decoded: Vec<Result<Vec<f32>, DataError>> = worker_pool(threads)?.install(|| {
        indices
            .par_iter()
            .map(|&index| {
                let image = dataset.decode(index)?;
                let mut out = vec![0.0; view];
                SCRATCH.with_borrow_mut(|scratch| {
                    augment::evaluation_view_of(&image, (size, share), &mut out, scratch);
                });
                Ok(out)
            })
            .collect()
    });
    let mut result = EvaluationPixels::default();
    for (&index, view) in indices.iter().zip(decoded) {
        match view {
            Ok(view) => {
                result.ids.push(index);
                result.pixels.extend(view);
            }
            Err(error) => result.bad.push((index, error.to_string())),
        }
    }
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
    pub bad: Vec<(usize, String)>,
}
