//! [`Plan`]: a configuration with epochs as steps, the scaled learning rate and thread counts of this machine.

use serde::Serialize;
use simclr_data::{Dataset, augment::EvalTransform};

use super::{RunConfig, StepCount, validate::SHUFFLED};
use crate::{
    ConfigError,
    device::Precision,
    encoder::BatchNormScope,
    losses::{LossKind, Reduction},
    optim::{OptimKind, Scaling, Schedule},
    task::MethodKind,
    views::AugmentDevice,
};

/// A run as executed: all values derived from configuration, data and machine. Written to `plan.json`, which is never read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// With overrides and chosen keys.
    pub config: RunConfig,
    /// Number of images of the training set.
    pub images: usize,
    /// Digest of names, labels and sizes of the images.
    pub data_fingerprint: String,
    /// Channels C of an image.
    pub channels: usize,
    /// Whether any image has a label, for the online kNN.
    pub labelled: bool,
    /// Number of classes; 0 without labels.
    pub classes: usize,
    /// Names of the classes in the order of a classifier's outputs; empty if the run trains no classifier.
    pub class_names: Vec<String>,
    /// Full batches per epoch.
    pub steps_per_epoch: u64,
    /// From the first to the last step, resumed or not.
    pub total_steps: u64,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Steps from which training views have another side: (step, pixels).
    pub view_sizes: Vec<(u64, usize)>,
    /// Type of convolutions and matrix products.
    pub precision: Precision,
    /// Device that augments.
    #[serde(alias = "views_on")]
    pub augment_device: AugmentDevice,
    /// Times that the views of a batch are computed: 2 if keeping those of all chunks between the two passes takes more than
    /// [`KEPT_VIEWS`].
    pub view_passes: usize,
    /// Loader threads of this process.
    pub data_threads: usize,
    /// Threads of libtorch in this process.
    pub torch_threads: usize,
    /// Number of processes.
    pub ranks: usize,
}

impl RunConfig {
    /// The plan of a single process.
    ///
    /// # Errors
    /// A batch larger than the data set.
    pub fn resolve(
        &self,
        dataset: &Dataset,
        precision: Precision,
        augment_device: AugmentDevice,
    ) -> Result<Plan, ConfigError> {
        let images = dataset.len();
        let batch = self.train.batch;
        if images < 2 {
            return Err(ConfigError::Value {
                key: "data.path".into(),
                value: format!("a set of {images} images"),
                expected: "at least 2".into(),
            });
        }
        if images < batch {
            return Err(ConfigError::Value {
                key: "train.batch".into(),
                value: batch.to_string(),
                expected: format!("at most the {images} images of the data set"),
            });
        }
        let steps_per_epoch = (images / batch) as u64;
        let (total_steps, warmup_steps) = self.steps(images);
        let machine = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |configured: usize| if configured == 0 { machine } else { configured };
        Ok(Plan {
            config: self.clone(),
            images,
            data_fingerprint: dataset.fingerprint(),
            channels: dataset.channels(),
            labelled: dataset.samples().iter().any(|sample| sample.label.is_some()),
            classes: dataset.classes().len(),
            class_names: if self.task.objective.is_contrastive() {
                Vec::new()
            } else {
                dataset.classes().to_vec()
            },
            steps_per_epoch,
            total_steps,
            schedule: Schedule::new(&self.optim, batch, warmup_steps, total_steps)
                .with_milestones(&self.optim, |epoch| self.step_of(epoch, images)),
            view_sizes: self.view_sizes(total_steps),
            precision,
            augment_device,
            view_passes: self.view_passes(dataset.channels()),
            data_threads: threads(self.data.threads),
            torch_threads: threads(self.train.threads),
            ranks: 1,
        })
    }

    /// First step after `epochs` epochs of `images` images.
    fn step_of(&self, epochs: f64, images: usize) -> u64 {
        let (images, batch) = (images as f64, self.train.batch as f64);
        match self.train.step_count {
            StepCount::FullBatches => (epochs * (images / batch).floor()).round() as u64,
            StepCount::Official => (images * epochs / batch).floor() as u64,
        }
    }

    /// `train.view_sizes` with the step at which each begins.
    fn view_sizes(&self, total_steps: u64) -> Vec<(u64, usize)> {
        let step = |share: f64| (share * total_steps as f64).round() as u64;
        self.train.view_sizes.iter().map(|&(share, size)| (step(share), size)).collect()
    }

    /// `train.epochs` of a run of `steps` steps on `images` images.
    pub(crate) fn epochs_of(&self, steps: u64, images: usize) -> f64 {
        let (steps, images, batch) = (steps as f64, images as f64, self.train.batch as f64);
        match self.train.step_count {
            StepCount::FullBatches => steps / (images / batch).floor(),
            // In the middle of the epochs that round to this number.
            StepCount::Official => (steps - 0.5) * batch / images,
        }
    }

    /// Steps of the run and of its warm-up on `images` images.
    fn steps(&self, images: usize) -> (u64, u64) {
        let train = &self.train;
        let more = u64::from(train.step_count == StepCount::Official);
        let total = (self.step_of(train.epochs, images) + more).max(1);
        (total, self.step_of(self.optim.warmup_epochs, images).min(total))
    }
}

