//! Suggested fixes and origins of errors.

use simclr_data::DataError;

use super::{Blame, BundleError, CheckpointError, ConfigError, DistError, EvalError, ModelError, TrainError};

impl ConfigError {
    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { near, .. } if !near.is_empty() => {
                Some(format!("did you mean {}?", near.join(", ")))
            }
            Self::Parse { message, .. } => Some(format!("did you mean `{}`?", near_variant(message)?)),
            Self::Value { key, .. } if key == "train.batch" => {
                Some("set train.batch, or give more images".into())
            }
            Self::Value { key, .. } if key == "train.device" => {
                Some("set train.device = \"cpu\", or point LD_LIBRARY_PATH to a libtorch with CUDA".into())
            }
            Self::Untrusted { .. } => Some("with --trust-encoder-file it is loaded".into()),
            Self::Data(error) => error.hint(),
            _ => None,
        }
    }
}

/// The accepted variant that is most similar to the refused one of an error of serde.
fn near_variant(message: &str) -> Option<&str> {
    let mut quoted = message.split_once("unknown variant ")?.1.split('`').skip(1).step_by(2);
    let refused = quoted.next()?;
    let scored = quoted.map(|variant| (strsim::jaro_winkler(refused, variant), variant));
    let (score, variant) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= 0.8).then_some(variant)
}

impl ModelError {
    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File { .. } => {
                Some("an encoder file is a module saved with torch.jit.save, without its classifier".into())
            }
            Self::Weights { .. } => Some(
                "expected safetensors or a state dict of torch.save under the names of torchvision or timm, an export or a run; \
                 the architecture is that of the file unless encoder.* is set"
                    .into(),
            ),
            _ => None,
        }
    }
}

impl BundleError {
    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => disk_hint(error),
            Self::Damaged { .. } => Some("fetch the checkpoint again; all of its files are needed".into()),
            Self::Missing { .. } | Self::OtherModel { .. } => {
                Some("expected a checkpoint of google-research/simclr, TF1 or TF2".into())
            }
        }
    }
}

impl CheckpointError {
    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { .. } => Some("remove the damaged checkpoint to start from the beginning".into()),
            Self::Mismatch { .. } => Some(
                "resume with the configuration of the run folder, or start in another folder with --run, from these weights with \
                 --init RUN"
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
    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotBuilt { .. } => Some(
                "start it with `simclr launch -n N`, torchrun or srun, which need no MPI; or install Open MPI and libclang, then \
                 `make build`, which enables MPI if it finds mpicc"
                    .into(),
            ),
            Self::Variable { .. } => Some(
                "several processes need RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and `simclr launch` set them; \
                 for one process, unset RANK and WORLD_SIZE"
                    .into(),
            ),
            Self::Rendezvous { .. } => Some(
                "MASTER_ADDR must be the machine of rank 0, reachable from all others, and MASTER_PORT free there".into(),
            ),
            Self::DuplicateRank { .. } => Some(
                "give each process a RANK of its own; another run on this machine needs another MASTER_PORT".into(),
            ),
            Self::Missing { .. } => {
                Some("see the messages of these processes; all must be started with the same WORLD_SIZE".into())
            }
            Self::Differ { .. } => {
                Some("use the same images and the same version of simclr on every machine".into())
            }
            _ => None,
        }
    }
}

impl TrainError {
    /// How to fix the error.
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
                "free some memory, or choose a smaller --batch, --image-size or --encoder; with --chunk this check is \
                 skipped"
                    .into(),
            ),
            Self::RunExists { .. } => {
                Some("continue it with --resume, or choose another folder (--run)".into())
            }
            Self::RunFolder { .. } => Some(
                "expected the folder of a run, as `simclr pretrain --run DIR` writes it; --resume auto also starts one"
                    .into(),
            ),
            Self::InUse { .. } => {
                Some("wait until it has ended or stop it, or choose another folder (--run, --out)".into())
            }
            Self::RunFile { .. } => Some("choose another file with --out".into()),
            Self::ProcessGroup(error) => error.hint(),
            Self::Torch(_) | Self::Device(_) | Self::RemoteRank { .. } => None,
        }
    }

    /// Whether training diverged, for example because of a high learning rate.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::NonFinite { .. })
    }

    /// Origin of the error.
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

    /// How to fix the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            // Only training runs write a list of them.
            Self::Data(DataError::TooManyBad { .. }) => {
                Some("`simclr inspect --data` names all of them; repair or remove these files".into())
            }
            Self::Data(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Bundle(error) => error.hint(),
            Self::Io(error) => disk_hint(error),
            Self::Training(error) => error.hint(),
            Self::OtherWeights { .. } => Some(
                "use another folder for these weights, or omit --weights to evaluate those of the folder"
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

    /// Origin of the error.
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
            Some("free some disk space, then resume; the last checkpoint is intact".into())
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some("choose a folder that you may write to with --run or --out".into())
        }
        _ => None,
    }
}
