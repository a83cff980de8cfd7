//! Batches on their way from the loader to the device. A GPU has the next one sent while it works on this one: a thread pins it and
//! copies it on a stream of its own, and the step waits for that stream, not for the thread.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use simclr_data::{Batch, DataError, loader::Batches};
use simclr_shim::stream::{CudaEvent, StreamGuard};
use tch::{Device, Kind, Tensor};

use crate::{
    TrainError,
    views::{Uploaded, upload},
};

/// The batches of a run, as an iterator; what they hold on the device follows from [`Feed::views`].
pub enum Feed {
    /// As the loader made them; each is copied when its turn comes.
    Host(Batches),
    /// Copied ahead.
    Ahead(Ahead),
}

/// Batches that a thread copies ahead: one waits, one is being copied.
pub struct Ahead {
    arriving: Receiver<Sent>,
    thread: Option<JoinHandle<()>>,
    /// Of the batch that was handed out last.
    arrived: Option<Result<Arrived, TrainError>>,
    step: u64,
    waited: Duration,
    failed_images: Vec<(usize, String)>,
}

/// What the thread sends: the batch without its views, and those, or why there is none and which images failed in it.
type Sent = Result<(Batch, Result<Arrived, TrainError>), (DataError, Vec<(usize, String)>)>;

/// A batch on the device, once its stream has come to the mark.
struct Arrived {
    uploaded: Uploaded,
    mark: CudaEvent,
}

impl Feed {
    /// Has the views `[.., C, S, S]` of `batches` copied ahead, to `device`.
    ///
    /// # Errors
    /// A thread that the system does not give.
    pub fn ahead(batches: Batches, shape: (usize, usize), device: Device) -> Result<Self, TrainError> {
        let (out, arriving) = sync_channel(1);
        let work = move || send_all(batches, shape, device, &out);
        let thread = std::thread::Builder::new().name("upload".into()).spawn(work)?;
        let (waited, failed_images) = (Duration::ZERO, Vec::new());
        Ok(Self::Ahead(Ahead {
            arriving,
            thread: Some(thread),
            arrived: None,
            step: 0,
            waited,
            failed_images,
        }))
    }

    /// Seconds that [`Iterator::next`] has waited so far.
    pub fn waited(&self) -> f64 {
        match self {
            Self::Host(batches) => batches.waited(),
            Self::Ahead(ahead) => ahead.waited.as_secs_f64(),
        }
    }

    /// See [`Batches::failed_images`].
    pub fn failed_images(&self) -> &[(usize, String)] {
        match self {
            Self::Host(batches) => batches.failed_images(),
            Self::Ahead(ahead) => &ahead.failed_images,
        }
    }

    /// The views of the batch that came last, `[rows, C, S, S]` on `device`. Copied ahead they can be had once.
    ///
    /// # Errors
    /// No memory for them; what CUDA said.
    pub fn views(
        &mut self,
        batch: &Batch,
        shape: (usize, usize),
        device: Device,
    ) -> Result<Tensor, TrainError> {
        let ahead = match self {
            Self::Host(_) => None,
            Self::Ahead(ahead) => ahead.arrived.take(),
        };
        let Some(arrived) = ahead.transpose()? else { return Ok(upload(batch, shape, device)?.views()?) };
        arrived.uploaded.tensors().into_iter().try_for_each(|tensor| arrived.mark.wait(tensor))?;
        Ok(arrived.uploaded.views()?)
    }
}

impl Iterator for Feed {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Host(batches) => batches.next(),
            Self::Ahead(ahead) => ahead.next(),
        }
    }
}

