//! Labels of single images, also of several per image, and metrics of predictions: top-1, mean per class, 11-point mAP.

use std::collections::{HashMap, HashSet};

use simclr_data::Dataset;
use tch::{Kind, Tensor};

use super::splits::{self, Split};
use crate::{
    eval::{options::Metric, report::Predictions},
    knn,
};

/// Labels of a part, one row per image. With mAP an image in several class folders (VOC2007) has one row per class.
pub(crate) struct ImageLabels {
    pub(crate) labels: Vec<i64>,
    /// Image of each row.
    names: Vec<String>,
}

impl ImageLabels {
    /// The rows of the images `indices` of `set`; `labels` has an entry for every image of the set.
    pub(crate) fn of(set: &Dataset, labels: &[i64], indices: &[usize], metric: Metric) -> Self {
        let names = match metric {
            Metric::Map11 => file_names(set, indices),
            Metric::Top1 | Metric::MeanPerClass => {
                indices.iter().map(|&index| set.samples()[index].name.clone()).collect()
            }
        };
        Self { labels: indices.iter().map(|&index| labels[index]).collect(), names }
    }

    /// Appends the rows of the validation part.
    pub(crate) fn append(&mut self, other: Self) {
        self.labels.extend(other.labels);
        // Equal names in both parts denote different images.
        self.names.extend(other.names.into_iter().map(|name| format!("validation: {name}")));
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The first row of each image.
    pub(crate) fn unique_images(&self) -> Vec<usize> {
        let mut seen = HashSet::new();
        (0..self.names.len()).filter(|&row| seen.insert(&self.names[row])).collect()
    }

    /// The subset of `rows` that are the first row of their image.
    pub(crate) fn first_rows(&self, rows: &[usize]) -> Vec<usize> {
        let unique: HashSet<usize> = self.unique_images().into_iter().collect();
        rows.iter().copied().filter(|row| unique.contains(row)).collect()
    }

    /// Rows to fit on, and held-out rows of a `share` of the images; no image has rows in both.
    pub(crate) fn hold_out(&self, classes: usize, share: f64, seed: u64) -> Split {
        let unique = self.unique_images();
        let labels: Vec<i64> = unique.iter().map(|&row| self.labels[row]).collect();
        let (_, held) = splits::hold_out(&labels, classes, share, seed);
        let held: HashSet<&String> = held.into_iter().map(|at| &self.names[unique[at]]).collect();
        (0..self.names.len()).partition(|&row| !held.contains(&self.names[row]))
    }

    /// The classes of the images of `rows`.
    pub(crate) fn truth(&self, rows: &[usize], classes: usize) -> GroundTruth {
        let mut of_image: HashMap<&str, Vec<i64>> = HashMap::new();
        for (name, &label) in self.names.iter().zip(&self.labels) {
            of_image.entry(name).or_default().push(label);
        }
        let mut holds = vec![false; rows.len() * classes];
        for (at, &row) in rows.iter().enumerate() {
            of_image[&self.names[row][..]]
                .iter()
                .for_each(|&class| holds[at * classes + class as usize] = true);
        }
        let labels: Vec<i64> = rows.iter().map(|&row| self.labels[row]).collect();
        let holds = Tensor::from_slice(&holds).view([-1, classes as i64]);
        GroundTruth { labels: Tensor::from_slice(&labels), holds, classes: classes as i64 }
    }
}

/// Base name of each image; ambiguous base names are extended by a checksum of the pixels, so that only copies of an image
/// share a name. An undecodable image keeps its full name.
fn file_names(set: &Dataset, indices: &[usize]) -> Vec<String> {
    let last = |index: usize| set.samples()[index].name.rsplit('/').next().unwrap_or_default();
    let mut times: HashMap<&str, usize> = HashMap::new();
    indices.iter().for_each(|&index| *times.entry(last(index)).or_default() += 1);
    let name = |&index: &usize| match times[last(index)] {
        1 => last(index).to_owned(),
        _ => match set.decode(index) {
            Ok(image) => format!("{} {:08x}", last(index), crc32c::crc32c(&image.data)),
            Err(_) => set.samples()[index].name.clone(),
        },
    };
    indices.iter().map(name).collect()
}

/// The classes of each image.
pub(crate) struct GroundTruth {
    /// `[n]`: the class of the first folder.
    labels: Tensor,
    /// `[n, K]` bool.
    holds: Tensor,
    classes: i64,
}

impl GroundTruth {
    /// Predicted and true labels of `decision` `[n, K]`; for an image of several classes a correctly predicted one counts as
    /// true.
    pub(crate) fn predictions(&self, decision: &Tensor) -> Predictions {
        let predicted = decision.argmax(1, false);
        let right = self.holds.gather(1, &predicted.unsqueeze(1), false).squeeze_dim(1);
        Predictions::new(&predicted, &predicted.where_self(&right, &self.labels))
    }

