//! The report on a classifier, as JSON and as text.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::calibration::{Calibration, nll};
use crate::eval::report::{Predictions, per_class::PerClass, per_class::auroc};

/// A classifier that was trained and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// `linear` or `fine-tuned`.
    pub name: String,
    /// Share of correct predictions on the hold-out.
    pub accuracy: f64,
    /// Mean negative log likelihood on the hold-out, before temperature scaling.
    pub nll: f64,
    /// Temperature with the least negative log likelihood on the hold-out.
    pub temperature: f64,
}

/// Figures of a classifier on labelled images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Labelled images.
    pub images: usize,
    /// Share of correct predictions.
    pub accuracy: f64,
    /// Mean negative log likelihood.
    pub nll: f64,
    /// Recalls and confusion matrix.
    pub per_class: PerClass,
    /// Of the probabilities.
    pub calibration: Calibration,
}

impl Tested {
    /// Of `logits` `[n, K]` for images of classes `labels` `[n]`.
    pub(crate) fn of(logits: &Tensor, labels: &Tensor, classes: &[String]) -> Self {
        let probabilities = logits.to_kind(Kind::Double).softmax(1, Kind::Double);
        let predicted = logits.argmax(1, false);
        let right = predicted.eq_tensor(labels).to_kind(Kind::Double).mean(Kind::Double);
        let area = (classes.len() == 2).then(|| auroc(&probabilities.select(1, 1), labels)).flatten();
        let predictions = Predictions { predicted, truth: labels.shallow_clone() };
        Self {
            images: labels.size()[0] as usize,
            accuracy: right.double_value(&[]),
            nll: nll(logits, labels, 1.0),
            per_class: PerClass::of(&predictions, classes, area),
            calibration: Calibration::of(&probabilities, labels),
        }
    }

    /// Accuracy, calibration, confusion matrix and recall of each class.
    pub fn text(&self) -> String {
        let Self { images, accuracy, nll, per_class, calibration } = self;
        format!(
            "{images} test images: accuracy {:.2} %, negative log likelihood {nll:.4}, calibration error (ECE) {:.4}\n{}",
            100.0 * accuracy,
            calibration.ece,
            per_class.text("per class")
        )
    }
}

/// The report on the classifier of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifierReport {
    /// Name of the chosen candidate.
    pub chosen: String,
    /// Compared classifiers.
    pub candidates: Vec<Candidate>,
    /// Labelled images that the classifier was trained on.
    pub train_images: usize,
    /// Labelled images on which candidates were compared and the temperature was fitted.
    pub hold_out_images: usize,
    /// Figures on the test images, which took no part in any choice, with the temperature applied.
    pub test: Tested,
    /// ECE on the test images without temperature scaling.
    pub ece_before_scaling: f64,
    /// Caveats about the labelled set.
    pub notes: Vec<String>,
}

impl ClassifierReport {
    /// As printed.
    pub fn text(&self) -> String {
        let candidate = |found: &Candidate| {
            let Candidate { name, accuracy, nll, temperature } = found;
            let mark = if *name == self.chosen { "  chosen" } else { "" };
            format!(
                "{name:<12} {:.2} % on the hold-out, negative log likelihood {nll:.4}, temperature {temperature:.3}{mark}\n",
                100.0 * accuracy
            )
        };
        let candidates: String = self.candidates.iter().map(candidate).collect();
        let notes: String = self.notes.iter().map(|note| format!("note: {note}\n")).collect();
        let (train, held) = (self.train_images, self.hold_out_images);
        let before = self.ece_before_scaling;
        format!(
            "trained on {train} labelled images, chosen on {held} held out\n{candidates}{}\nECE without temperature scaling {before:.4}\n{notes}",
            self.test.text().trim_end()
        )
    }
}
