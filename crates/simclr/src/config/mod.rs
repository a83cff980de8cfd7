//! The configuration of a run ([`RunConfig`], TOML) and the values derived from it ([`Plan`]), such as epochs in steps.

mod compat;
mod limits;
pub(crate) mod load;
mod plan;
pub mod recipes;
pub mod sources;
pub mod trust;
mod validate;
mod without_effect;
mod written;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use simclr_data::{
    AugmentConfig, LoaderConfig, RangeChoice, Split, ValueRange,
    augment::TransformConfig,
    dataset::{Channels, Labels, OpenOptions, canonical},
    decode::Pages,
};

use crate::{
    device::{DeviceChoice, PrecisionChoice},
    dist::DistConfig,
    encoder::{BatchNormScope, EncoderConfig, MOMENTUM},
    head::HeadConfig,
    losses::LossConfig,
    optim::OptimConfig,
    task::{DistillConfig, MocoConfig, TaskConfig},
    views::AugmentDeviceChoice,
};

pub use plan::{KEPT_VIEWS, LINEAR_SCALING_BATCH, Plan, SMALL_IMAGE};
pub use written::{Written, WrittenChange};

/// A run as written. The default of every key is in the `Default` of its section; those of the loader's keys are
/// [`LoaderConfig`]'s.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Data set and loader.
    pub data: DataConfig,
    /// Random augmentation of training views.
    pub augment: AugmentConfig,
    /// Deterministic transform for evaluation and export.
    pub transform: TransformConfig,
    /// Encoder f: images to h.
    pub encoder: EncoderConfig,
    /// Projection head g: h to z.
    pub head: HeadConfig,
    /// Contrastive loss.
    pub loss: LossConfig,
    /// Method, initial weights, subset of images.
    pub task: TaskConfig,
    /// Teacher and loss of distillation.
    pub distill: DistillConfig,
    /// Momentum encoder and queue.
    pub moco: MocoConfig,
    /// Optimizer and learning-rate schedule.
    pub optim: OptimConfig,
    /// Duration, batch, precision, checkpoints.
    pub train: TrainConfig,
    /// Timeouts of a run of several processes.
    #[serde(alias = "ranks")]
    pub dist: DistConfig,
}

impl RunConfig {
    /// Whether a loss below its value at chance shows learning. With a queue it does not: at first the queue holds random keys, which
    /// are farther away than every view. For losses see [`LossConfig::chance_decides`].
    pub fn chance_decides(&self) -> bool {
        let objective = self.task.objective;
        !objective.is_contrastive() || (self.loss.chance_decides() && !objective.has_queue())
    }
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder, shard or file; usually given by `--data`.
    pub path: Option<PathBuf>,
    /// Source of labels: `auto` (those of the set), `none` (folders are not classes), or the path of a table of images and labels
    /// (CSV, JSON lines, parquet).
    pub labels: Labels,
    /// Parts of the set to train on, such as ["train", "test"]. Empty: the training part and, for contrastive training, the
    /// unlabelled part.
    pub parts: Vec<Split>,
    /// Channels of decoded images; 0 = those of the set.
    pub channels: usize,
    /// Meaning of the pages of a TIFF file: `auto` (pages of one band and equal size are channels of one image; other pages after
    /// the first are ignored with a note), `channels` (pages that cannot be channels are an error), or `images` (each page except
    /// thumbnails and masks is an image named `stack.tif#0` and so on by page number, with the label of the file). For a packed
    /// set, `auto` is the rule that it was written with.
    pub pages: Pages,
    /// Stored values that are mapped to 0 and 1: `auto` (0 and 255 for 8-bit images, otherwise the range of each channel in a
    /// sample of the set), `full` (0 and 65535 for 16 bits), [low, high], or one such pair per channel. A run stores the range
    /// that `auto` found.
    pub range: RangeChoice,
    /// Largest share of images that may fail to decode. Unless it is 0, at least 5 images may fail, but no more than a tenth of the
    /// set.
    pub max_bad_share: f64,
    /// Threads that decode and, if `augment_on` is the CPU, augment; 0 = all processors.
    pub threads: usize,
    /// Where views are augmented: `auto` (on a GPU, for views of at most 16 channels and 2048 pixels a side, else on the loader's
    /// threads), `cpu` or `device`. Decoding always runs on the loader's threads.
    #[serde(alias = "views_on")]
    pub augment_on: AugmentDeviceChoice,
    /// Batches (or chunks) prepared ahead of the step.
    pub prefetch: usize,
}