impl Ahead {
    fn next(&mut self) -> Option<Result<Batch, DataError>> {
        let start = Instant::now();
        let sent = self.arriving.recv();
        self.waited += start.elapsed();
        match sent {
            Ok(Ok((batch, arrived))) => {
                (self.step, self.arrived) = (batch.step + 1, Some(arrived));
                Some(Ok(batch))
            }
            Ok(Err((error, failed_images))) => {
                self.failed_images = failed_images;
                Some(Err(error))
            }
            // The end, or the thread panicked.
            Err(_) => {
                let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
                (!ended).then_some(Err(DataError::WorkerLost { step: self.step }))
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // A thread that waits for room wakes up when nobody can take what it has.
        self.arriving = sync_channel(0).1;
        // A panic was told as `WorkerLost`, or nobody asked for its batch.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread: copies every batch until the last one, an error, or nobody listens any more.
fn send_all(mut batches: Batches, shape: (usize, usize), device: Device, out: &SyncSender<Sent>) {
    // Without a stream of its own the copies wait for the steps, no more.
    let _own = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device)));
    while let Some(made) = batches.next() {
        let sent = match made {
            Ok(mut batch) => {
                let arrived = copied(&batch, shape, device);
                batch.views = Vec::new().into();
                Ok((batch, arrived))
            }
            Err(error) => Err((error, batches.failed_images().to_vec())),
        };
        if out.send(sent).is_err() {
            return;
        }
    }
}

fn copied(batch: &Batch, shape: (usize, usize), device: Device) -> Result<Arrived, TrainError> {
    let uploaded = upload(batch, shape, device)?;
    let like = Tensor::empty([0], (Kind::Float, device));
    Ok(Arrived { uploaded, mark: CudaEvent::new(&like)? })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use simclr_data::{
        AugmentConfig, Dataset, Image, Loader, LoaderConfig, Sample, dataset::Source, decode::Decoding,
        loader::Batches,
    };

    use super::*;

    /// Ten images of one colour each; from number `bad` on none can be decoded.
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

    const SHAPE: (usize, usize) = (3, 4);

    fn batches(bad: usize, recipes: bool) -> Batches {
        let samples = (0..10).map(|index| Sample { name: index.to_string(), label: None }).collect();
        let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(Colors { bad })));
        let config = LoaderConfig {
            views: 2,
            batch: 4,
            size: SHAPE.1,
            seed: 3,
            threads: 1,
            prefetch: 1,
            max_bad_share: if bad < 10 { 0.0 } else { 1.0 },
        };
        let loader = Loader::new(dataset, AugmentConfig::default(), config).unwrap();
        let loader = if recipes { loader.deferred() } else { loader };
        loader.batches(0, 5).unwrap()
    }

    fn ahead(bad: usize, recipes: bool) -> Feed {
        Feed::ahead(batches(bad, recipes), SHAPE, Device::Cpu).unwrap()
    }

    /// Every batch, image for image and pixel for pixel, and then the end.
    #[test]
    fn batches_that_were_sent_ahead_are_the_batches() {
        let (mut host, mut sent) = (Feed::Host(batches(10, false)), ahead(10, false));
        for step in 0..5 {
            let [(ids, views), (others, other)] = [&mut host, &mut sent].map(|feed| {
                let batch = feed.next().unwrap().unwrap();
                assert_eq!(batch.step, step);
                let views = feed.views(&batch, SHAPE, Device::Cpu).unwrap();
                (batch.ids, views)
            });
            assert_eq!((ids, views), (others, other));
        }
        assert!(sent.next().is_none() && sent.waited() > 0.0);
    }

    /// DeferredViews travel as bytes; where no kernel serves the device, that is told when pixels are wanted.
    #[test]
    fn recipes_are_sent_ahead_too() {
        let mut sent = ahead(10, true);
        let batch = sent.next().unwrap().unwrap();
        let views = simclr_shim::gpu::emulated(simclr_shim::gpu::Order::Rising, || {
            sent.views(&batch, SHAPE, Device::Cpu).unwrap()
        });
        assert_eq!(views.size(), [8, 3, 4, 4]);
        let batch = sent.next().unwrap().unwrap();
        assert!(sent.views(&batch, SHAPE, Device::Cpu).is_err());
    }

    #[test]
    fn an_error_of_the_loader_comes_through_with_its_images() {
        let mut sent = ahead(0, false);
        let error = sent.next().unwrap().unwrap_err();
        assert!(matches!(error, DataError::EmptyBatch { step: 0, .. }), "{error}");
        assert_eq!(sent.failed_images().len(), 4);
        assert!(sent.next().is_none());
    }

    /// Nobody waits for batches that nobody wants.
    #[test]
    fn a_feed_that_is_dropped_ends_its_thread() {
        let mut sent = ahead(10, false);
        sent.next().unwrap().unwrap();
        drop(sent);
        drop(ahead(10, false));
    }
}