impl Plan {
    /// Deterministic transform for evaluation and export.
    pub fn transform(&self) -> EvalTransform {
        let transform = self.config.transform.to(self.config.train.image_size, self.channels);
        transform.of_range(self.config.data.value_range())
    }

    /// Images per pass through the encoder on each process.
    pub fn chunk(&self) -> usize {
        let part = self.config.train.batch.div_ceil(self.ranks);
        let chunk = self.config.train.chunk;
        if chunk > 0 { chunk.min(part) } else { part }
    }

    /// Whether a process encodes its part of a batch in chunks, or exchanges views with other processes (shuffle BN).
    pub fn is_chunked(&self) -> bool {
        let train = &self.config.train;
        let exchanges_views = self.ranks > 1 && train.batch_norm == BatchNormScope::ChunkShuffled;
        exchanges_views || self.chunk() < train.batch.div_ceil(self.ranks)
    }

    /// The plan of each of `count` processes, `sharing` of which share this machine's processors and divide the threads that are not
    /// configured.
    ///
    /// # Errors
    /// Fewer images in a batch than processes; batch-norm scopes that the encoder or the number of chunks does not allow.
    pub fn among(self, count: usize, sharing: usize) -> Result<Self, ConfigError> {
        let train = &self.config.train;
        let error = |key: &str, value: String, expected: String| {
            Err(ConfigError::Value { key: key.into(), value, expected })
        };
        if train.batch < count {
            let expected = format!("at least one image for each of the {count} processes");
            return error("train.batch", train.batch.to_string(), expected);
        }
        if count > 1 && self.config.encoder.file.is_some() && train.batch_norm == BatchNormScope::Global {
            let expected = "chunk or chunk-shuffled: the batch norm of a TorchScript module (encoder.file) covers its own \
                            process only";
            return error("train.batch_norm", "global".into(), expected.into());
        }
        let shuffled = train.batch_norm == BatchNormScope::ChunkShuffled;
        if shuffled && count == 1 && !train.is_chunked() {
            let expected = "with chunk-shuffled: at least 2 images and fewer than train.batch, or several processes, because \
                            shuffling needs several chunks";
            return error("train.chunk", train.chunk.to_string(), expected.into());
        }
        let groups = train.batch_norm_groups;
        if count > 1 && groups > 1 {
            let expected = "1 with several processes, which are groups (train.batch_norm = \"chunk\")";
            return error("train.batch_norm_groups", groups.to_string(), expected.into());
        }
        let is_moco = self.config.task.objective == MethodKind::Moco;
        let leaks = is_moco && self.config.moco.shuffle && train.batch_norm == BatchNormScope::Chunk;
        if leaks && (count > 1 || train.is_chunked()) {
            return error("train.batch_norm", "chunk".into(), SHUFFLED.into());
        }
        let divided =
            |configured: usize, all: usize| if configured == 0 { (all / sharing).max(1) } else { all };
        Ok(Self {
            ranks: count,
            data_threads: divided(self.config.data.threads, self.data_threads),
            torch_threads: divided(self.config.train.threads, self.torch_threads),
            ..self
        })
    }
}

#[cfg(test)]
impl Plan {
    /// A plan of `config` for unit tests that read schedules and switches, not data.
    pub fn for_tests(config: RunConfig) -> Self {
        let schedule = Schedule::new(&config.optim, config.train.batch, 100, 1000);
        Self {
            images: 10 * config.train.batch,
            data_fingerprint: String::new(),
            channels: 3,
            labelled: false,
            classes: 0,
            class_names: Vec::new(),
            steps_per_epoch: 10,
            total_steps: 1000,
            schedule,
            view_sizes: Vec::new(),
            precision: Precision::F32,
            augment_device: AugmentDevice::Cpu,
            view_passes: 1,
            data_threads: 1,
            torch_threads: 1,
            ranks: 1,
            config,
        }
    }
}

/// Largest size in bytes up to which the views of a batch in chunks are kept between its two passes. Larger ones are computed again,
/// so that memory does not grow with the batch, at the cost of decoding twice.
pub const KEPT_VIEWS: usize = 1 << 30;

/// Largest side in pixels of views for which the paper's settings for CIFAR-10 (B.9) are meant.
pub const SMALL_IMAGE: usize = 32;
/// Images per step from which linear scaling trains as well as square-root scaling (paper, B.1).
pub const LINEAR_SCALING_BATCH: usize = 512;

impl RunConfig {
    fn view_passes(&self, channels: usize) -> usize {
        let train = &self.train;
        let views = self.task.objective.views();
        let bytes = views * train.batch * channels * train.image_size * train.image_size * size_of::<f32>();
        // Global batch norm keeps the inputs of all stages; the views are the input of the first one.
        let kept = !train.is_chunked() || train.batch_norm == BatchNormScope::Global || bytes <= KEPT_VIEWS;
        if kept { 1 } else { 2 }
    }

