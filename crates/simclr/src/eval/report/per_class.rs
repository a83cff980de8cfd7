//! Recall per class, confusion matrix, balanced accuracy and, for two classes, the area under the ROC curve.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::figure::Predictions;

/// The figures of one classifier on each class of the test part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerClass {
    /// In the order of the training part's classes.
    pub classes: Vec<ClassRecall>,
    /// Mean recall of the classes with test images.
    pub balanced_accuracy: f64,
    /// Test images by true class (row) and predicted class (column); none for more than [`MATRIX`] classes.
    pub confusion: Option<Vec<Vec<u64>>>,
    /// Of the second of two classes against the first, by the classifier's scores; none for more classes, or without test
    /// images of one.
    pub auroc: Option<f64>,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRecall {
    /// Class name.
    pub name: String,
    /// Test images of the class.
    pub images: u64,
    /// None without test images.
    pub recall: Option<f64>,
}

/// Most classes of a confusion matrix in `results.json`.
pub const MATRIX: usize = 200;

impl PerClass {
    /// Labels are positions in `names`.
    pub(crate) fn of(predictions: &Predictions, names: &[String], auroc: Option<f64>) -> Self {
        let listed =
            |labels: &Tensor| Vec::<i64>::try_from(labels.to_kind(Kind::Int64)).expect("a vector of labels");
        let (truth, predicted) = (listed(&predictions.truth), listed(&predictions.predicted));
        let (mut images, mut right) = (vec![0u64; names.len()], vec![0u64; names.len()]);
        let mut confusion = (names.len() <= MATRIX).then(|| vec![vec![0; names.len()]; names.len()]);
        for (&truth, &predicted) in truth.iter().zip(&predicted) {
            images[truth as usize] += 1;
            right[truth as usize] += u64::from(truth == predicted);
            if let Some(matrix) = &mut confusion {
                matrix[truth as usize][predicted as usize] += 1;
            }
        }
        let class = |(at, name): (usize, &String)| {
            let recall = (images[at] > 0).then(|| right[at] as f64 / images[at] as f64);
            ClassRecall { name: name.clone(), images: images[at], recall }
        };
        let classes: Vec<ClassRecall> = names.iter().enumerate().map(class).collect();
        let recalls: Vec<f64> = classes.iter().filter_map(|class| class.recall).collect();
        let balanced_accuracy = recalls.iter().sum::<f64>() / recalls.len() as f64;
        Self { classes, balanced_accuracy, confusion, auroc }
    }

    /// Classes without test images.
    pub fn absent(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().filter(|class| class.recall.is_none()).map(|class| &class.name[..])
    }
}

