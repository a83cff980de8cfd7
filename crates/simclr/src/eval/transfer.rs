//! Frozen features of other data sets under the paper's transfer protocol (B.8.1; spec 8.4, 8.6): logistic regression by
//! L-BFGS, its regularisation chosen among 45 values on held-out training images, refitted on all of them.

use std::{collections::HashMap, path::PathBuf};

use simclr_data::Dataset;
use tch::{Kind, Tensor};

use super::{
    features::{self, Extracted, Extractor, FrozenEncoder, ReadOptions, label_tensor},
    linear::{self, LinearOptions, log_spaced},
    protocol::EvalOptions,
    results::{Metric, TransferRow},
    sets::Sets,
};
use crate::{EvalError, train::Observer};

/// A data set and what it is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferSet {
    /// Class folders or any other labelled set.
    pub path: PathBuf,
    /// Reported figure.
    pub metric: Metric,
}

/// One row for each set: the trained encoder, and the control beside it.
pub(super) fn rows(
    trained: &FrozenEncoder,
    control: Option<&FrozenEncoder>,
    options: &EvalOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<TransferRow>, EvalError> {
    let mut rows = Vec::new();
    for set in &options.transfer {
        observer.message(&format!("transfer to {}", set.path.display()));
        rows.push(row(trained, control, set, options)?);
    }
    Ok(rows)
}

fn row(
    trained: &FrozenEncoder,
    control: Option<&FrozenEncoder>,
    set: &TransferSet,
    options: &EvalOptions,
) -> Result<TransferRow, EvalError> {
    let sets = Sets::open(&set.path, trained.channels(), options.seed)?;
    let test_set = sets.test.as_ref().unwrap_or(&sets.train);
    let forwards: Vec<_> = std::iter::once(trained)
        .chain(control)
        .map(|encoder| |pixels: &Tensor| encoder.forward(pixels))
        .collect();
    let extractors: Vec<&Extractor<'_>> = forwards.iter().map(|forward| forward as _).collect();
    let read = ReadOptions::of(trained, options.batch, options.threads);
    let part = |set: &Dataset, indices: &[usize]| {
        features::extract(set, indices, &read, &extractors, &mut |_, _| {})
    };
    let (train, test) = (part(&sets.train, &sets.train_indices)?, part(test_set, &sets.test_indices)?);
    let classes = sets.train.classes();
    let truth = Truth::of(test_set, &sets.test_labels, &test, classes.len(), set.metric);
    let train_labels = label_tensor(&sets.train_labels, &train.indices);
    let linear =
        LinearOptions { lambdas: log_spaced(1e-6, 1e5, 45), seed: options.seed, ..options.linear.clone() };
    let judge = |subject: usize| {
        let fit = linear::fit(&train.features[subject], &train_labels, classes.len() as i64, &linear);
        (fit.classifier.decision(&test.features[subject]), fit.lambda)
    };
    let (decision, lambda) = judge(0);
    Ok(TransferRow {
        data: set.path.display().to_string(),
        fingerprint: sets.train.fingerprint(),
        metric: set.metric,
        images: (train.indices.len(), test.indices.len()),
        trained: truth.figure(&decision, set.metric),
        random_init: control.map(|_| truth.figure(&judge(1).0, set.metric)),
        lambda,
        per_class: classes.iter().cloned().zip(truth.per_class(&decision)).collect(),
    })
}

/// Which classes each test image holds.
struct Truth {
    /// `[n]`: the class of its folder.
    labels: Tensor,
    /// `[n, K]` bool. With mAP, an image whose file lies in several class folders holds all of them (VOC2007).
    holds: Tensor,
    classes: i64,
}

impl Truth {
    fn of(set: &Dataset, labels: &[i64], read: &Extracted, classes: usize, metric: Metric) -> Self {
        let own: Vec<i64> = read.indices.iter().map(|&index| labels[index]).collect();
        let mut of_file: HashMap<&str, Vec<i64>> = HashMap::new();
        let file = |index: usize| set.samples()[index].name.rsplit('/').next().unwrap_or_default();
        for (&index, &label) in read.indices.iter().zip(&own) {
            of_file.entry(file(index)).or_default().push(label);
        }
        let mut holds = vec![false; own.len() * classes];
        for (row, (&index, &label)) in read.indices.iter().zip(&own).enumerate() {
            let several = if metric == Metric::Map11 { &of_file[file(index)][..] } else { &[label] };
            several.iter().for_each(|&class| holds[row * classes + class as usize] = true);
        }
        let classes = classes as i64;
        Self {
            labels: Tensor::from_slice(&own),
            holds: Tensor::from_slice(&holds).view([-1, classes]),
            classes,
        }
    }

    fn figure(&self, decision: &Tensor, metric: Metric) -> f64 {
        let present = |values: Vec<f64>| {
            let values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        match metric {
            Metric::Top1 => super::knn::accuracy(&decision.argmax(1, false), &self.labels),
            Metric::MeanPerClass => present(self.per_class(decision)),
            Metric::Map11 => {
                present((0..self.classes).map(|class| self.average_precision(decision, class)).collect())
            }
        }
    }

    /// Accuracy on the test images of each class; NaN where there are none.
    fn per_class(&self, decision: &Tensor) -> Vec<f64> {
        let right = decision.argmax(1, false).eq_tensor(&self.labels).to_kind(Kind::Double);
        let count =
            |weights: Option<&Tensor>| self.labels.bincount(weights, self.classes).to_kind(Kind::Double);
        Vec::try_from(count(Some(&right)) / count(None)).expect("one number for each class")
    }

    /// The mean of the highest precision at recalls of at least 0, 0.1, ... 1 (VOC2007 devkit); NaN without positives.
    fn average_precision(&self, decision: &Tensor, class: i64) -> f64 {
        let order = decision.select(1, class).argsort(0, true);
        let holds = self.holds.select(1, class).index_select(0, &order);
        let holds: Vec<bool> = Vec::try_from(holds).expect("one truth value for each image");
        eleven_points(&holds)
    }
}

/// 11-point interpolated average precision of a ranking, most likely first.
fn eleven_points(ranked: &[bool]) -> f64 {
    let positives = ranked.iter().filter(|&&holds| holds).count();
    if positives == 0 {
        return f64::NAN;
    }
    let mut best = [0.0f64; 11];
    let mut found = 0;
    for (rank, _) in ranked.iter().enumerate().filter(|(_, holds)| **holds) {
        found += 1;
        let precision = f64::from(found) / (rank + 1) as f64;
        // Every level that this recall reaches.
        let levels = 10 * found as usize / positives;
        best[..=levels].iter_mut().for_each(|best| *best = best.max(precision));
    }
    best.iter().sum::<f64>() / 11.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_points_by_hand() {
        assert_eq!(eleven_points(&[true, true, false]), 1.0);
        assert!(eleven_points(&[false, false]).is_nan());
        // Recall 1/2 at precision 1 (levels 0 to 5), recall 1 at precision 2/3 (levels 6 to 10).
        assert!((eleven_points(&[true, false, true]) - (6.0 + 5.0 * 2.0 / 3.0) / 11.0).abs() < 1e-12);
        // Precision 1/2 at recall 1 counts for all levels.
        assert!((eleven_points(&[false, true]) - 0.5).abs() < 1e-12);
    }

    /// Nine images of class 0, one of class 1, everything called 0: top-1 hides what the mean over classes shows.
    #[test]
    fn the_mean_per_class_counts_rare_classes_in_full() {
        let labels = Tensor::from_slice(&[0i64, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let holds = labels.one_hot(3).to_kind(Kind::Bool);
        let truth = Truth { labels, holds, classes: 3 };
        let decision = Tensor::from_slice(&[1.0f64, 0.0, 0.0]).repeat([10, 1]);
        assert!((truth.figure(&decision, Metric::Top1) - 0.9).abs() < 1e-12);
        assert!(
            (truth.figure(&decision, Metric::MeanPerClass) - 0.5).abs() < 1e-12,
            "the third class is not there"
        );
        assert!(truth.per_class(&decision)[2].is_nan());
    }
}
