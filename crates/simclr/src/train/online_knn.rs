//! kNN accuracy on held-out training images during a run, as a progress indicator. The test part of the data set is not read.

use std::time::Instant;

use simclr_data::{Dataset, EvalReader, augment::EvalTransform, rng::Key};
use tch::{Device, Tensor};

use crate::{Plan, TrainError, device::to_device, encoder::Mode, knn, model::Model};

/// Share of the images that are queries; the others are the bank.
const QUERY_SHARE: f64 = 0.2;
/// Weighted kNN of MoCo's CIFAR-10 demo, with 20 instead of 200 neighbours because the bank is small.
const NEIGHBOURS: i64 = 20;
const TEMPERATURE: f64 = 0.1;
/// Images per forward pass.
const CHUNK: usize = 256;

/// Number of images that all evaluations of a run embed.
pub(super) fn images(plan: &Plan, dataset: &Dataset) -> usize {
    OnlineKnn::new(plan, dataset)
        .map_or(0, |knn| (plan.total_steps / knn.every_steps) as usize * knn.images())
}

/// Bank and queries are drawn from the seed of the run.
pub(super) struct OnlineKnn {
    bank: Vec<usize>,
    queries: Vec<usize>,
    /// By index in the data set.
    labels: Vec<Option<u32>>,
    classes: i64,
    every_steps: u64,
    threads: usize,
    transform: EvalTransform,
}

impl OnlineKnn {
    /// `None` without labels, with fewer than two classes or ten images, or if `train.knn_every` is 0.
    pub fn new(plan: &Plan, dataset: &Dataset) -> Option<Self> {
        let train = &plan.config.train;
        let labels: Vec<Option<u32>> = dataset.samples().iter().map(|sample| sample.label).collect();
        let classes = labels.iter().flatten().max().map_or(0, |&max| i64::from(max) + 1);
        let images = train.knn_images.min(labels.iter().flatten().count());
        if train.knn_every <= 0.0 || classes < 2 || images < 10 {
            return None;
        }
        // An epoch number that no run reaches.
        let mut order = Key::order(train.seed, u64::MAX).stream().permutation(dataset.len());
        order.retain(|&image| labels[image].is_some());
        order.truncate(images);
        let queries = order.split_off(((1.0 - QUERY_SHARE) * images as f64) as usize);
        let every_steps = ((train.knn_every * plan.steps_per_epoch as f64).round() as u64).max(1);
        Some(Self {
            bank: order,
            queries,
            labels,
            classes,
            every_steps,
            threads: plan.data_threads,
            transform: plan.transform(),
        })
    }

    /// Images of an evaluation.
    fn images(&self) -> usize {
        self.bank.len() + self.queries.len()
    }

    /// Seconds of the evaluations per training step, extrapolated from one chunk of images.
    ///
    /// # Errors
    /// As [`OnlineKnn::accuracy`].
    pub fn seconds_per_step(&self, model: &Model, dataset: &Dataset) -> Result<f64, TrainError> {
        let some = &self.bank[..CHUNK.min(self.bank.len())];
        let start = Instant::now();
        self.features(model, dataset, some)?;
        let per_image = start.elapsed().as_secs_f64() / some.len().max(1) as f64;
        Ok(per_image * self.images() as f64 / self.every_steps as f64)
    }

    /// Whether an evaluation is due after `steps` steps.
    pub fn is_due(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.every_steps)
    }

    /// Accuracy on the queries in `[0, 1]`, without images that cannot be decoded; `None` if bank or queries are empty.
    ///
    /// # Errors
    /// Threads that cannot be created; libtorch errors.
    pub fn accuracy(&self, model: &Model, dataset: &Dataset) -> Result<Option<f64>, TrainError> {
        let bank = self.features(model, dataset, &self.bank)?;
        let queries = self.features(model, dataset, &self.queries)?;
        let (Some((bank, bank_labels)), Some((queries, labels))) = (bank, queries) else { return Ok(None) };
        let k = NEIGHBOURS.min(bank_labels.size()[0]);
        let predicted = knn::knn_predict(&bank, &bank_labels, &queries, self.classes, k, Some(TEMPERATURE));
        Ok(Some(knn::accuracy(&predicted, &labels)))
    }

    /// Features `[n, F]` and labels `[n]` on the CPU.
    fn features(
        &self,
        model: &Model,
        dataset: &Dataset,
        ids: &[usize],
    ) -> Result<Option<(Tensor, Tensor)>, TrainError> {
        let mut features = Vec::new();
        let mut labels = Vec::new();
        let reader = EvalReader::new(dataset, &self.transform, self.threads)?;
        for chunk in ids.chunks(CHUNK) {
            let read = reader.read(chunk);
            if read.ids.is_empty() {
                continue;
            }
            let size = self.transform.size as i64;
            let shape = [read.ids.len() as i64, dataset.channels() as i64, size, size];
            let images = to_device(&read.pixels, shape, model.params.device())?;
            let h = tch::no_grad(|| model.encoder.forward(&images, &Mode::Eval, model.precision))?;
            features.push(h.to_device(Device::Cpu));
            labels.extend(read.ids.iter().filter_map(|&id| self.labels[id]).map(i64::from));
        }
        Ok((!features.is_empty()).then(|| (Tensor::cat(&features, 0), Tensor::from_slice(&labels))))
    }
}
