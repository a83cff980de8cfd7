//! What runs: epochs become steps, the base learning rate is scaled, zeros become counts of this machine.

use serde::Serialize;
use simclr_data::Dataset;

use super::RunConfig;
use crate::{ConfigError, device::Precision, optim::Schedule};

/// A run as executed: everything that follows from configuration, data and machine. Written to `plan.json`, never
/// read back as input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// As written, with overrides.
    pub config: RunConfig,
    /// Images of the training set.
    pub images: usize,
    /// Its fingerprint.
    pub data_fingerprint: String,
    /// C.
    pub channels: usize,
    /// Whether the set has labels for the online kNN.
    pub labelled: bool,
    /// Full batches of an epoch.
    pub steps_per_epoch: u64,
    /// All steps of the run.
    pub total_steps: u64,
    /// Peak learning rate, warm-up and total in steps.
    pub schedule: Schedule,
    /// Compute precision.
    pub precision: Precision,
    /// Threads of the loader.
    pub data_threads: usize,
    /// Threads of libtorch.
    pub torch_threads: usize,
}

impl RunConfig {
    /// Resolves units against the data and the machine.
    ///
    /// # Errors
    /// A batch larger than the data set.
    pub fn resolve(&self, dataset: &Dataset, precision: Precision) -> Result<Plan, ConfigError> {
        let (images, batch) = (dataset.len(), self.train.batch);
        if images < batch {
            return Err(ConfigError::Value {
                key: "train.batch".into(),
                value: batch.to_string(),
                expected: format!("at most the {images} images of the data set"),
            });
        }
        let steps_per_epoch = (images / batch) as u64;
        let total_steps = ((self.train.epochs * steps_per_epoch as f64).round() as u64).max(1);
        let machine = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |asked: usize| if asked == 0 { machine } else { asked };
        Ok(Plan {
            config: self.clone(),
            images,
            data_fingerprint: dataset.fingerprint(),
            channels: dataset.channels(),
            labelled: dataset.labels().is_some(),
            steps_per_epoch,
            total_steps,
            schedule: Schedule::new(&self.optim, batch, steps_per_epoch, total_steps),
            precision,
            data_threads: threads(self.data.threads),
            torch_threads: threads(self.train.threads),
        })
    }
}
