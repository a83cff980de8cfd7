//! Answers to the test images to recall per class, confusion matrix, balanced accuracy and, for two classes, the area under
//! the ROC curve.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::eval::report::results::aligned;
use crate::eval::report::results_cache::Answers;

/// How one classifier did on each class of the test part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerClass {
    /// In the order of the training part's classes.
    pub classes: Vec<ClassRecall>,
    /// Mean of the recalls of the classes that have test images.
    pub balanced_accuracy: f64,
    /// Test images by true class (row) and predicted class (column); none where there are more than [`MATRIX`] classes: the
    /// file of predictions has it.
    pub confusion: Option<Vec<Vec<u64>>>,
    /// Of the second of two classes against the first, by the classifier's scores; none where there are more classes, or no
    /// test images of one.
    pub auroc: Option<f64>,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRecall {
    /// Class name.
    pub name: String,
    /// Test images of the class.
    pub images: u64,
    /// Share of them that were recognised; none where there are none.
    pub recall: Option<f64>,
}

/// Most classes for which the confusion matrix is written to `results.json`.
pub const MATRIX: usize = 200;
/// Most classes for which it is printed, and how many classes are printed in place of it.
const PRINTED: usize = 20;
const WORST: usize = 10;

impl PerClass {
    /// Of `answers`, whose labels are positions in `names`.
    pub(crate) fn of(answers: &Answers, names: &[String], auroc: Option<f64>) -> Self {
        let classes = names.len() as i64;
        let cells =
            (&answers.truth * classes + &answers.predicted).bincount::<Tensor>(None, classes * classes);
        let cells =
            Vec::<i64>::try_from(cells.to_kind(Kind::Int64)).expect("a count for each pair of classes");
        let matrix: Vec<Vec<u64>> =
            cells.chunks(names.len()).map(|row| row.iter().map(|&count| count as u64).collect()).collect();
        let class = |(at, name): (usize, &String)| {
            let images: u64 = matrix[at].iter().sum();
            let recall = (images > 0).then(|| matrix[at][at] as f64 / images as f64);
            ClassRecall { name: name.clone(), images, recall }
        };
        let classes: Vec<ClassRecall> = names.iter().enumerate().map(class).collect();
        let recalls: Vec<f64> = classes.iter().filter_map(|class| class.recall).collect();
        let balanced_accuracy = recalls.iter().sum::<f64>() / recalls.len() as f64;
        Self { classes, balanced_accuracy, confusion: (names.len() <= MATRIX).then_some(matrix), auroc }
    }

    /// Classes without test images.
    pub fn absent(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().filter(|class| class.recall.is_none()).map(|class| &class.name[..])
    }

    /// For a terminal: the figures, then the matrix, or of many classes those with the lowest recall.
    pub(crate) fn text(&self, title: &str) -> String {
        let auroc = self.auroc.map_or(String::new(), |area| format!(", AUROC {area:.4}"));
        let mut text = format!("{title}: balanced accuracy {:.1}{auroc}\n", 100.0 * self.balanced_accuracy);
        match &self.confusion {
            Some(matrix) if self.classes.len() <= PRINTED => {
                text.push_str(&aligned(&self.matrix_lines(matrix)))
            }
            _ => text.push_str(&aligned(&self.worst_lines())),
        }
        text
    }

    /// A line for each class: its predictions by number of the class, its images and recall.
    fn matrix_lines(&self, matrix: &[Vec<u64>]) -> Vec<Vec<String>> {
        let numbers = (1..=self.classes.len()).map(|number| number.to_string());
        let headings = std::iter::once("true \\ predicted".to_owned()).chain(numbers);
        let mut lines = vec![headings.chain(["images", "recall"].map(str::to_owned)).collect::<Vec<_>>()];
        for (at, (class, row)) in self.classes.iter().zip(matrix).enumerate() {
            let name = format!("{} {}", at + 1, class.name);
            let counts = row.iter().map(u64::to_string);
            lines.push(std::iter::once(name).chain(counts).chain(class.cells()).collect());
        }
        lines
    }

    fn worst_lines(&self) -> Vec<Vec<String>> {
        let mut known: Vec<&ClassRecall> =
            self.classes.iter().filter(|class| class.recall.is_some()).collect();
        known.sort_by(|a, b| a.recall.unwrap_or(0.0).total_cmp(&b.recall.unwrap_or(0.0)));
        let heading = format!("lowest recall of {} classes", known.len());
        let mut lines = vec![vec![heading, "images".to_owned(), "recall".to_owned()]];
        let line = |class: &&ClassRecall| std::iter::once(class.name.clone()).chain(class.cells()).collect();
        lines.extend(known.iter().take(WORST).map(line));
        lines
    }
}

impl ClassRecall {
    fn cells(&self) -> [String; 2] {
        let recall = self.recall.map_or("-".into(), |recall| format!("{:.1}", 100.0 * recall));
        [self.images.to_string(), recall]
    }
}

/// The probability that a positive has a higher score than a negative, ties counting one half, from `scores` `[n]` and
/// `labels` `[n]` (1 = positive, 0 = negative): by ranks, those of equal scores averaged (Mann and Whitney 1947). None
/// without positives or without negatives, or where a score is NaN.
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

    fn answers(predicted: &[i64], truth: &[i64]) -> Answers {
        Answers { predicted: Tensor::from_slice(predicted), truth: Tensor::from_slice(truth) }
    }

    #[test]
    fn counts_by_hand() {
        let found = PerClass::of(&answers(&[0, 0, 1, 2, 2, 0], &[0, 0, 0, 1, 1, 1]), &names(4), None);
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
    fn of_many_classes_the_worst_are_shown_and_of_very_many_no_matrix_is_kept() {
        let truth: Vec<i64> = (0..300).collect();
        let predicted: Vec<i64> = (0..300).map(|at| if at == 123 { 0 } else { at }).collect();
        let found = PerClass::of(&answers(&predicted, &truth), &names(300), None);
        assert_eq!(found.confusion, None);
        let text = found.text("linear");
        assert!(text.lines().nth(1).unwrap().starts_with("lowest recall of 300 classes"), "{text}");
        assert!(text.lines().nth(2).unwrap().starts_with("class 123"), "{text}");
        assert_eq!(text.lines().count(), 2 + WORST);
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
    fn the_area_agrees_with_its_definition_over_all_pairs() {
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
    fn areas_in_closed_form_and_none_where_there_is_none() {
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
