//! A kNN classifier on held-out training images while the run goes on: a hint, never a result. The test part is
//! not touched.

use simclr_data::{Dataset, EvalReader, augment::EvalTransform, rng::Key};
use tch::{Device, Tensor};

use crate::{Plan, TrainError, device::to_device, encoder::Mode, knn, model::Model};

/// Share of the images that are classified; the others are the bank.
const QUERY_SHARE: f64 = 0.2;
/// Neighbours and temperature (docs/method.md 6.2; k = 20 on small banks, 15.0).
const NEIGHBOURS: i64 = 20;
const TEMPERATURE: f64 = 0.1;
/// Images that pass through the encoder at once.
const CHUNK: usize = 256;

/// Images of all evaluations of a run together.
pub fn images(plan: &Plan, dataset: &Dataset) -> usize {
    OnlineKnn::new(plan, dataset).map_or(0, |knn| {
        let times = plan.total_steps / knn.every_steps.max(plan.steps_per_epoch);
        times as usize * (knn.bank.len() + knn.queries.len())
    })
}

/// Which images, fixed by the seed.
pub struct OnlineKnn {
    bank: Vec<usize>,
    queries: Vec<usize>,
    /// Of every image of the set that has one.
    labels: Vec<Option<u32>>,
    classes: i64,
    every_steps: u64,
    threads: usize,
    transform: EvalTransform,
}

impl OnlineKnn {
    /// `None` where there are no labels, fewer than two classes, or the configuration switches it off.
    pub fn new(plan: &Plan, dataset: &Dataset) -> Option<Self> {
        let train = &plan.config.train;
        let labels: Vec<Option<u32>> = dataset.samples().iter().map(|sample| sample.label).collect();
        let classes = labels.iter().flatten().max().map_or(0, |&most| i64::from(most) + 1);
        let images = train.knn_images.min(labels.iter().flatten().count());
        if train.knn_every <= 0.0 || classes < 2 || images < 10 {
            return None;
        }
        // Epoch numbers of a run stay far below this one.
        let mut order = Key::order(train.seed, u64::MAX).stream().permutation(dataset.len());
        order.retain(|&image| labels[image].is_some());
        order.truncate(images);
        let queries = order.split_off(((1.0 - QUERY_SHARE) * images as f64) as usize);
        let every_steps = ((train.knn_every * plan.steps_per_epoch as f64).round() as u64).max(1);
        let (threads, transform) = (plan.data_threads, plan.transform());
        Some(Self { bank: order, queries, labels, classes, every_steps, threads, transform })
    }

    /// Whether it is due after `steps` steps.
    pub fn is_due(&self, steps: u64) -> bool {
        steps.is_multiple_of(self.every_steps)
    }

    /// Accuracy of the weighted kNN on the queries, `[0, 1]`; `None` where no image of the bank or none of the
    /// queries can be decoded.
    ///
    /// # Errors
    /// Threads that the system does not give. Images that cannot be decoded are left out.
    pub fn accuracy(&self, model: &Model, dataset: &Dataset) -> Result<Option<f64>, TrainError> {
        let bank = self.features(model, dataset, &self.bank)?;
        let queries = self.features(model, dataset, &self.queries)?;
        let (Some((bank, bank_labels)), Some((queries, labels))) = (bank, queries) else { return Ok(None) };
        let k = NEIGHBOURS.min(bank_labels.size()[0]);
        let predicted = knn::knn_predict(&bank, &bank_labels, &queries, self.classes, k, Some(TEMPERATURE));
        Ok(Some(knn::accuracy(&predicted, &labels)))
    }

    fn features(
        &self,
        model: &Model,
        dataset: &Dataset,
        ids: &[usize],
    ) -> Result<Option<(Tensor, Tensor)>, TrainError> {
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        let reader = EvalReader::new(dataset, &self.transform, self.threads)?;
        for chunk in ids.chunks(CHUNK) {
            let read = reader.read(chunk);
            if read.ids.is_empty() {
                continue;
            }
            let (size, channels) = (self.transform.size as i64, dataset.channels() as i64);
            let images = to_device(
                &read.pixels,
                [read.ids.len() as i64, channels, size, size],
                model.params.device(),
            )?;
            let h = tch::no_grad(|| model.encoder.forward(&images, &Mode::Eval, model.precision))?;
            features.push(h.to_device(Device::Cpu));
            labels.extend(read.ids.iter().filter_map(|&id| self.labels[id]).map(i64::from));
        }
        Ok((!features.is_empty()).then(|| (Tensor::cat(&features, 0), Tensor::from_slice(&labels))))
    }
}