impl DataConfig {
    /// Options with which the data set is opened.
    pub fn open_options(&self) -> OpenOptions {
        let channels = if self.channels == 0 { Channels::Auto } else { Channels::Count(self.channels) };
        OpenOptions { channels, pages: self.pages }
    }

    /// The resolved range of a run; the full range while `range` is `auto`.
    pub fn value_range(&self) -> ValueRange {
        match &self.range {
            RangeChoice::Set(range) => range.clone(),
            RangeChoice::Auto => ValueRange::Full,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        let loader = LoaderConfig::default();
        Self {
            path: None,
            labels: Labels::Auto,
            parts: Vec::new(),
            channels: 0,
            pages: Pages::Auto,
            range: RangeChoice::Auto,
            max_bad_share: loader.max_bad_share,
            threads: 0,
            augment_on: AugmentDeviceChoice::Auto,
            prefetch: loader.prefetch,
        }
    }
}

impl DataConfig {
    /// Source of the labels of the set at `data`: as configured for the set of the run, `auto` for other sets.
    pub fn labels_of(&self, data: &Path) -> Labels {
        let canonical = |path: &Path| canonical(path).ok();
        let own_set = self.path.as_deref().and_then(canonical);
        if own_set.is_some_and(|own_set| canonical(data) == Some(own_set)) {
            self.labels.clone()
        } else {
            Labels::Auto
        }
    }
}

/// `[train]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: f64,
    /// Instead of `epochs`: the duration of the run in minutes, from its start to the last checkpoint; 0 = `epochs` counts. Of the two
    /// keys, the one on the command line counts over the one in a file, and there the last one. Steps are measured at the start, and
    /// the configuration of the run folder has the epochs that fit in its place, so that resuming and repeating a run take the same
    /// steps.
    pub minutes: f64,
    /// How epochs are converted to steps.
    pub step_count: StepCount,
    /// N: images per step (2N views). If it is not set and the data set has fewer images, `pretrain` chooses the largest power of
    /// two that the set holds.
    pub batch: usize,
    /// Images per pass through the encoder; 0 = the whole batch. The loss is always that of the whole batch. If it is not set,
    /// `pretrain` measures small steps and chooses a size that fits into memory.
    pub chunk: usize,
    /// Memory in GiB that a process may use, on the GPU if there is one; 0 = 80 % of the free memory at the start. The limit for
    /// the choice of keys that are not set.
    pub memory_gib: f64,
    /// Rows over which batch norm computes its statistics: `global` (the whole batch; exact, memory grows with the batch),
    /// `chunk`, or `chunk-shuffled` (a chunk, with the two views of an image in different ones; memory of a chunk). If it is not
    /// set and `global` does not fit into memory, `pretrain` chooses `chunk-shuffled`.
    pub batch_norm: BatchNormScope,
    /// Weight of a batch in batch norm's running statistics (PyTorch's `momentum`): 1 - the decay of google-research/simclr
    /// `resnet.py`, `BATCH_NORM_DECAY`. TorchScript modules (encoder.file) have their own.
    pub batch_norm_momentum: f64,
    /// Groups of the batch with batch-norm statistics of their own, in one pass on one device: 1 = the whole batch. Both views of an
    /// image are in one group, as on that many devices without SyncBN, which leaks which views belong together; MoCo's keys are
    /// permuted (`moco.shuffle`).
    pub batch_norm_groups: usize,
    /// Side S of a view in pixels. If it is not set and there is no GPU, `pretrain` chooses a smaller one.
    pub image_size: usize,
    /// Other sides of the training views by progress: (share of the steps from which on, pixels), such as [[0.0, 24], [0.75, 32]].
    /// Fewer pixels make a step cheaper; evaluation and export use `image_size`. Convolutional encoders only.
    pub view_sizes: Vec<(f64, usize)>,
    /// Seed of weights, order of images and augmentation.
    pub seed: u64,
    /// `auto`, `cpu` or `cuda`.
    pub device: DeviceChoice,
    /// Type of convolutions and matrix products: `auto`, `f32` or `bf16`.
    pub precision: PrecisionChoice,
    /// On a GPU: use only algorithms with bit-identical results between runs; otherwise cuDNN benchmarks algorithms and uses the
    /// fastest. The CPU is always deterministic.
    pub deterministic: bool,
    /// On a GPU: capture the step in a CUDA graph if possible (whole batches, no TorchScript module; several processes if NCCL
    /// connects them).
    #[serde(alias = "record_step")]
    pub cuda_graph: bool,
    /// When loss, accuracy and gradient norm of a step are read from the device: `each-step` waits for it, `next-step` launches the
    /// next one first, so that the device does not wait for the host, and `auto` does so for replays of a CUDA graph. The values are
    /// the same. Steps with health metrics, online kNN or a checkpoint are always waited for. One process.
    pub read_loss: ReadLoss,
    /// Threads of libtorch; 0 = all processors.
    pub threads: usize,
    /// Minutes between checkpoints; one is always written at the end and on SIGINT or SIGTERM.
    pub checkpoint_minutes: f64,
    /// Number of newest checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Steps between health metrics in `metrics.jsonl`.
    pub health_every: u64,
    /// Epochs between online kNN evaluations, which need labels; 0 = never.
    pub knn_every: f64,
    /// Largest number of images of the online kNN, bank and queries together.
    pub knn_images: usize,
}

