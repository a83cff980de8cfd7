//! One evaluated figure, with the predicted labels that it follows from.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{EvalError, checkpoint::Checkpoint, knn};

/// One figure. Its serialised form is the note of a cached figure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Accuracy or another metric, `[0, 1]`.
    pub(crate) value: f64,
    /// Chosen regularisation.
    pub(crate) lambda: Option<f64>,
    /// How the fit ended, or the chosen learning rate.
    pub(crate) how: String,
    /// Area under the ROC curve, of two classes.
    #[serde(default)]
    pub(crate) auroc: Option<f64>,
    /// Predicted labels of the test images, if the figure follows from labels.
    #[serde(skip)]
    pub(crate) predictions: Option<Predictions>,
    /// Cache file, relative to the run folder.
    #[serde(skip)]
    pub(crate) file: String,
}

/// Predicted and true labels of the test images, `[Q]` i64 on the CPU.
#[derive(Debug, PartialEq)]
pub(crate) struct Predictions {
    pub(crate) predicted: Tensor,
    pub(crate) truth: Tensor,
}

impl Predictions {
    pub(crate) fn new(predicted: &Tensor, truth: &Tensor) -> Self {
        Self { predicted: predicted.shallow_clone(), truth: truth.shallow_clone() }
    }

    /// Reads a cache file; none if it holds no labels.
    pub(crate) fn load(file: &Path) -> Result<Option<Self>, EvalError> {
        Ok(Self::remove_from(&mut Checkpoint::load(file)?))
    }

    pub(crate) fn remove_from(cached: &mut Checkpoint) -> Option<Self> {
        let mut labels = |name: &str| Some(cached.tensors.remove(name)?.to_kind(Kind::Int64));
        Some(Self { predicted: labels("predicted")?, truth: labels("truth")? })
    }

    /// Stores both, as bytes if all labels fit.
    pub(crate) fn insert_into(&self, cached: &mut Checkpoint) {
        for (name, labels) in [("predicted", &self.predicted), ("truth", &self.truth)] {
            let small = labels.numel() == 0 || labels.max().int64_value(&[]) < 256;
            let kind = if small { Kind::Uint8 } else { Kind::Int64 };
            cached.tensors.insert(name.into(), labels.to_kind(kind));
        }
    }
}

impl Figure {
    pub(crate) fn of(value: f64) -> Self {
        Self { value, lambda: None, how: String::new(), auroc: None, predictions: None, file: String::new() }
    }

    /// The accuracy of `predicted` labels `[Q]`.
    pub(crate) fn accuracy(predicted: &Tensor, truth: &Tensor) -> Self {
        let predictions = Some(Predictions::new(predicted, truth));
        Self { predictions, ..Self::of(knn::accuracy(predicted, truth)) }
    }
}