/// The probability that a positive has a higher score than a negative, ties counting one half, from `scores` `[n]` and
/// `labels` `[n]` (1 = positive, 0 = negative): by ranks, those of equal scores averaged (Mann and Whitney 1947). None
/// without positives or negatives, or if a score is NaN.
pub(crate) fn auroc(scores: &Tensor, labels: &Tensor) -> Option<f64> {
    let numbers = |of: &Tensor| {
        Vec::<f64>::try_from(of.to_kind(Kind::Double).to_device(tch::Device::Cpu))
            .expect("a vector of numbers")
    };
    let mut ranked: Vec<(f64, f64)> = numbers(scores).into_iter().zip(numbers(labels)).collect();
    let positives: f64 = ranked.iter().map(|(_, label)| label).sum();
    let negatives = ranked.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 || ranked.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut before, mut ranks) = (0.0, 0.0);
    // == and not total_cmp: 0 and -0 are equal scores.
    for equal in ranked.chunk_by(|a, b| a.0 == b.0) {
        let count = equal.len() as f64;
        ranks += equal.iter().map(|(_, label)| label).sum::<f64>() * (before + 0.5 * (count + 1.0));
        before += count;
    }
    Some((ranks - 0.5 * positives * (positives + 1.0)) / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("class {at}")).collect()
    }

    fn predictions(predicted: &[i64], truth: &[i64]) -> Predictions {
        Predictions { predicted: Tensor::from_slice(predicted), truth: Tensor::from_slice(truth) }
    }

    #[test]
    fn recalls_and_confusion_by_hand() {
        let found = PerClass::of(&predictions(&[0, 0, 1, 2, 2, 0], &[0, 0, 0, 1, 1, 1]), &names(4), None);
        assert_eq!(
            found.confusion.as_ref().unwrap(),
            &[vec![2, 1, 0, 0], vec![1, 0, 2, 0], vec![0; 4], vec![0; 4]]
        );
        let recalls: Vec<_> = found.classes.iter().map(|class| (class.images, class.recall)).collect();
        assert_eq!(recalls, [(3, Some(2.0 / 3.0)), (3, Some(0.0)), (0, None), (0, None)]);
        assert_eq!(found.absent().collect::<Vec<_>>(), ["class 2", "class 3"]);
        assert!((found.balanced_accuracy - 1.0 / 3.0).abs() < 1e-15, "absent classes do not count");
        let text = found.text("kNN on trained h");
        assert!(text.starts_with("kNN on trained h: balanced accuracy 33.3\ntrue \\ predicted"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("1 class 0") && line.ends_with("66.7")), "{text}");
        assert!(text.lines().any(|line| line.starts_with("4 class 3") && line.ends_with('-')), "{text}");
    }

    #[test]
    fn many_classes_print_the_worst_and_store_no_matrix() {
        let truth: Vec<i64> = (0..300).collect();
        let predicted: Vec<i64> = (0..300).map(|at| if at == 123 { 0 } else { at }).collect();
        let found = PerClass::of(&predictions(&predicted, &truth), &names(300), None);
        assert_eq!(found.confusion, None);
        let text = found.text("linear");
        assert!(text.lines().nth(1).unwrap().starts_with("lowest recall of 300 classes"), "{text}");
        assert!(text.lines().nth(2).unwrap().starts_with("class 123"), "{text}");
        assert_eq!(text.lines().count(), 2 + crate::eval::report::table::WORST);
    }

    /// A matrix of all pairs of classes would take 80 GB.
    #[test]
    fn memory_does_not_grow_with_pairs_of_classes() {
        let found = PerClass::of(&predictions(&[7, 8], &[7, 7]), &names(100_000), None);
        assert_eq!((found.classes[7].images, found.classes[7].recall), (2, Some(0.5)));
        assert_eq!((found.confusion, found.balanced_accuracy), (None, 0.5));
    }

    /// Over all pairs of a positive and a negative.
    fn by_definition(scores: &[f64], labels: &[i64]) -> f64 {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (a, _) in scores.iter().zip(labels).filter(|(_, label)| **label == 1) {
            for (b, _) in scores.iter().zip(labels).filter(|(_, label)| **label == 0) {
                sum += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
                pairs += 1.0;
            }
        }
        sum / pairs
    }

    #[test]
    fn auroc_matches_its_definition_over_all_pairs() {
        for (seed, levels) in [(1, 3.0), (2, 10.0), (3, 1e9)] {
            let draws = Vec::<f32>::try_from(crate::test_normals(seed, &[400])).unwrap();
            // Few levels: many ties.
            let scores: Vec<f64> = draws[..200].iter().map(|x| (f64::from(*x) * levels).round()).collect();
            let labels: Vec<i64> =
                draws[200..].iter().zip(&draws).map(|(y, x)| i64::from(x + y > 0.8)).collect();
            let area = auroc(&Tensor::from_slice(&scores), &Tensor::from_slice(&labels)).unwrap();
            let want = by_definition(&scores, &labels);
            assert!((area - want).abs() < 1e-12 && want > 0.6, "{levels}: {area} {want}");
        }
    }

    #[test]
    fn auroc_in_closed_form_and_none_without_one() {
        let area =
            |scores: &[f64], labels: &[i64]| auroc(&Tensor::from_slice(scores), &Tensor::from_slice(labels));
        assert_eq!(area(&[0.1, 0.2, 0.3, 0.4], &[0, 0, 1, 1]), Some(1.0));
        assert_eq!(area(&[0.4, 0.3, 0.2, 0.1], &[0, 0, 1, 1]), Some(0.0));
        assert_eq!(area(&[0.0, -0.0, 0.0, 0.0], &[0, 0, 1, 1]), Some(0.5));
        assert_eq!(area(&[1.0, 2.0, 2.0, 3.0], &[0, 1, 0, 1]), Some(3.5 / 4.0));
        assert_eq!(area(&[1.0, 2.0], &[1, 1]), None);
        assert_eq!(area(&[1.0, f64::NAN], &[0, 1]), None);
    }
}
