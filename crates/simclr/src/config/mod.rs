//! The configuration as written ([`RunConfig`], TOML) and as run ([`Plan`]): the only place where units convert.

mod compat;
pub(crate) mod load;
mod plan;
pub mod sources;
mod validate;

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
    nt_xent::LossConfig,
    optim::OptimConfig,
    task::TaskConfig,
    views::AugmentDeviceChoice,
};

pub use load::Written;
pub use plan::{KEPT_VIEWS, Plan};

/// A run as written. The default of every key is in the `Default` of its section; those of the loader's keys are
/// [`LoaderConfig`]'s.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Images.
    pub data: DataConfig,
    /// Views.
    pub augment: AugmentConfig,
    /// What the encoder sees of an image outside training.
    pub transform: TransformConfig,
    /// f.
    pub encoder: EncoderConfig,
    /// g.
    pub head: HeadConfig,
    /// NT-Xent.
    pub loss: LossConfig,
    /// What is minimised, and from which weights on.
    pub task: TaskConfig,
    /// Optimizer.
    pub optim: OptimConfig,
    /// The run itself.
    pub train: TrainConfig,
    /// Several processes.
    #[serde(alias = "ranks")]
    pub dist: DistConfig,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder, shard or file; given by `--data` as a rule.
    pub path: Option<PathBuf>,
    /// Where labels come from: `auto` (what the set holds), `none` (folders are not classes), or the path of a table of images
    /// and labels (CSV, JSON lines, parquet).
    pub labels: Labels,
    /// Parts of the set that are trained on, such as ["train", "test"]; none = the training part and, where no labels are
    /// learned from, the unlabelled part.
    pub parts: Vec<Split>,
    /// Channels of decoded images; 0 = what the set holds.
    pub channels: usize,
    /// What the pages of a TIFF file are: `auto` (pages of one band and one size are channels of one image, other further pages
    /// are left out with a note), `channels` (a file whose pages cannot be is an error), or `images` (each page that is neither
    /// a reduced copy nor a mask is an image of its own, `stack.tif#0` and so on by its number in the file, with the label of
    /// the file). Of a packed set, `auto` is the rule that it was written with.
    pub pages: Pages,
    /// Which stored values become 0 and 1: `auto` (8-bit images as they are; of others what a sample of the set covers, channel
    /// by channel), `full` (16 bits over 0 to 65535), [low, high], or one such pair for each channel. A run records what it
    /// found.
    pub range: RangeChoice,
    /// Share of images that may fail to decode before the run fails; 5 images may in any case, up to a tenth of the set, unless
    /// it is 0.
    pub max_bad_share: f64,
    /// Threads that decode and, unless the device does it, augment; 0 = all processors.
    pub threads: usize,
    /// Where views are augmented: `auto` (on a GPU if its kernels support the configuration, else on the loader's threads), `cpu`
    /// or `device`. Decoding always runs on the loader's threads.
    #[serde(alias = "views_on")]
    pub augment_on: AugmentDeviceChoice,
    /// Batches made ahead.
    pub prefetch: usize,
}

impl DataConfig {
    /// By which images are opened.
    pub fn open_options(&self) -> OpenOptions {
        let channels = if self.channels == 0 { Channels::Auto } else { Channels::Count(self.channels) };
        OpenOptions { channels, pages: self.pages }
    }

    /// Of a run, whose range is resolved; before that the full range.
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
    /// Where labels of the set at `data` come from: as configured where it is the set of the run, else from the set itself.
    pub fn labels_of(&self, data: &Path) -> Labels {
        let place = |path: &Path| canonical(path).ok();
        let own = self.path.as_deref().and_then(place).is_some_and(|own| place(data) == Some(own));
        if own { self.labels.clone() } else { Labels::Auto }
    }
}

/// `[train]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: f64,
    /// How epochs are counted in steps.
    pub step_count: StepCount,
    /// N: images per step (2N views). Where it is not written and the set holds fewer images, `pretrain` takes the largest
    /// power of two that it holds.
    pub batch: usize,
    /// Images that go through the encoder at a time; 0 = the whole batch. The loss is that of the whole batch in any case.
    /// Where it is not written, `pretrain` measures small steps and chooses what fits the memory.
    pub chunk: usize,
    /// Memory in GiB that a process of the run may take, on a GPU that of the GPU; 0 = 80 % of what is free at the start. A
    /// new run chooses by it what is not written.
    pub memory_gib: f64,
    /// Whose statistics batch norm takes in chunks: `global` (the whole batch's; exact, memory grows with the batch),
    /// `chunk`, or `chunk-shuffled` (the chunk's; memory of a chunk). Where it is not written and `global` fits in no way,
    /// `pretrain` takes `chunk-shuffled`.
    pub batch_norm: BatchNormScope,
    /// Weight of a batch in batch norm's running statistics (PyTorch's `momentum`): 1 - the decay of google-research/simclr
    /// `resnet.py`, `BATCH_NORM_DECAY`. A TorchScript module (encoder.file) brings its own.
    pub batch_norm_momentum: f64,
    /// Side S of a view in pixels. Where it is not written and there is no GPU, `pretrain` chooses one that a CPU trains.
    pub image_size: usize,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Where to run.
    pub device: DeviceChoice,
    /// What to compute in.
    pub precision: PrecisionChoice,
    /// On a GPU: only algorithms that give the same bits in every run; else cuDNN times its own and takes the fastest. The CPU
    /// always gives the same bits.
    pub deterministic: bool,
    /// On a GPU: capture the step in a CUDA graph if possible (one process, whole batches, no TorchScript module).
    #[serde(alias = "record_step")]
    pub cuda_graph: bool,
    /// libtorch's threads; 0 = all processors.
    pub threads: usize,
    /// Minutes between checkpoints (one is written at the end and at SIGINT/SIGTERM in any case).
    pub checkpoint_minutes: f64,
    /// Checkpoints kept, the newest ones.
    pub keep_checkpoints: usize,
    /// Steps between health figures in `metrics.jsonl`.
    pub health_every: u64,
    /// Epochs between online kNN evaluations where labels exist; 0 = never.
    pub knn_every: f64,
    /// Images of the online kNN: bank and queries together are at most this many.
    pub knn_images: usize,
}

/// `train.step_count`, with n images and batches of B. The two agree to one step where B divides n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepCount {
    /// floor(n / B) steps an epoch; warm-up and run are that many times their epochs, rounded.
    FullBatches,
    /// floor(n epochs / B) + 1 steps in all, floor(n epochs / B) of warm-up (google-research/simclr tf2/model.py
    /// `get_train_steps`, `WarmUpAndCosineDecay`).
    Official,
}

impl TrainConfig {
    /// Whether a batch goes through the encoder in chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunk > 0 && self.chunk < self.batch
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        let loader = LoaderConfig::default();
        Self {
            epochs: 100.0,
            step_count: StepCount::FullBatches,
            batch: loader.batch,
            chunk: 0,
            memory_gib: 0.0,
            batch_norm: BatchNormScope::Global,
            batch_norm_momentum: MOMENTUM,
            image_size: loader.size,
            seed: loader.seed,
            device: DeviceChoice::Auto,
            precision: PrecisionChoice::Auto,
            deterministic: false,
            cuda_graph: true,
            threads: 0,
            checkpoint_minutes: 10.0,
            keep_checkpoints: 2,
            health_every: 50,
            knn_every: 1.0,
            knn_images: 4000,
        }
    }
}
