//! Errors by room; lower case; what, where, expected, got. `hint()` is the way out, printed by the command line.

use std::path::PathBuf;

use simclr_data::DataError;

/// A configuration that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not TOML, or a value of the wrong type.
    #[error("`{path}`: {message}")]
    Parse {
        /// The configuration file, or `--set`.
        path: PathBuf,
        /// What the parser said, with line and column.
        message: String,
    },
    /// A key that does not exist.
    #[error("`{path}`: unknown key `{key}`")]
    UnknownKey {
        /// The configuration file, or `--set`.
        path: PathBuf,
        /// The key as written.
        key: String,
        /// Existing keys that look like it.
        near: Vec<String>,
    },
    /// A value out of its range.
    #[error("{key} = {value}: expected {expected}")]
    Value {
        /// Configuration key with its section, such as `loss.temperature`.
        key: String,
        /// The value as written.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// The augmentation or the data.
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
        /// What libtorch or the format reader said.
        reason: String,
    },
    /// A tensor with another shape than the model's.
    #[error("`{place}`: tensor `{name}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// File or part of the model.
        place: String,
        /// Parameter name.
        name: String,
        /// Shape expected.
        expected: Vec<i64>,
        /// Shape found.
        got: Vec<i64>,
    },
    /// Names that are missing or too many.
    #[error("`{place}`: {reason}")]
    Names {
        /// File or part of the model.
        place: String,
        /// Which names.
        reason: String,
    },
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Operating system (full disk, rights), with the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not a checkpoint, cut, or of another version.
    #[error("checkpoint `{path}`: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint of another model or run.
    #[error("checkpoint `{path}`: {reason}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// No checkpoint where one is needed.
    #[error("no checkpoint in `{folder}`")]
    Missing {
        /// The run folder.
        folder: PathBuf,
    },
}

/// A training run that cannot start or go on.
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
    /// The loss or a gradient is no longer a number.
    #[error("{what} is {value} at step {step}; the batch's images are listed in `{dump}`")]
    NonFinite {
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// File with the names of the batch's images.
        dump: PathBuf,
    },
    /// The run folder holds another run.
    #[error("run folder `{path}`: {reason}")]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// An evaluation or export that cannot be made.
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
    /// Configuration of the run that is evaluated.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// Labels missing or too few.
    #[error("labels of `{path}`: {reason}")]
    Labels {
        /// The data set.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A solver that did not converge, or a file that could not be encoded.
    #[error("{0}")]
    Other(String),
}

impl ConfigError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { near, .. } if !near.is_empty() => Some(format!("did you mean {}?", near.join(", "))),
            Self::Data(error) => error.hint(),
            _ => None,
        }
    }
}
