//! Copies batches from the loader to the device. For a GPU, a thread copies the next batch via pinned memory on its own stream during
//! the step of the current one; the step's stream waits for the copy, the host does not.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use simclr_data::{Batch, Chunk, DataError, Views, loader::Batches};
use simclr_shim::stream::{CudaEvent, StreamGuard};
use tch::{Device, Kind, Tensor};

use super::DeviceBatches;
use crate::{
    TrainError,
    views::{Uploaded, upload},
};

/// A batch or chunk with views on the device or ready to be copied there.
#[derive(Debug)]
pub struct DeviceBatch {
    /// Step of the run.
    pub step: u64,
    /// Position in the batch of the step.
    pub chunk: Chunk,
    /// Data set indices of the first views.
    pub ids: Vec<usize>,
    /// Data set indices of the second views.
    pub second_view_ids: Vec<usize>,
    /// Rows of `ids`, then of `second_view_ids`.
    pub views: BatchViews,
}

/// The views of a [`DeviceBatch`].
#[derive(Debug)]
pub enum BatchViews {
    /// In host memory; [`DeviceBatch::views`] copies them to the device.
    Host { batch: Batch, channels: usize, device: Device },
    /// Copied by another stream; complete when the event is.
    Copied { views: Uploaded, event: CudaEvent },
    /// `[rows, C, S, S]`.
    Tensor(Tensor),
    /// Freed after use.
    Freed,
}

impl From<Tensor> for BatchViews {
    fn from(views: Tensor) -> Self {
        Self::Tensor(views)
    }
}

impl DeviceBatch {
    /// A batch with views in host memory until [`DeviceBatch::views`].
    pub fn on_host(mut batch: Batch, channels: usize, device: Device) -> Self {
        let ids = std::mem::take(&mut batch.ids);
        let second_view_ids = std::mem::take(&mut batch.second_view_ids);
        Self {
            step: batch.step,
            chunk: batch.chunk,
            ids,
            second_view_ids,
            views: BatchViews::Host { batch, channels, device },
        }
    }

    /// The next batch of step `step`; the end of the batches is an error.
    ///
    /// # Errors
    /// See [`DeviceBatches`]; a loader that ended early.
    pub fn next_of(batches: &mut DeviceBatches<'_>, step: u64) -> Result<Self, TrainError> {
        batches.next().unwrap_or_else(|| Err(DataError::WorkerLost { step }.into()))
    }

    /// Number of rows of first views.
    pub fn first_views(&self) -> i64 {
        self.ids.len() as i64
    }

    /// The views `[rows, C, S, S]` on the device, f32, channels last. May be called more than once.
    ///
    /// # Errors
    /// No device memory; CUDA errors.
    ///
    /// # Panics
    /// If the views were freed.
    pub fn views(&self) -> Result<Tensor, TrainError> {
        match &self.views {
            BatchViews::Host { batch, channels, device } => {
                let rows = self.ids.len() + self.second_view_ids.len();
                Ok(upload(&batch.views, rows, *channels, *device)?.views()?)
            }
            BatchViews::Copied { views, event } => {
                views.tensors().into_iter().try_for_each(|tensor| event.wait(tensor))?;
                Ok(views.views()?)
            }
            BatchViews::Tensor(views) => Ok(views.shallow_clone()),
            BatchViews::Freed => panic!("the views of this batch were freed"),
        }
    }

    /// [`DeviceBatch::views`], and frees the source of the copy.
    ///
    /// # Errors
    /// As [`DeviceBatch::views`].
    pub(super) fn take_views(&mut self) -> Result<Tensor, TrainError> {
        let views = self.views();
        self.views = BatchViews::Freed;
        views
    }
}

/// The batches of a run, and the images that failed to decode in them.
pub struct DevicePrefetcher {
    source: Source,
    channels: usize,
    device: Device,
    failed: Vec<(usize, String)>,
}

enum Source {
    Host(Batches),
    Ahead(Ahead),
}

