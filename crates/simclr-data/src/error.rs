//! Errors of this crate.

use std::path::{Path, PathBuf};

use crate::printable::printable;

/// Errors of reading images. Messages name what, where, expected, got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// An operating-system error; `fs_err` puts the path into it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A path without images in a supported format.
    #[error("`{}`: no images found: {}", shown(path), printable(reason))]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// What was expected.
        reason: String,
    },
    /// A damaged or contradictory data set (shard, IDX header, parquet column).
    #[error("`{}`: {}", shown(path), printable(reason))]
    Format {
        /// The damaged file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// One image that cannot be decoded: reported, counted and skipped.
    #[error("cannot decode `{}`: {}", printable(name), printable(reason))]
    Decode {
        /// The sample's name (path, or shard and key).
        name: String,
        /// The decoder's error.
        reason: String,
    },
    /// More undecodable images than [`allowed_failures`].
    #[error(
        "{bad} of {seen} images could not be decoded, more than the {} that data.max_bad_share = {allowed} allows; the \
         first: {first}",
        allowed_failures(*allowed, *seen)
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
    /// A batch with fewer than two decodable images, which has no negatives, or a chunk with fewer than two views.
    #[error("step {step}: fewer than two images of the batch could be decoded; the first failure: {first}")]
    EmptyBatch {
        /// Step of the run.
        step: u64,
        /// The first failure, with its reason.
        first: String,
    },
    /// A worker thread panicked: a bug here or in a decoder.
    #[error("the loader stopped early, at step {step}")]
    WorkerLost {
        /// The first missing step.
        step: u64,
    },
    /// An existing file that an output must not replace.
    #[error("`{}` exists and is not {kind}", shown(path))]
    Taken {
        /// Path of the output.
        path: PathBuf,
        /// The only kind of file that may be replaced.
        kind: &'static str,
    },
    /// An output that would become part of its input.
    #[error("`{}` would become part of the data set `{}`", shown(path), shown(set))]
    IntoSet {
        /// Path of the output.
        path: PathBuf,
        /// Path of the data set.
        set: PathBuf,
    },
    /// An invalid value of the configuration.
    #[error("{key} = {value}: {reason}")]
    Config {
        /// Configuration key.
        key: &'static str,
        /// The value as written.
        value: String,
        /// What was expected.
        reason: String,
    },
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string()).into_owned()
}

/// How many of `images` may fail to decode: `share` of them (`data.max_bad_share`), but at least 5 or a tenth of them, whichever is
/// less. A share of 0 allows none.
pub fn allowed_failures(share: f64, images: usize) -> usize {
    const FEW: usize = 5;
    if share > 0.0 { ((share * images as f64 + 1e-9) as usize).max(FEW.min(images / 10)) } else { 0 }
}

impl DataError {
    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn decode(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Decode { name: name.into(), reason: reason.into() }
    }

    pub(crate) fn empty(path: &Path, reason: impl Into<String>) -> Self {
        Self::Empty { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn config(key: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Config { key, value: value.to_string(), reason: reason.into() }
    }

    /// What the user can do about the error; printed after the message.
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
    fn small_sets_may_have_a_few_failed_images() {
        assert_eq!(allowed_failures(0.01, 40), 4);
        assert_eq!(allowed_failures(0.01, 300), 5);
        assert_eq!(allowed_failures(0.01, 10_000), 100);
        assert_eq!(allowed_failures(0.5, 24), 12);
        assert_eq!((allowed_failures(0.0, 1000), allowed_failures(0.01, 9)), (0, 0));
    }
}
