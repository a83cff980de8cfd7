//! What runs: epochs become steps, the base learning rate is scaled, zeros become counts of this machine.

use serde::Serialize;
use simclr_data::Dataset;

use super::RunConfig;
use crate::{
    ConfigError, RanksError,
    device::Precision,
    nt_xent::LossScale,
    objective::ObjectiveKind,
    optim::{OptimKind, Scaling, Schedule},
};

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
    /// K; 0 without labels.
    pub classes: usize,
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
    /// Processes.
    pub ranks: usize,
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
            classes: dataset.classes().len(),
            steps_per_epoch,
            total_steps,
            schedule: Schedule::new(&self.optim, batch, steps_per_epoch, total_steps),
            precision,
            data_threads: threads(self.data.threads),
            torch_threads: threads(self.train.threads),
            ranks: 1,
        })
    }
}

impl Plan {
    /// The plan of each of `count` processes, `sharing` of which share this machine's processors: threads that the
    /// configuration leaves open are divided among these.
    ///
    /// # Errors
    /// Fewer images in a batch than processes.
    pub fn among(self, count: usize, sharing: usize) -> Result<Self, RanksError> {
        let batch = self.config.train.batch;
        if batch < count {
            return Err(RanksError::TooFewImages { batch, count });
        }
        let divided = |asked: usize, all: usize| if asked == 0 { (all / sharing).max(1) } else { all };
        Ok(Self {
            ranks: count,
            data_threads: divided(self.config.data.threads, self.data_threads),
            torch_threads: divided(self.config.train.threads, self.torch_threads),
            ..self
        })
    }
}

impl RunConfig {
    /// Known traps that this configuration steps into, a sentence each. They are legal, so they are said, not refused.
    pub fn cautions(&self) -> Vec<String> {
        let (augment, train, optim) = (&self.augment, &self.train, &self.optim);
        let contrastive = self.task.objective == ObjectiveKind::Contrastive;
        let small = train.image_size <= 32;
        let first_layers = self.encoder.imagenet_stem(train.image_size as i64) && self.encoder.is_resnet();
        let adaptive = matches!(optim.kind, OptimKind::Lars | OptimKind::Lamb);
        let traps = [
            (
                small && augment.color > 0.5,
                "colour strength above 0.5 at 32 px or less: the paper found 0.5 best on CIFAR-10 (B.9)",
            ),
            (small && augment.blur > 0.0, "blur at 32 px or less: the paper leaves it out on CIFAR-10 (B.9)"),
            (
                small && first_layers,
                "an ImageNet stem at 32 px or less throws most pixels away; encoder.stem = \"cifar\" keeps them",
            ),
            (
                contrastive && small && self.loss.temperature < 0.2,
                "temperature below 0.2 at 32 px or less: 0.5 was best on CIFAR-10 (B.9)",
            ),
            (
                contrastive && self.loss.scale == LossScale::Official && !adaptive,
                "the official loss is twice the paper's, which doubles the effective learning rate of this optimizer",
            ),
            (
                optim.kind == OptimKind::Lars && optim.scaling == Scaling::Linear && train.batch < 512,
                "linear scaling with LARS at a small batch: square-root scaling trains better (B.1)",
            ),
            (
                contrastive && (augment.color == 0.0 || augment.jitter == 0.0),
                "no colour jitter: crops of one image can be told by their colours alone (paper 3.1)",
            ),
        ];
        traps.iter().filter(|(stepped_in, _)| *stepped_in).map(|(_, text)| (*text).to_owned()).collect()
    }
}
