//! The results of an evaluation, stored as `results.json`. Accuracies are fractions in `[0, 1]`.

use serde::{Deserialize, Serialize};
use simclr_data::augment::EvalTransform;

use super::{figure::Figure, per_class::PerClass};
use crate::eval::options::Metric;

/// Version of the layout of `results.json`. 5: `per_class` of rows and `shots` of cells, which files of version 4 lack.
pub const SCHEMA: u32 = 5;

/// All figures of one evaluation and everything they depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct Results {
    pub schema: u32,
    /// Version of this program.
    pub simclr: String,
    pub run: RunFacts,
    pub data: DataFacts,
    pub protocol: ProtocolFacts,
    /// The [`EvalConfig`](crate::eval::EvalConfig) as given or by default.
    #[serde(default)]
    pub options: serde_json::Value,
    /// Trained h first, then the controls, then the protocols that train.
    pub rows: Vec<Row>,
    /// The transfer protocol on other data sets.
    pub transfer: Vec<TransferRow>,
    /// Caveats: unfinished run, hold-out in place of a test split, bad images.
    pub notes: Vec<String>,
}

/// The evaluated run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct RunFacts {
    pub encoder: String,
    pub feature_dim: i64,
    pub image_size: usize,
    /// Input transform; older results lack it.
    #[serde(default)]
    pub transform: Option<EvalTransform>,
    pub channels: i64,
    /// File name of the checkpoint, the newest of the run.
    pub checkpoint: String,
    /// Digest of architecture and weights; empty in results of earlier versions.
    #[serde(default)]
    pub weights: String,
    pub step: u64,
    /// Training steps planned, if recorded.
    pub total_steps: Option<u64>,
    pub seed: u64,
}

/// The evaluated set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct DataFacts {
    pub path: String,
    pub classes: usize,
    /// Images of the training part (the bank) without bad ones.
    pub train_images: usize,
    /// Images of the test part without bad ones.
    pub test_images: usize,
    pub train_fingerprint: String,
    /// Fingerprint of the test split; none if it is a hold-out of the training split.
    pub test_fingerprint: Option<String>,
    /// Digest of the stored bytes of all images of the training split, if computed.
    #[serde(default)]
    pub train_content: Option<String>,
    /// The same of the test split.
    #[serde(default)]
    pub test_content: Option<String>,
    /// Images that could not be decoded: name and reason.
    pub bad: Vec<(String, String)>,
}

/// The protocols.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct ProtocolFacts {
    /// Neighbours, as used.
    pub knn_k: i64,
    /// Temperature of the votes exp(sim / T); none = plain majority.
    pub knn_temperature: Option<f64>,
    /// Neighbours of the retrieval; 0 if it did not run.
    pub retrieval_k: i64,
    pub linear: String,
    pub lambdas: Vec<f64>,
    pub seed: u64,
    pub random_init_seeds: Vec<u64>,
    /// Row name and description of each protocol that trains.
    pub trained: Vec<(String, String)>,
}

/// One data set of the transfer protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct TransferRow {
    pub data: String,
    pub fingerprint: String,
    pub metric: Metric,
    /// Training and test images.
    pub images: (usize, usize),
    /// Trained h, `[0, 1]`.
    pub trained: f64,
    /// The random-init encoder, `[0, 1]`.
    pub random_init: Option<f64>,
    /// Regularisation chosen for the trained h.
    pub lambda: f64,
    /// Images that the regularisation was chosen on.
    pub validation: String,
    /// Class name and accuracy on trained h; none for classes without test images.
    pub per_class: Vec<(String, Option<f64>)>,
    /// File in the run folder with the predicted labels of trained h.
    pub predictions: String,
    /// The whole network fine-tuned from the run's weights.
    #[serde(default)]
    pub finetuned: Option<Tuned>,
    /// The same from fresh weights.
    #[serde(default)]
    pub fresh: Option<Tuned>,
    /// Caveats about the set.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One network fine-tuned on a set of the transfer protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct Tuned {
    /// The set's metric on its test part, `[0, 1]`.
    pub figure: f64,
    pub learning_rate: f64,
    /// Chosen weight decay as used: the grid's value divided by the learning rate.
    pub weight_decay: f64,
    /// Steps of the tested training.
    pub steps: u64,
    pub batch: usize,
    /// Training images, validation part included.
    pub images: usize,
    /// File in the run folder with the predicted labels.
    pub predictions: String,
}

/// One encoder or control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `trained h`, `random-init h` (and the same for every layer), `raw pixels`, `chance`: frozen, under kNN and linear
    /// classifiers; after them the protocols that train.
    pub name: String,
    /// Input dimensions of the classifiers; 0 for chance.
    pub dimensions: i64,
    /// Weighted kNN with all labels.
    pub knn: Option<Cell>,
    /// kNN by plain majority, the same neighbours.
    pub knn_plain: Option<Cell>,
    /// Retrieval: mean precision among the [`ProtocolFacts::retrieval_k`] nearest training images.
    pub retrieval: Option<Cell>,
    /// The classifier in each column of the table, ascending in the fraction of the labels.
    pub by_labels: Vec<Cell>,
    /// Trained rows: `kNN` and `linear` with all labels, by class.
    #[serde(default)]
    pub per_class: Vec<(String, PerClass)>,
}

impl Row {
    /// A row with classifiers only.
    pub(crate) fn of(name: &str, dimensions: i64, by_labels: Vec<Cell>) -> Self {
        let (name, per_class) = (name.into(), Vec::new());
        Self { name, dimensions, knn: None, knn_plain: None, retrieval: None, by_labels, per_class }
    }

    /// The classifier's cell with this fraction of the labels.
    pub fn at(&self, fraction: f64) -> Option<&Cell> {
        self.by_labels.iter().find(|cell| cell.shots.is_none() && cell.share == fraction)
    }