/// A thread that copies ahead; one batch is queued while the next one is copied.
struct Ahead {
    copied: Receiver<Copied>,
    thread: Option<JoinHandle<()>>,
    step: u64,
    waited: Duration,
}

/// A batch, or the error and the images that failed to decode.
type Copied = Result<(DeviceBatch, Vec<(usize, String)>), (TrainError, Vec<(usize, String)>)>;

impl DevicePrefetcher {
    /// Batches that stay in host memory until a step takes their views.
    pub fn on_demand(batches: Batches, channels: usize, device: Device) -> Self {
        Self { source: Source::Host(batches), channels, device, failed: Vec::new() }
    }

    /// Batches that a thread copies to `device` ahead of the steps.
    ///
    /// # Errors
    /// A thread that cannot be created.
    pub fn ahead(batches: Batches, channels: usize, device: Device) -> Result<Self, TrainError> {
        let (sender, copied) = sync_channel(1);
        let work = move || copy_all(batches, channels, device, &sender);
        let thread = std::thread::Builder::new().name("upload".into()).spawn(work)?;
        let ahead = Ahead { copied, thread: Some(thread), step: 0, waited: Duration::ZERO };
        Ok(Self { source: Source::Ahead(ahead), channels, device, failed: Vec::new() })
    }

    /// Seconds that [`Iterator::next`] has waited so far.
    pub fn waited(&self) -> f64 {
        match &self.source {
            Source::Host(batches) => batches.waited(),
            Source::Ahead(ahead) => ahead.waited.as_secs_f64(),
        }
    }

    /// Index and reason of the images that failed to decode since the last call, in failed batches, too.
    pub fn take_failed(&mut self) -> Vec<(usize, String)> {
        std::mem::take(&mut self.failed)
    }
}

impl Iterator for DevicePrefetcher {
    type Item = Result<DeviceBatch, TrainError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (result, failed) = match &mut self.source {
            Source::Host(batches) => match batches.next()? {
                Ok(mut batch) => {
                    let failed = std::mem::take(&mut batch.failed);
                    (Ok(DeviceBatch::on_host(batch, self.channels, self.device)), failed)
                }
                Err(error) => (Err(error.into()), batches.failed_images().to_vec()),
            },
            Source::Ahead(ahead) => match ahead.next()? {
                Ok((batch, failed)) => (Ok(batch), failed),
                Err((error, failed)) => (Err(error), failed),
            },
        };
        self.failed.extend(failed);
        Some(result)
    }
}

impl Ahead {
    fn next(&mut self) -> Option<Copied> {
        let start = Instant::now();
        let received = self.copied.recv();
        self.waited += start.elapsed();
        match received {
            Ok(copied) => {
                self.step += 1;
                Some(copied)
            }
            // The end, or the thread panicked.
            Err(_) => {
                let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
                (!ended).then(|| Err((DataError::WorkerLost { step: self.step }.into(), Vec::new())))
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Unblocks a thread that waits for room in the channel.
        self.copied = sync_channel(0).1;
        // `next` has returned a panic as `WorkerLost`, or its batch is not needed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The prefetch loop: ends at the last batch, on error, or when the receiver is dropped.
fn copy_all(mut batches: Batches, channels: usize, device: Device, sender: &SyncSender<Copied>) {
    // If this fails, copies are queued behind the steps, which is slower but correct.
    let _stream = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device)));
    while let Some(batch) = batches.next() {
        let copied = match batch {
            Ok(batch) => copy(batch, channels, device),
            Err(error) => Err((error.into(), batches.failed_images().to_vec())),
        };
        if sender.send(copied).is_err() {
            return;
        }
    }
}

fn copy(batch: Batch, channels: usize, device: Device) -> Copied {
    let Batch { step, chunk, ids, second_view_ids, views, failed, .. } = batch;
    let rows = ids.len() + second_view_ids.len();
    let copied = copy_views(&views, rows, channels, device);
    match copied {
        Ok(views) => Ok((DeviceBatch { step, chunk, ids, second_view_ids, views }, failed)),
        Err(error) => Err((error, failed)),
    }
}

fn copy_views(views: &Views, rows: usize, channels: usize, device: Device) -> Result<BatchViews, TrainError> {
    let views = upload(views, rows, channels, device)?;
    let event = CudaEvent::new(&Tensor::empty([0], (Kind::Float, device)))?;
    Ok(BatchViews::Copied { views, event })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use simclr_data::{
        AugmentConfig, Dataset, Image, Loader, LoaderConfig, Sample, dataset::Source, decode::Decoding,
        loader::Batches,
    };

    use super::*;

    /// Ten images of one colour each; those from index `bad` cannot be decoded.
    struct Colors {
        bad: usize,
    }

    impl Source for Colors {
        fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
            if index >= self.bad {
                return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
            }
            Ok(Image::new(6, 6, channels, vec![20 * index as u8; 36 * channels]))
        }

        fn stored_bytes(&self, index: usize) -> u64 {
            index as u64
        }
    }

