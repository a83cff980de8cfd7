//! Error types. Messages are lower case and state what failed, where, and expected and actual values; `hint()` suggests a fix.

mod dist;
mod hints;

use std::path::PathBuf;

use simclr_data::DataError;

pub use dist::DistError;

/// An invalid configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not TOML, or a value of the wrong type.
    #[error("`{path}`: {message}")]
    Parse {
        /// The configuration file, `--set`, or `--set` with the setting.
        path: PathBuf,
        /// Message of the TOML parser, with the line if known.
        message: String,
    },
    /// A key that does not exist.
    #[error("`{path}`: unknown key `{key}`")]
    UnknownKey {
        /// The configuration file, or `--set`.
        path: PathBuf,
        /// The key as written.
        key: String,
        /// Similar existing keys.
        near: Vec<String>,
    },
    /// A value out of its range.
    #[error("{key} = {value}: expected {expected}")]
    Value {
        /// Configuration key with its section, such as `loss.temperature`.
        key: String,
        /// The value as written.
        value: String,
        /// Accepted values.
        expected: String,
    },
    /// A run folder of another user that names a TorchScript module.
    #[error(
        "`{path}`: it belongs to user {owner} and names the TorchScript module `{module}`, which would run code with your rights"
    )]
    Untrusted {
        /// Configuration of the run.
        path: PathBuf,
        /// `encoder.file`.
        module: PathBuf,
        /// Owner of the configuration.
        owner: u32,
    },
    /// Invalid augmentation or data settings.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// An encoder or head that cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file (TorchScript module, weights) that cannot be read.
    #[error("`{path}`: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Message of libtorch or of the file reader.
        reason: String,
    },
    /// Initial weights that cannot be read or do not fit.
    #[error("weights `{path}`: {reason}")]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor with another shape than the model's.
    #[error("`{place}`: tensor `{name}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// File or part of the model.
        place: String,
        /// Of the parameter or buffer.
        name: String,
        /// Of the model.
        expected: Vec<i64>,
        /// Of the file.
        got: Vec<i64>,
    },
    /// Missing or unexpected tensor names.
    #[error("`{place}`: {reason}")]
    Names {
        /// File or part of the model.
        place: String,
        /// The names.
        reason: String,
    },
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// libtorch, CUDA or NCCL failed within `simclr-shim`.
    #[error("libtorch: {0}")]
    Shim(#[from] simclr_shim::ShimError),
}

/// A TensorFlow checkpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Operating system error, with the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Truncated, changed, or with contents that are not supported.
    #[error("TensorFlow checkpoint `{path}`: {reason}")]
    Damaged {
        /// The index or data file.
        path: PathBuf,
        /// What is invalid.
        reason: String,
    },
    /// No tensor of this name.
    #[error("TensorFlow checkpoint `{path}`: tensor `{name}` is missing")]
    Missing {
        /// The index file.
        path: PathBuf,
        /// Of the tensor.
        name: String,
    },
    /// Not a model of google-research/simclr.
    #[error("TensorFlow checkpoint `{path}`: {reason}")]
    OtherModel {
        /// Its prefix.
        path: PathBuf,
        /// Expected and found layers.
        reason: String,
    },
}

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Operating system error (full disk, permissions), with the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not a checkpoint, truncated, or of an unsupported version.
    #[error("checkpoint `{path}`: {reason}")]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is invalid.
        reason: String,
    },
    /// A checkpoint of another model or run.
    #[error("checkpoint `{path}`: {reason}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The differences.
        reason: String,
    },
    /// Images that have changed since the run read them.
    #[error("run folder `{path}`: {reason}")]
    Images {
        /// The run folder.
        path: PathBuf,
        /// Number and names of the images.
        reason: String,
    },
    /// A run folder without a checkpoint.
    #[error("no checkpoint in `{folder}`")]
    Missing {
        /// The run folder.
        folder: PathBuf,
    },
}