    /// The classifier's cell in the column of `other`.
    pub(crate) fn in_column_of(&self, other: &Cell) -> Option<&Cell> {
        self.by_labels.iter().find(|cell| cell.same_column(other))
    }
}

/// One entry of the table: mean and spread over draws (label subsets, seeds of random encoders).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-explanatory fields")]
pub struct Cell {
    /// Fraction of the training labels, requested or resulting from `shots`.
    pub share: f64,
    /// Requested labels per class, in columns of that kind.
    #[serde(default)]
    pub shots: Option<usize>,
    pub labels: usize,
    /// Test accuracy of each draw.
    pub accuracies: Vec<f64>,
    pub mean: f64,
    /// Their standard deviation (n - 1); 0 for one draw.
    pub std: f64,
    /// Regularisation chosen in each draw; empty without regularisation.
    pub lambdas: Vec<f64>,
    /// How each fit ended, or the chosen learning rate; empty for kNN and chance.
    pub fits: Vec<String>,
    /// Files in the run folder with the predicted labels of each draw; empty for chance.
    pub predictions: Vec<String>,
}

impl Cell {
    /// Mean and standard deviation of `accuracies`.
    pub fn of(share: f64, labels: usize, accuracies: Vec<f64>) -> Self {
        let n = accuracies.len() as f64;
        let mean = accuracies.iter().sum::<f64>() / n;
        let squares: f64 = accuracies.iter().map(|a| (a - mean) * (a - mean)).sum();
        let std = if accuracies.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let (lambdas, fits, predictions) = (Vec::new(), Vec::new(), Vec::new());
        Self { share, shots: None, labels, accuracies, mean, std, lambdas, fits, predictions }
    }

    /// Includes regularisation, endings of fits and files of predictions.
    pub(crate) fn of_figures(share: f64, labels: usize, figures: Vec<Figure>) -> Self {
        let cell = Self::of(share, labels, figures.iter().map(|figure| figure.value).collect());
        let lambdas = figures.iter().filter_map(|figure| figure.lambda).collect();
        let fits = figures.iter().map(|figure| figure.how.clone()).filter(|how| !how.is_empty()).collect();
        let predicted = figures.iter().filter(|figure| figure.predictions.is_some());
        let predictions = predicted.map(|figure| figure.file.clone()).collect();
        Self { lambdas, fits, predictions, ..cell }
    }

    /// Whether this is the column of all labels.
    pub(crate) fn has_all_labels(&self) -> bool {
        self.shots.is_none() && self.share >= 1.0
    }

    /// Whether both have the same fraction of the labels, or the same number per class.
    pub(crate) fn same_column(&self, other: &Self) -> bool {
        self.shots == other.shots && (self.shots.is_some() || self.share == other.share)
    }

    /// `10 % of labels` or `5 per class`.
    pub(crate) fn column_name(&self) -> String {
        let share = format!("{} % of labels", 100.0 * self.share);
        self.shots.map_or(share, |shots| format!("{shots} per class"))
    }

    /// Percent with one decimal, with the spread if there are several draws.
    pub(crate) fn text(&self) -> String {
        match self.accuracies.len() {
            0 | 1 => format!("{:.1}", 100.0 * self.mean),
            _ => format!("{:.1} ±{:.1}", 100.0 * self.mean, 100.0 * self.std),
        }
    }
}

impl Results {
    /// The row of that name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// One cell of each column that any row has, ascending in the fraction of the labels.
    pub(crate) fn columns(&self) -> Vec<&Cell> {
        columns(self.rows.iter().flat_map(|row| &row.by_labels))
    }
}

/// One of `cells` for each column, ascending in the fraction of the labels.
pub(crate) fn columns<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<&'a Cell> {
    let mut columns: Vec<&Cell> = Vec::new();
    for cell in cells {
        if !columns.iter().any(|column| column.same_column(cell)) {
            columns.push(cell);
        }
    }
    columns.sort_by(|a, b| a.share.total_cmp(&b.share).then(b.shots.cmp(&a.shots)));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_mean_and_spread() {
        let cell = Cell::of(0.1, 60, vec![0.5, 0.6, 0.7]);
        assert!((cell.mean - 0.6).abs() < 1e-12 && (cell.std - 0.1).abs() < 1e-12);
        assert_eq!(cell.text(), "60.0 ±10.0");
        assert_eq!(Cell::of(1.0, 60, vec![0.8065]).text(), "80.7");
    }

    #[test]
    fn rows_of_version_4_are_readable() {
        let cell = Cell::of(0.1, 60, vec![0.5]);
        let row = Row { knn: Some(cell.clone()), ..Row::of("trained h", 8, vec![cell]) };
        let mut old = serde_json::to_value(&row).unwrap();
        old.as_object_mut().unwrap().remove("per_class").unwrap();
        old["by_labels"][0].as_object_mut().unwrap().remove("shots").unwrap();
        old["knn"].as_object_mut().unwrap().remove("shots").unwrap();
        assert_eq!(serde_json::from_value::<Row>(old).unwrap(), row);
    }

    #[test]
    fn labels_per_class_have_separate_columns() {
        let cell = |share, shots, labels| Cell { shots, ..Cell::of(share, labels, vec![0.5]) };
        let cells =
            [cell(1.0, None, 100), cell(0.1, None, 10), cell(0.1, Some(5), 10), cell(0.12, Some(5), 12)];
        let found = columns(cells.iter());
        let texts: Vec<_> =
            found.iter().map(|cell| format!("{} ({})", cell.column_name(), cell.labels)).collect();
        assert_eq!(texts, ["5 per class (10)", "10 % of labels (10)", "100 % of labels (100)"]);
    }
}
