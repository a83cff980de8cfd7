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
    /// libtorch, CUDA or NCCL failed within `simclr-shim`.
    #[error("libtorch: {0}")]
    Shim(#[from] simclr_shim::ShimError),
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
    /// Images that are no longer those of the run.
    #[error("run folder `{path}`: {reason}")]
    Images {
        /// The run folder.
        path: PathBuf,
        /// Which, and how many.
        reason: String,
    },
    /// No checkpoint where one is needed.
    #[error("no checkpoint in `{folder}`")]
    Missing {
        /// The run folder.
        folder: PathBuf,
    },
}

/// The process group cannot be formed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistError {
    /// The launcher started several processes, but this build lacks MPI.
    #[error("{count} processes were started, but this simclr was built without MPI")]
    NotBuilt {
        /// How many.
        count: usize,
    },
    /// `srun` without PMIx started several processes.
    #[error("srun started {count} processes without connecting them")]
    Unconnected {
        /// How many.
        count: usize,
    },
    /// MPI failed at the start.
    #[error("{reason}")]
    Mpi {
        /// What it said.
        reason: String,
    },
    /// Another process reads other images, or runs another version.
    #[error("{what} differ: {here} here, {first} on rank 0")]
    Differ {
        /// What.
        what: &'static str,
        /// Here.
        here: String,
        /// On rank 0.
        first: String,
    },
    /// Operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
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
    /// A GPU failed, or what was asked of it.
    #[error("device: {0}")]
    Device(#[from] simclr_shim::ShimError),
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
    /// The processes of the run.
    #[error(transparent)]
    ProcessGroup(#[from] DistError),
    /// Another process failed, and says so.
    #[error("rank {rank}: {message}")]
    RemoteRank {
        /// Which.
        rank: usize,
        /// What it says.
        message: String,
    },
    /// No way of taking a step fits.
    #[error("memory: {what} needs {needed}, expected at most {limit}")]
    Memory {
        /// The step that needs least.
        what: String,
        /// How much it needs.
        needed: String,
        /// How much there is, and what it follows from.
        limit: String,
    },
    /// The run folder holds another run.
    #[error("run folder `{path}`: {reason}")]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Another process writes to the run folder.
    #[error("run folder `{path}`: {holder} is writing to it")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Process and host.
        holder: String,
    },
    /// A result that would lie among the files of a run.
    #[error("`{path}` is kept for the run in `{run}`")]
    RunFile {
        /// Where the result was to go.
        path: PathBuf,
        /// The run folder.
        run: PathBuf,
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
    /// A protocol that trains, or the folder of a run.
    #[error(transparent)]
    Training(#[from] Box<TrainError>),
    /// A signal asked for the end; what was trained so far is kept.
    #[error("stopped; the same command goes on from here")]
    Stopped,
    /// Labels missing or too few.
    #[error("labels of `{path}`: {reason}")]
    Labels {
        /// The data set.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Weights for a folder that holds others.
    #[error("run folder `{path}`: {reason}")]
    OtherWeights {
        /// The folder.
        path: PathBuf,
        /// What it holds and what was given.
        reason: String,
    },
    /// Results that cannot stand in one table.
    #[error("{reason}")]
    Mixed {
        /// Which differ, and in what.
        reason: String,
        /// The way out.
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

/// Who has to act: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The user can mend it: a path, a value, a file, the disk.
    User,
    /// A bug here or in libtorch.
    Us,
}

impl ConfigError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { near, .. } if !near.is_empty() => {
                Some(format!("did you mean {}?", near.join(", ")))
            }
            Self::Value { key, .. } if key == "train.batch" => {
                Some("set train.batch, or give more images".into())
            }
            Self::Value { key, .. } if key == "train.device" => {
                Some("set train.device = \"cpu\", or point LD_LIBRARY_PATH to a libtorch with CUDA".into())
            }
            Self::Data(error) => error.hint(),
            _ => None,
        }
    }
}

impl ModelError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File { .. } => {
                Some("an encoder file is a module saved with torch.jit.save, without its classifier".into())
            }
            _ => None,
        }
    }
}

impl CheckpointError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { .. } => Some("remove the damaged checkpoint to start from the beginning".into()),
            Self::Mismatch { .. } => Some(
                "resume with the configuration of the run folder, or start in another folder with --run"
                    .into(),
            ),
            Self::Images { .. } => {
                Some("put the images back as they were, or start a new run with --run".into())
            }
            Self::Missing { .. } => {
                Some("the run has not written a checkpoint yet; let it train, or resume it".into())
            }
            Self::Io(error) => disk_hint(error),
        }
    }
}

impl DistError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotBuilt { .. } => Some(
                "install Open MPI and libclang, then `make build`; it switches MPI on where it finds mpicc"
                    .into(),
            ),
            Self::Unconnected { .. } => Some("start it with `srun --mpi=pmix`, or with mpirun".into()),
            Self::Differ { .. } => Some("every machine needs the same images and the same simclr".into()),
            _ => None,
        }
    }
}

impl TrainError {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Io(error) => disk_hint(error),
            Self::NonFinite { .. } => Some(
                "lower optim.lr or raise loss.temperature; the last checkpoint is from before this step"
                    .into(),
            ),
            Self::Memory { .. } => Some(
                "free some memory, or choose a smaller --batch, --image-size or --encoder; --chunk, where given, is \
                 taken without this check"
                    .into(),
            ),
            Self::RunFolder { .. } => {
                Some("a new run needs a new folder (--run); an old one goes on with --resume".into())
            }
            Self::InUse { .. } => {
                Some("wait until it has ended or stop it, or choose another folder (--run, --out)".into())
            }
            Self::RunFile { .. } => Some("choose another file with --out".into()),
            Self::ProcessGroup(error) => error.hint(),
            Self::Torch(_) | Self::Device(_) | Self::RemoteRank { .. } => None,
        }
    }

    /// Whether the training itself went wrong, as it does with too high a learning rate.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::NonFinite { .. })
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Torch(_)
            | Self::Device(_)
            | Self::Model(ModelError::Torch(_) | ModelError::Shim(_))
            | Self::Data(DataError::WorkerLost { .. }) => Blame::Us,
            _ => Blame::User,
        }
    }
}

impl EvalError {
    pub(crate) fn encoding(what: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Encoding { what: what.into(), reason: error.to_string() }
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            // Nothing but training writes a list of them.
            Self::Data(DataError::TooManyBad { .. }) => {
                Some("`simclr inspect --data` names all of them; repair or remove these files".into())
            }
            Self::Data(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Io(error) => disk_hint(error),
            Self::Training(error) => error.hint(),
            Self::OtherWeights { .. } => Some(
                "give another folder for these weights, or leave out --weights to evaluate what the folder holds"
                    .into(),
            ),
            Self::Mixed { hint, .. } => Some(hint.clone()),
            Self::Labels { .. } => {
                Some(
                    "labels come from class folders, a table (labels.csv, metadata.csv, --labels-from), .cls or .json files, or \
                     the label column of a set"
                        .into(),
                )
            }
            _ => None,
        }
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Torch(_)
            | Self::Model(ModelError::Torch(_) | ModelError::Shim(_))
            | Self::EncoderChanged { .. }
            | Self::Encoding { .. } => Blame::Us,
            Self::Training(error) => error.blame(),
            _ => Blame::User,
        }
    }
}

fn disk_hint(error: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some("free some disk space, then resume; the last checkpoint is whole".into())
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("choose a folder that you may write to with --run or --out".into())
        }
        _ => None,
    }
}
