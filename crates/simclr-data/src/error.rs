//! What can go wrong between a folder and a batch.

use std::path::PathBuf;

/// Errors of reading images. Messages are lower case and say what, where, expected, got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// An operating-system error; `fs_err` puts the path into it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A path that holds no image set that is read here.
    #[error("`{path}`: no images found: {reason}")]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A data set that contradicts itself (shard, IDX header, parquet column).
    #[error("`{path}`: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// One image that cannot be decoded: reported, counted and skipped.
    #[error("cannot decode `{name}`: {reason}")]
    Decode {
        /// The sample's name (path, or shard and key).
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// More undecodable images than are allowed; see [`allowed_bad`].
    #[error(
        "{bad} of {seen} images could not be decoded, more than the {} that data.max_bad_share = {allowed} allows; the \
         first: {first}",
        allowed_bad(*allowed, *seen)
    )]
    TooManyBad {
        /// Images that failed.
        bad: usize,
        /// Images of the data set.
        seen: usize,
        /// `data.max_bad_share`.
        allowed: f64,
        /// The first failure, with its reason.
        first: String,
    },
    /// A batch of which fewer than two images could be decoded: there is nothing to contrast. Likewise a chunk of fewer than
    /// two views.
    #[error("step {step}: fewer than two images of the batch could be decoded; the first failure: {first}")]
    EmptyBatch {
        /// Step of the run.
        step: u64,
        /// The first failure, with its reason.
        first: String,
    },
    /// A worker thread ended before its work was done: a bug here or in a decoder.
    #[error("the loader stopped early, at step {step}")]
    WorkerLost {
        /// The step that did not come.
        step: u64,
    },
    /// A file that is there already and would be replaced.
    #[error("`{path}` exists and is not {kind}")]
    Taken {
        /// Where the result was to go.
        path: PathBuf,
        /// What would be replaced.
        kind: &'static str,
    },
    /// A result that would lie among the images that it is made from.
    #[error("`{path}` would become part of the data set `{set}`")]
    IntoSet {
        /// Where the result was to go.
        path: PathBuf,
        /// The data set.
        set: PathBuf,
    },
    /// A value of the augmentation or loader configuration that cannot be used.
    #[error("{key} = {value}: {reason}")]
    Config {
        /// Configuration key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What is expected.
        reason: String,
    },
}

/// How many of `images` may fail to decode: the `share` of them (`data.max_bad_share`), or 5 where that is fewer, but not more
/// than a tenth of them. A share of 0 allows none.
pub fn allowed_bad(share: f64, images: usize) -> usize {
    const FEW: usize = 5;
    if share > 0.0 { ((share * images as f64 + 1e-9) as usize).max(FEW.min(images / 10)) } else { 0 }
}

impl DataError {
    /// The way out, for the command line to print after the message.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Empty { .. } => Some(
                "give a folder of images (any depth), tar shards, CIFAR binary, IDX or parquet files, or a packed set"
                    .into(),
            ),
            Self::TooManyBad { .. } | Self::EmptyBatch { .. } => {
                Some("repair or remove the files named in bad_files.txt, or raise data.max_bad_share".into())
            }
            Self::Taken { kind, .. } => Some(format!(
                "choose another file with --out, or move this one away; only {kind} is replaced"
            )),
            Self::IntoSet { .. } => Some("choose a file outside of the data set with --out".into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bad_images_of_a_small_set_are_allowed() {
        assert_eq!(allowed_bad(0.01, 40), 4);
        assert_eq!(allowed_bad(0.01, 300), 5);
        assert_eq!(allowed_bad(0.01, 10_000), 100);
        assert_eq!(allowed_bad(0.5, 24), 12);
        assert_eq!((allowed_bad(0.0, 1000), allowed_bad(0.01, 9)), (0, 0));
    }
}
