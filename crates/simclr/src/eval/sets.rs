//! A path to the training and test part of a labelled set: its own splits, or a stratified hold-out.

use std::path::Path;

use simclr_data::{Dataset, Split, dataset::Channels};

use super::splits;
use crate::EvalError;

/// Share of the training split that is held out where a set has no test split.
const TEST_SHARE: f64 = 0.2;

/// Training and test part of a labelled set.
pub(super) struct Sets {
    pub(super) train: Dataset,
    /// None: the test part is held out of `train`.
    pub(super) test: Option<Dataset>,
    pub(super) train_indices: Vec<usize>,
    pub(super) test_indices: Vec<usize>,
    pub(super) train_labels: Vec<i64>,
    pub(super) test_labels: Vec<i64>,
    pub(super) seed: u64,
}

impl Sets {
    /// Opens the set; labels are those of the training split's numbering.
    pub(super) fn open(path: &Path, channels: i64, seed: u64) -> Result<Self, EvalError> {
        let channels = Channels::Count(channels as usize);
        let train = Dataset::open(path, Split::Train, channels)?;
        let train_labels = labels(&train, path)?;
        if train.classes().len() < 2 {
            let reason = format!("expected at least 2 classes, got {}", train.classes().len());
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        let everything = |set: &Dataset| (0..set.len()).collect();
        if Dataset::has_test_split(path) {
            let test = Dataset::open(path, Split::Test, channels)?;
            let test_labels = labels_as(&test, &train, path)?;
            let (train_indices, test_indices) = (everything(&train), everything(&test));
            return Ok(Self {
                train,
                test: Some(test),
                train_indices,
                test_indices,
                train_labels,
                test_labels,
                seed,
            });
        }
        let (train_indices, test_indices) =
            splits::hold_out(&train_labels, train.classes().len(), TEST_SHARE, seed);
        if test_indices.is_empty() {
            let reason = "too few images to hold some out for testing".into();
            return Err(EvalError::Labels { path: path.to_owned(), reason });
        }
        let test_labels = train_labels.clone();
        Ok(Self { train, test: None, train_indices, test_indices, train_labels, test_labels, seed })
    }
}

impl Sets {
    /// The set's own validation part, and its labels in the numbering of the training part.
    pub(super) fn validation(&self, path: &Path) -> Result<Option<(Dataset, Vec<i64>)>, EvalError> {
        if !Dataset::has_validation_split(path) {
            return Ok(None);
        }
        let channels = Channels::Count(self.train.channels());
        let set = Dataset::open(path, Split::Validation, channels)?;
        let labels = labels_as(&set, &self.train, path)?;
        Ok(Some((set, labels)))
    }

    /// The split that the test images are in.
    pub(super) fn test_set(&self) -> &Dataset {
        self.test.as_ref().unwrap_or(&self.train)
    }

    /// What a figure on this set depends on: training split, test split or the seed of the hold-out.
    pub(super) fn fingerprints(&self) -> [String; 2] {
        let held_out = || format!("held out by seed {}", self.seed);
        [self.train.fingerprint(), self.test.as_ref().map_or_else(held_out, Dataset::fingerprint)]
    }
}

/// Labels of all images.
fn labels(set: &Dataset, path: &Path) -> Result<Vec<i64>, EvalError> {
    let missing = || EvalError::Labels {
        path: path.to_owned(),
        reason: "not every image has one; evaluation needs class folders, or a set with labels".into(),
    };
    Ok(set.labels().ok_or_else(missing)?.into_iter().map(i64::from).collect())
}

/// Labels of `test` in the numbering of `train`, matched by class name.
pub(super) fn labels_as(test: &Dataset, train: &Dataset, path: &Path) -> Result<Vec<i64>, EvalError> {
    let number_of = |name: &String| {
        let reason = || format!("class `{name}` of the test split is not in the training split");
        let found = train.classes().iter().position(|class| class == name);
        found.ok_or_else(|| EvalError::Labels { path: path.to_owned(), reason: reason() })
    };
    let numbers = test.classes().iter().map(number_of).collect::<Result<Vec<_>, _>>()?;
    Ok(labels(test, path)?.into_iter().map(|label| numbers[label as usize] as i64).collect())
}