    const CHANNELS: usize = 3;

    fn batches(bad: usize, deferred: bool) -> Batches {
        let samples = (0..10).map(|index| Sample { name: index.to_string(), label: None }).collect();
        let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(Colors { bad })));
        let config = LoaderConfig {
            views: 2,
            batch: 4,
            size: 4,
            seed: 3,
            threads: 1,
            prefetch: 1,
            max_bad_share: if bad < 10 { 0.0 } else { 1.0 },
            ..LoaderConfig::default()
        };
        let loader = Loader::new(dataset, AugmentConfig::default(), config).unwrap();
        let loader = if deferred { loader.deferred() } else { loader };
        loader.batches(0, 5).unwrap()
    }

    fn ahead(bad: usize, deferred: bool) -> DevicePrefetcher {
        DevicePrefetcher::ahead(batches(bad, deferred), CHANNELS, Device::Cpu).unwrap()
    }

    #[test]
    fn prefetched_batches_equal_batches_on_demand() {
        let mut host = DevicePrefetcher::on_demand(batches(10, false), CHANNELS, Device::Cpu);
        let mut prefetched = ahead(10, false);
        for step in 0..5 {
            let [one, other] = [&mut host, &mut prefetched].map(|source| {
                let batch = source.next().unwrap().unwrap();
                assert_eq!(batch.step, step);
                let views = batch.views().unwrap();
                assert_eq!(batch.views().unwrap(), views, "views can be taken again");
                (batch.ids, views)
            });
            assert_eq!(one, other);
        }
        assert!(prefetched.next().is_none() && prefetched.waited() > 0.0);
    }

    /// Deferred views are copied as bytes; without kernels, the error comes from `views`.
    #[test]
    fn deferred_views_are_prefetched() {
        let mut prefetched = ahead(10, true);
        let batch = prefetched.next().unwrap().unwrap();
        let views = simclr_shim::gpu::emulated(simclr_shim::gpu::Order::Rising, || batch.views().unwrap());
        assert_eq!(views.size(), [8, 3, 4, 4]);
        assert!(prefetched.next().unwrap().unwrap().views().is_err());
    }

    #[test]
    fn a_loader_error_arrives_with_its_failed_images() {
        let mut prefetched = ahead(0, false);
        let error = prefetched.next().unwrap().unwrap_err();
        assert!(matches!(error, TrainError::Data(DataError::EmptyBatch { step: 0, .. })), "{error}");
        assert_eq!(prefetched.take_failed().len(), 4);
        assert!(prefetched.next().is_none() && prefetched.take_failed().is_empty());
    }

    #[test]
    fn dropping_the_prefetcher_ends_its_thread() {
        let mut prefetched = ahead(10, false);
        prefetched.next().unwrap().unwrap();
        drop(prefetched);
        drop(ahead(10, false));
    }
}