/// `train.step_count`, for n images and batches of B. The two differ by one step if B divides n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepCount {
    /// floor(n / B) steps per epoch; run and warm-up are rounded multiples of it.
    FullBatches,
    /// floor(n epochs / B) + 1 steps, floor(n warmup_epochs / B) of them warm-up (google-research/simclr tf2/model.py
    /// `get_train_steps`, `WarmUpAndCosineDecay`).
    Official,
}

/// `train.read_loss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadLoss {
    /// `NextStep` for replays of a CUDA graph, otherwise `EachStep`.
    Auto,
    /// Before the next step is launched.
    EachStep,
    /// After the next step has been launched.
    NextStep,
}

impl TrainConfig {
    /// Whether a batch passes through the encoder in chunks, in a single process.
    pub fn is_chunked(&self) -> bool {
        self.chunk > 0 && self.chunk < self.batch
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        let loader = LoaderConfig::default();
        Self {
            epochs: 100.0,
            minutes: 0.0,
            step_count: StepCount::FullBatches,
            batch: loader.batch,
            chunk: 0,
            memory_gib: 0.0,
            batch_norm: BatchNormScope::Global,
            batch_norm_momentum: MOMENTUM,
            batch_norm_groups: 1,
            image_size: loader.size,
            view_sizes: Vec::new(),
            seed: loader.seed,
            device: DeviceChoice::Auto,
            precision: PrecisionChoice::Auto,
            deterministic: false,
            cuda_graph: true,
            read_loss: ReadLoss::Auto,
            threads: 0,
            checkpoint_minutes: 10.0,
            keep_checkpoints: 2,
            health_every: 50,
            knn_every: 1.0,
            knn_images: 4000,
        }
    }
}