    /// Of logits `decision` `[n, K]`; NaN if no class has images.
    pub(crate) fn metric(&self, decision: &Tensor, metric: Metric) -> f64 {
        let mean_of_present = |values: Vec<f64>| {
            let values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        match metric {
            Metric::Top1 => knn::accuracy(&decision.argmax(1, false), &self.labels),
            Metric::MeanPerClass => mean_of_present(self.per_class(decision)),
            Metric::Map11 => {
                // Images are ranked by probability: logits of different images are not comparable.
                let ranking = decision.log_softmax(1, Kind::Double);
                let precision = |class| self.average_precision(&ranking, class);
                mean_of_present((0..self.classes).map(precision).collect())
            }
        }
    }

    /// Accuracy on the test images of each class; NaN for classes without any.
    pub(crate) fn per_class(&self, decision: &Tensor) -> Vec<f64> {
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
        // Every level up to this recall.
        let levels = 10 * found as usize / positives;
        best[..=levels].iter_mut().for_each(|best| *best = best.max(precision));
    }
    best.iter().sum::<f64>() / 11.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_point_precision_by_hand() {
        assert_eq!(eleven_points(&[true, true, false]), 1.0);
        assert!(eleven_points(&[false, false]).is_nan());
        // Recall 1/2 at precision 1 (levels 0 to 5), recall 1 at precision 2/3 (levels 6 to 10).
        assert!((eleven_points(&[true, false, true]) - (6.0 + 5.0 * 2.0 / 3.0) / 11.0).abs() < 1e-12);
        // Precision 1/2 at recall 1 counts for all levels.
        assert!((eleven_points(&[false, true]) - 0.5).abs() < 1e-12);
    }

    /// The second image has the larger logits, the first one the larger probability of its only class.
    #[test]
    fn mean_average_precision_ranks_by_probability() {
        let labels = Tensor::from_slice(&[0i64, 1]);
        let truth = GroundTruth { holds: labels.one_hot(2).to_kind(Kind::Bool), labels, classes: 2 };
        let logits = Tensor::from_slice(&[1.0f64, 0.0, 5.0, 6.0]).view([2, 2]);
        assert_eq!(truth.metric(&logits, Metric::Map11), 1.0);
        let shifted = &logits + Tensor::from_slice(&[20.0f64, -20.0]).view([2, 1]);
        assert_eq!(truth.metric(&shifted, Metric::Map11), 1.0);
    }

    /// Nine images of class 0, one of class 1, everything called 0: top-1 and the mean over classes differ.
    #[test]
    fn mean_per_class_weights_classes_equally() {
        let labels = Tensor::from_slice(&[0i64, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let holds = labels.one_hot(3).to_kind(Kind::Bool);
        let truth = GroundTruth { labels, holds, classes: 3 };
        let decision = Tensor::from_slice(&[1.0f64, 0.0, 0.0]).repeat([10, 1]);
        assert!((truth.metric(&decision, Metric::Top1) - 0.9).abs() < 1e-12);
        assert!(
            (truth.metric(&decision, Metric::MeanPerClass) - 0.5).abs() < 1e-12,
            "the third class has no images"
        );
        assert!(truth.per_class(&decision)[2].is_nan());
    }
}
