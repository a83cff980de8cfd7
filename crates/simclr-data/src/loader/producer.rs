//! The loader's thread: steps to chunks, chunks to views.

use std::{
    collections::{HashMap, HashSet},
    ops::{ControlFlow, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_channel::Sender;
use rayon::{ThreadPool, iter::Either, prelude::*};

use super::Loader;
use crate::{
    AugmentConfig, Batch, Chunk, DataError, ViewParams,
    augment::{self, AugmentBuffers, Policy},
    batch::Views,
    buffer_pool::BufferPool,
    chunking::ChunkRows,
    deferred::{DeferredImage, DeferredViews, ViewSpec},
    error::allowed_failures,
    rng::Key,
};

/// A batch; or an error with the failed images of the batch.
pub(super) type BatchResult = Result<Batch, (DataError, FailedImages)>;

/// Index and reason of images that could not be decoded.
type FailedImages = Vec<(usize, String)>;

/// An image and its views: number of the view, and its place in the batch.
type ImageViews<T> = (usize, Vec<(u64, T)>);

pub(super) struct Producer {
    loader: Loader,
    pool: ThreadPool,
    out: Sender<BatchResult>,
    /// Set when the receiver is dropped.
    abandoned: Arc<AtomicBool>,
    /// Distinct images that could not be decoded since the start.
    failed: HashSet<usize>,
}

struct Step<'a> {
    number: u64,
    epoch: u64,
    ids: &'a [usize],
}

impl Producer {
    pub(super) fn new(
        loader: Loader,
        pool: ThreadPool,
        out: Sender<BatchResult>,
        abandoned: Arc<AtomicBool>,
    ) -> Self {
        Self { loader, pool, out, abandoned, failed: HashSet::new() }
    }

    /// Sends the batches of `steps`; ends early at an error or when the receiver is dropped.
    pub(super) fn run(mut self, steps: Range<u64>) {
        let batch = self.loader.config.batch;
        let steps_per_epoch = self.loader.steps_per_epoch();
        let mut order = (u64::MAX, Vec::new());
        for number in steps {
            let epoch = number / steps_per_epoch;
            if order.0 != epoch {
                let key = Key::order(self.loader.config.seed, epoch);
                order = (epoch, key.stream().permutation(self.loader.dataset.len()));
            }
            let slot = (number % steps_per_epoch) as usize;
            let ids = &order.1[slot * batch..][..batch];
            if self.send_step(&Step { number, epoch, ids }).is_break() {
                return;
            }
        }
    }

    /// Sends the batch of a step, or its chunks in every pass.
    fn send_step(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        let (mut chunks, passes) = self.loader.partition(step);
        let count = chunks.len();
        let (mut failed, mut anchors) = (HashSet::new(), 0);
        for (pass, index) in (0..passes).flat_map(|pass| (0..count).map(move |index| (pass, index))) {
            let rows = &mut chunks[index];
            let is_first_pass = pass == 0;
            if is_first_pass {
                rows.remove(&failed);
            }
            let chunk = Chunk { index, count, pass };
            let batch = self.pool.install(|| self.loader.batch(step, chunk, rows, &self.abandoned));
            failed.extend(batch.failed.iter().map(|(id, _)| *id));
            if is_first_pass {
                // The next pass has exactly the views of this one.
                rows.remove(&failed);
                anchors += batch.ids.len();
            }
            let batch = self.loader.check_rows(batch, step.ids.len() - failed.len(), anchors);
            let batch = batch.and_then(|batch| self.check_failed(batch));
            let is_error = batch.is_err();
            if self.out.send(batch).is_err() || is_error {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// An error if more images have failed than allowed.
    fn check_failed(&mut self, batch: Batch) -> BatchResult {
        self.failed.extend(batch.failed.iter().map(|(id, _)| *id));
        let (seen, allowed) = (self.loader.dataset.len(), self.loader.config.max_bad_share);
        if self.failed.len() <= allowed_failures(allowed, seen) {
            return Ok(batch);
        }
        let first = batch.failed.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        Err((DataError::TooManyBad { bad: self.failed.len(), seen, allowed, first }, batch.failed))
    }
}

impl Loader {
    /// The chunks of this part of a step's batch, and the number of passes over them; one chunk without chunking.
    fn partition(&self, step: &Step<'_>) -> (Vec<ChunkRows>, usize) {
        let views = self.config.views;
        let (index, count) = self.part;
        if let Some(chunking) = self.chunking {
            let key = Key::chunking(self.config.seed, step.epoch, step.number);
            let mut all = chunking.partition(step.ids, views, key, count);
            let own = all.len() / count;
            return (all.drain(index * own..(index + 1) * own).collect(), chunking.passes);
        }
        let images = step.ids.len();
        let first = step.ids[index * images / count..(index + 1) * images / count].to_vec();
        let second = if views > 1 { first.clone() } else { Vec::new() };
        (vec![ChunkRows { first, second }], 1)
    }

    /// The views of a batch or chunk, without images that cannot be decoded.
    fn batch(&self, step: &Step<'_>, chunk: Chunk, rows: &ChunkRows, abandoned: &AtomicBool) -> Batch {
        let (views, failed) = match &self.byte_pool {
            None => self.pixels(step, rows, abandoned),
            Some(pool) => self.deferred_views(pool, step, rows, abandoned),
        };
        let mut rows = rows.clone();
        rows.remove(&failed.iter().map(|(id, _)| *id).collect());
        let ChunkRows { first: ids, second: second_view_ids } = rows;
        Batch { step: step.number, epoch: step.epoch, chunk, ids, second_view_ids, views, failed }
    }

    /// Pixels of all views; an image is decoded once for its views, images in parallel.
    fn pixels(&self, step: &Step<'_>, rows: &ChunkRows, abandoned: &AtomicBool) -> (Views, FailedImages) {
        let size = self.config.size_at(step.number);
        let view = self.dataset.channels() * size * size;
        let mut pixels = self.pixel_pool.take(rows.len() * view);
        let images = by_image(rows.views().zip(pixels.chunks_exact_mut(view)));
        // The remaining images of an abandoned batch are not decoded.
        let wanted = images.into_par_iter().filter(|_| !abandoned.load(Ordering::Relaxed));
        let failed = wanted.filter_map(|(id, views)| {
            Some((id, self.augment(step.epoch, size, id, views).err()?.to_string()))
        });
        let failed: FailedImages = failed.collect();
        if failed.is_empty() {
            return (Views::Pixels(pixels), failed);
        }
        let is_failed = |id: usize| failed.iter().any(|(failed, _)| *failed == id);
        let kept = rows.views().zip(pixels.chunks_exact(view)).filter(|((id, _), _)| !is_failed(*id));
        let pixels = kept.flat_map(|(_, row)| row).copied().collect();
        (Views::Pixels(pixels), failed)
    }

    /// Images and augmentation parameters of all views.
    fn deferred_views(
        &self,
        pool: &Arc<BufferPool<u8>>,
        step: &Step<'_>,
        rows: &ChunkRows,
        abandoned: &AtomicBool,
    ) -> (Views, FailedImages) {
        let spec = self.view_spec(self.config.size_at(step.number));
        let images = by_image(rows.views().zip(0..)).into_par_iter();
        let wanted = images.filter(|_| !abandoned.load(Ordering::Relaxed));
        let (images, failed): (Vec<DeferredImage>, FailedImages) = wanted.partition_map(|(id, views)| {
            self.deferred_image(step.epoch, &spec, id, views)
                .map_or_else(|error| Either::Right((id, error.to_string())), Either::Left)
        });
        let len = images.iter().map(DeferredImage::len).sum();
        let bytes = pool.take_with_capacity(len, len + len / 8);
        (Views::Deferred(DeferredViews::collect(images, bytes, spec)), failed)
    }

    fn augment(
        &self,
        epoch: u64,
        size: usize,
        id: usize,
        views: Vec<(u64, &mut [f32])>,
    ) -> Result<(), DataError> {
        let image = self.dataset.decode(id)?;
        for (view, out) in views {
            let params = self.draw(epoch, id, view, (image.width, image.height));
            AugmentBuffers::with_local(|buffers| {
                augment::apply(&image, &params, &self.augment[view as usize], size, out, buffers);
            });
        }
        image.recycle();
        Ok(())
    }

    fn deferred_image(
        &self,
        epoch: u64,
        spec: &ViewSpec,
        id: usize,
        views: Vec<(u64, usize)>,
    ) -> Result<DeferredImage, DataError> {
        let image = self.dataset.decode(id)?;
        let size = (image.width, image.height);
        let views = views.into_iter().map(|(view, row)| (row, self.draw(epoch, id, view, size))).collect();
        Ok(DeferredImage::new(image, views, spec))
    }

    fn draw(&self, epoch: u64, id: usize, view: u64, (width, height): (usize, usize)) -> ViewParams {
        let key = Key { seed: self.config.seed, epoch, image: id as u64, view };
        self.augment[view as usize].draw(key, width, height)
    }

    fn view_spec(&self, size: usize) -> ViewSpec {
        let AugmentConfig { interpolation, antialias, color_model, .. } = self.augment[0];
        let any = |test: fn(&AugmentConfig) -> bool| self.augment.iter().any(test);
        ViewSpec {
            channels: self.dataset.channels(),
            size,
            interpolation,
            antialias,
            color_model,
            policies: any(|view| view.policy != Policy::None),
            blurs: any(|view| view.blur > 0.0),
            filters: any(|view| view.motion_blur + view.equalize + view.sobel > 0.0),
            noise: any(|view| view.noise > 0.0),
        }
    }

    /// An error for a batch with fewer than two decodable images, which has no negatives; for a chunk with too few views for
    /// batch statistics; for a part of which no first view is left, and so no anchor; and for a chunk that lost images since the
    /// previous pass.
    fn check_rows(&self, batch: Batch, decodable: usize, anchors: usize) -> BatchResult {
        // Views of other parts take part in the statistics.
        let min_rows = if self.part.1 > 1 { self.config.views } else { 2 };
        let rows = batch.ids.len() + batch.second_view_ids.len();
        let lost_images = batch.chunk.pass > 0 && !batch.failed.is_empty();
        let too_few = batch.chunk.is_last() && (decodable < 2 || anchors == 0);
        if rows >= min_rows && !too_few && !lost_images {
            return Ok(batch);
        }
        let first = batch.failed.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        Err((DataError::EmptyBatch { step: batch.step, first }, batch.failed))
    }
}

/// Groups views by image, in order of first appearance.
fn by_image<T>(views: impl Iterator<Item = ((usize, u64), T)>) -> Vec<ImageViews<T>> {
    let mut images: Vec<ImageViews<T>> = Vec::new();
    let mut place_of = HashMap::new();
    for ((id, view), slot) in views {
        let place = *place_of.entry(id).or_insert_with(|| {
            images.push((id, Vec::new()));
            images.len() - 1
        });
        images[place].1.push((view, slot));
    }
    images
}