    /// Warnings about valid but known unfavourable settings.
    pub fn cautions(&self) -> Vec<String> {
        let Self { augment, train, optim, .. } = self;
        let contrastive = self.task.objective.is_contrastive();
        let small = train.image_size <= SMALL_IMAGE;
        let imagenet_stem = self.encoder.imagenet_stem(train.image_size as i64) && self.encoder.is_resnet();
        let adaptive = matches!(optim.kind, OptimKind::Lars | OptimKind::Lamb);
        let cautions = [
            (
                // Relative to the paper's jitter of 0.8 at s = 1.
                small && augment.color * augment.jitter_strengths[0] / 0.8 > 0.5,
                "colour strength above 0.5 at 32 px or less: the paper found 0.5 best on CIFAR-10 (B.9)",
            ),
            (
                small && augment.blur > 0.0,
                "blur at 32 px or less: the paper does not use it on CIFAR-10 (B.9)",
            ),
            (
                small && imagenet_stem,
                "an ImageNet stem at 32 px or less loses most of the resolution; encoder.stem = \"cifar\" keeps it",
            ),
            (
                self.task.objective == MethodKind::Contrastive
                    && small
                    && self.loss.kind != LossKind::Margin
                    && self.loss.temperature < 0.2,
                "temperature below 0.2 at 32 px or less: 0.5 was best on CIFAR-10 (B.9)",
            ),
            (
                contrastive && self.loss.reduction == Reduction::Official && !adaptive,
                "the official loss is twice the paper's, which doubles the effective learning rate of this optimizer",
            ),
            (
                optim.kind == OptimKind::Lars
                    && optim.scaling == Scaling::Linear
                    && train.batch < LINEAR_SCALING_BATCH,
                "linear scaling with LARS at a small batch: square-root scaling trains better (paper B.1)",
            ),
            (
                train.is_chunked() && train.batch_norm == BatchNormScope::Chunk && train.chunk < 32,
                "batch norm over chunks of few images: shared statistics identify the two views of an image; chunk-shuffled or global batch norm avoids it (MoCo, section 3.3)",
            ),
            (
                optim.warmup_epochs > 0.0 && optim.warmup_epochs >= train.epochs,
                "warm-up is as long as the run or longer: the learning rate rises to its last step and never falls; set \
                 optim.warmup_epochs below train.epochs",
            ),
            (
                contrastive && (augment.color == 0.0 || augment.jitter == 0.0),
                "no colour jitter: crops of one image can be matched by their colours alone (paper section 3.1)",
            ),
        ];
        cautions.iter().filter(|(applies, _)| *applies).map(|(_, text)| (*text).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps, warm-up and learning rates of the official code (`reference/official_optim.py`).
    #[test]
    fn official_step_counts_and_learning_rates() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/official_schedule.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        for case in cases {
            let number = |key: &str| case[key].as_f64().unwrap();
            let mut config = RunConfig::default();
            config.train.step_count = StepCount::Official;
            config.train.batch = number("batch") as usize;
            config.train.epochs = number("epochs");
            config.optim.warmup_epochs = number("warmup_epochs");
            config.optim.lr = number("base");
            config.optim.scaling = serde_json::from_value(case["scaling"].clone()).unwrap();
            let (steps, warmup) = config.steps(number("examples") as usize);
            assert_eq!((steps as f64, warmup as f64), (number("steps"), number("warmup_steps")), "{case}");
            let schedule = Schedule::new(&config.optim, config.train.batch, warmup, steps);
            for pair in case["lr"].as_array().unwrap() {
                let (step, expected) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
                // The official schedule computes in f32; near its end cos(pi x) cancels against 1.
                let difference = (schedule.at(step) - expected).abs();
                assert!(difference <= 2e-6 * schedule.peak, "{case}: step {step}: {}", schedule.at(step));
            }
        }
        assert!(cases.len() >= 8);
    }

    #[test]
    fn full_batches_count_whole_batches_of_an_epoch() {
        let mut config = RunConfig::default();
        (config.train.batch, config.train.epochs, config.optim.warmup_epochs) = (512, 100.0, 10.0);
        assert_eq!(config.steps(50_000), (9700, 970));
        config.optim.warmup_epochs = 1000.0;
        assert_eq!(config.steps(50_000), (9700, 9700), "a warm-up longer than the run");
        config.train.epochs = 1e-9;
        assert_eq!(config.steps(50_000), (1, 1));
    }

    #[test]
    fn epochs_of_a_number_of_steps_plan_as_many() {
        let mut config = RunConfig::default();
        for step_count in [StepCount::FullBatches, StepCount::Official] {
            config.train.step_count = step_count;
            for (images, batch) in [(1000, 256), (50_000, 512), (7, 7), (10_001, 128)] {
                config.train.batch = batch;
                for steps in [1, 2, 3, 97, 1234, 98_765] {
                    config.train.epochs = config.epochs_of(steps, images);
                    assert_eq!(
                        config.steps(images).0,
                        steps,
                        "{step_count:?}, {images} images, batch {batch}"
                    );
                }
            }
        }
    }
}