/// A training run that cannot start or continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Encoder or head.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A CUDA or kernel error.
    #[error("device: {0}")]
    Device(#[from] simclr_shim::ShimError),
    /// A NaN or infinite loss, gradient norm or weight.
    #[error("{what} is {value} at step {step}; the batch's images are listed in `{dump}`")]
    NonFinite {
        /// The quantity.
        what: &'static str,
        /// NaN or infinite.
        value: f64,
        /// From 0.
        step: u64,
        /// File with the names of the batch's images.
        dump: PathBuf,
    },
    /// The process group.
    #[error(transparent)]
    ProcessGroup(#[from] DistError),
    /// An error on another rank.
    #[error("rank {rank}: {message}")]
    RemoteRank {
        /// The lowest rank that failed.
        rank: usize,
        /// Its error message.
        message: String,
    },
    /// No batch mode of a step fits into memory.
    #[error("memory: {what} needs {needed}, expected at most {limit}")]
    Memory {
        /// Description of the step with the least memory.
        what: String,
        /// With unit.
        needed: String,
        /// With unit and origin.
        limit: String,
    },
    /// A new run in the folder of another.
    #[error("run folder `{path}`: it holds a run already")]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder without the run that a command needs.
    #[error("run folder `{path}`: {reason}")]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// State of the folder.
        reason: String,
    },
    /// Another process writes to the run folder.
    #[error("run folder `{path}`: {holder} is writing to it")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Process and host of the other process, if known.
        holder: String,
    },
    /// An output path inside a run folder that is reserved for the run.
    #[error("`{path}` is kept for the run in `{run}`")]
    RunFile {
        /// The output path.
        path: PathBuf,
        /// The run folder.
        run: PathBuf,
    },
}

/// An evaluation or export that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Encoder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Checkpoint of TensorFlow.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Configuration of the run that is evaluated.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A protocol that trains, or the folder of a run.
    #[error(transparent)]
    Training(#[from] Box<TrainError>),
    /// Stopped by a signal; finished parts are kept.
    #[error("stopped; the same command continues from here")]
    Stopped,
    /// Labels missing or too few.
    #[error("labels of `{path}`: {reason}")]
    Labels {
        /// The data set.
        path: PathBuf,
        /// The missing labels.
        reason: String,
    },
    /// Weights for a run folder that holds other weights.
    #[error("run folder `{path}`: {reason}")]
    OtherWeights {
        /// The folder.
        path: PathBuf,
        /// The weights of the folder and the given ones.
        reason: String,
    },
    /// Results that are not comparable.
    #[error("{reason}")]
    Mixed {
        /// The results and their differences.
        reason: String,
        /// How to make them comparable.
        hint: String,
    },
    /// Results are needed of a run that has none.
    #[error("`{run}` has no results yet; evaluate it first")]
    NotEvaluated {
        /// The run folder.
        run: PathBuf,
    },
    /// An output of the model that does not exist.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// As on the command line.
        layer: String,
        /// Existing layers.
        reason: String,
    },
    /// Too many labels per class.
    #[error("{requested} labels per class: expected fewer than the {largest} images of the largest class")]
    LabelsPerClass {
        /// As requested.
        requested: usize,
        /// Images of the largest class.
        largest: usize,
    },
    /// Images that were added, removed or changed during an evaluation.
    #[error("{0}")]
    ImagesChanged(&'static str),
    /// A set without decodable images.
    #[error("no image could be read")]
    NoImages,
    /// Predictions of two classifiers for different images.
    #[error("the two were tested on different images")]
    DifferentTestImages,
    /// An input or output file with an unusable name or content.
    #[error("`{path}`: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Weights that changed although they were frozen.
    #[error("{place}: the encoder changed although it was frozen")]
    EncoderChanged {
        /// The protocol.
        place: String,
    },
    /// An output that could not be encoded.
    #[error("{what}: {reason}")]
    Encoding {
        /// The output.
        what: String,
        /// Message of the encoder.
        reason: String,
    },
}

/// Origin of an error; determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The user can fix it: a path, a value, a file, the disk.
    User,
    /// A bug in this program or in libtorch.
    Us,
}
