//! Which image when, decoded and augmented ahead of the training step by worker threads.

use std::sync::Arc;

use crate::{AugmentConfig, Batch, DataError, Dataset};

/// How batches are made.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// N: images per batch. The last, smaller batch of an epoch is dropped (`drop_remainder`).
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

/// Batches of a run, step by step; the batch of a step depends on nothing but seed, step and data.
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
    pub fn new(dataset: Arc<Dataset>, augment: AugmentConfig, config: LoaderConfig) -> Result<Self, DataError> {
        Ok(Self { dataset, augment, config })
    }

    /// Full batches per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.dataset.len() / self.config.batch) as u64
    }

    /// Starts the workers at `first_step` (0, or where a run resumes) and ends before `end_step`.
    pub fn batches(&self, first_step: u64, end_step: u64) -> Batches {
        let _ = (first_step, end_step, &self.augment);
        todo!("helper train")
    }
}

/// The stream of batches; dropping it ends the workers.
pub struct Batches {}

impl Batches {
    /// Seconds that `next` has waited for the workers so far.
    pub fn waited(&self) -> f64 {
        todo!("helper train")
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;
    fn next(&mut self) -> Option<Self::Item> {
        todo!("helper train")
    }
}

/// Decodes and prepares `indices` for evaluation with `threads` threads: `[len, C, S, S]`, in that order.
///
/// # Errors
/// The first image that cannot be decoded.
pub fn evaluation_pixels(dataset: &Dataset, indices: &[usize], size: usize, threads: usize) -> Result<Vec<f32>, DataError> {
    let _ = (dataset, indices, size, threads);
    todo!("helper train")
}
