//! The stream of training batches. Worker threads decode and augment ahead of the training step.
//!
//! The batch of a step is a pure function of (data, configuration, seed, step): the order of an epoch is one permutation keyed
//! by (seed, epoch), a view is keyed by (seed, epoch, image, view). So the number of threads has no effect, and a run that
//! resumes at step k gets the batches of an uninterrupted run.

mod producer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use rayon::ThreadPool;

use self::producer::{BatchResult, Producer};
use crate::{AugmentConfig, Batch, Chunking, DataError, Dataset, buffer_pool::BufferPool};

/// Options of a [`Loader`].
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Views per image: 2 for contrastive learning, 1 for training with labels.
    pub views: usize,
    /// N: images per batch. The last, smaller batch of an epoch is dropped (official `data.py`, `drop_remainder`).
    pub batch: usize,
    /// Side S of a view in pixels.
    pub size: usize,
    /// Another side from a step on: (step, S), in rising order.
    pub size_changes: Vec<(u64, usize)>,
    /// Seed of the order and of the augmentation parameters.
    pub seed: u64,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Batches, or chunks, that are prepared ahead.
    pub prefetch: usize,
    /// Share of the data set that may fail to decode before the stream fails; see [`crate::error::allowed_failures`].
    pub max_bad_share: f64,
}

impl Default for LoaderConfig {
    /// The defaults of a run, with all processors.
    fn default() -> Self {
        Self {
            views: 2,
            batch: 256,
            size: 224,
            size_changes: Vec::new(),
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 4,
            max_bad_share: 0.01,
        }
    }
}

impl LoaderConfig {
    /// S at `step`.
    pub fn size_at(&self, step: u64) -> usize {
        let begun = self.size_changes.iter().take_while(|&&(first, _)| first <= step);
        begun.last().map_or(self.size, |&(_, size)| size)
    }
}

/// Makes the batches of a run, or their chunks, step by step.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    /// Of the first and of the second view.
    augment: [AugmentConfig; 2],
    config: LoaderConfig,
    chunking: Option<Chunking>,
    pixel_pool: Arc<BufferPool<f32>>,
    /// `Some` for deferred views.
    byte_pool: Option<Arc<BufferPool<u8>>>,
    /// Index and number of the parts into which every batch is divided.
    part: (usize, usize),
}

impl Loader {
    /// A loader over `dataset`.
    ///
    /// # Errors
    /// [`DataError::Config`] if the data set has fewer images than one batch.
    pub fn new(
        dataset: Arc<Dataset>,
        augment: AugmentConfig,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        if dataset.len() < config.batch || config.batch == 0 {
            let images = dataset.len();
            let reason = format!("expected at least 1 and at most the {images} images of the data set");
            return Err(DataError::config("train.batch", config.batch, reason));
        }
        let pixel_pool = Arc::default();
        let augment = augment.of_views();
        Ok(Self { dataset, augment, config, chunking: None, pixel_pool, byte_pool: None, part: (0, 1) })
    }

    /// Makes only part `index` of `count` of every batch, for one of `count` processes. The parts of all processes together are
    /// the batch of a single process. Chunks are those of the part.
    ///
    /// # Panics
    /// If `index` is not below `count`, or a batch has fewer images than parts.
    pub fn part(self, index: usize, count: usize) -> Self {
        assert!(index < count && count <= self.config.batch, "part {index} of {count}");
        Self { part: (index, count), ..self }
    }

    /// Splits every batch into chunks, which [`Loader::batches`] yields one after the other, pass after pass.
    pub fn chunked(self, chunking: Chunking) -> Self {
        Self { chunking: Some(chunking), ..self }
    }

    /// Decodes and samples augmentation parameters, but computes no pixels: batches hold [`crate::DeferredViews`].
    pub fn deferred(self) -> Self {
        Self { byte_pool: Some(Arc::default()), ..self }
    }

    /// Full batches per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.dataset.len() / self.config.batch) as u64
    }

    /// Starts the workers at `first_step`; the last batch is that of `end_step - 1`.
    ///
    /// # Errors
    /// If threads cannot be started.
    pub fn batches(&self, first_step: u64, end_step: u64) -> Result<Batches, DataError> {
        let (sender, receiver) = crossbeam_channel::bounded(self.config.prefetch.max(1));
        let abandoned = Arc::new(AtomicBool::new(false));
        let pool = worker_pool(self.config.threads)?;
        let producer = Producer::new(self.clone(), pool, sender, Arc::clone(&abandoned));
        let thread = std::thread::Builder::new().name("loader".into());
        Ok(Batches {
            receiver,
            producer: Some(thread.spawn(move || producer.run(first_step..end_step))?),
            abandoned,
            passes: self.chunking.map_or(1, |chunking| chunking.passes),
            next_step: first_step,
            end_step,
            waited: Duration::ZERO,
            failed_images: Vec::new(),
        })
    }
}

pub(crate) fn worker_pool(threads: usize) -> Result<ThreadPool, DataError> {
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|n| format!("loader-{n}"));
    pool.build().map_err(|error| DataError::Io(std::io::Error::other(error)))
}

/// The stream of batches. If dropped, the workers end after their current images.
pub struct Batches {
    receiver: Receiver<BatchResult>,
    producer: Option<JoinHandle<()>>,
    abandoned: Arc<AtomicBool>,
    passes: usize,
    next_step: u64,
    end_step: u64,
    waited: Duration,
    failed_images: Vec<(usize, String)>,
}

impl Batches {
    /// Total seconds that [`Iterator::next`] has waited for the workers.
    pub fn waited(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// After an error: index and reason of the images of that batch which could not be decoded.
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
        let batch = self.receiver.recv().unwrap_or_else(|_| lost());
        self.waited += start.elapsed();
        self.next_step = match &batch {
            Ok(batch) if batch.chunk.is_last() && batch.chunk.pass + 1 == self.passes => self.next_step + 1,
            Ok(_) => self.next_step,
            Err(_) => self.end_step,
        };
        Some(batch.map_err(|(error, failed_images)| {
            self.failed_images = failed_images;
            error
        }))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        // Wakes up a producer that waits for room in the channel.
        self.receiver = crossbeam_channel::never();
        // A panic of the producer was reported as `WorkerLost`, unless its batch was not requested.
        let _ = self.producer.take().map(JoinHandle::join);
    }
}
