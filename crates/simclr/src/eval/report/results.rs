//! What an evaluation found: written to `results.json`, shown as a table. Accuracies are shares in `[0, 1]`.

use serde::{Deserialize, Serialize};
use simclr_data::augment::EvalTransform;

use crate::eval::report::per_class::PerClass;
use crate::eval::report::results_cache::Figure;

/// Version of the layout of `results.json`. 5: `per_class` of rows and `shots` of cells, which files of version 4 lack.
pub const SCHEMA: u32 = 5;

/// All figures of one evaluation and everything they depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of this program.
    pub simclr: String,
    /// What was evaluated.
    pub run: RunFacts,
    /// On what.
    pub data: DataFacts,
    /// How.
    pub protocol: ProtocolFacts,
    /// Every option that figures depend on, as given or by default.
    #[serde(default)]
    pub options: serde_json::Value,
    /// Trained h first, then the controls, then the protocols that train.
    pub rows: Vec<Row>,
    /// The transfer protocol on other data sets.
    pub transfer: Vec<TransferRow>,
    /// Whatever a reader of the table must know: unfinished run, hold-out for want of a test split, bad images.
    pub notes: Vec<String>,
}

/// What was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Architecture in words.
    pub encoder: String,
    /// F.
    pub feature_dim: i64,
    /// S.
    pub image_size: usize,
    /// What the encoder saw of an image; older results do not say.
    #[serde(default)]
    pub transform: Option<EvalTransform>,
    /// C.
    pub channels: i64,
    /// File name of the checkpoint, the newest of the run.
    pub checkpoint: String,
    /// Digest of architecture and weights; empty in results of earlier versions.
    #[serde(default)]
    pub weights: String,
    /// Steps done.
    pub step: u64,
    /// Steps planned, where known.
    pub total_steps: Option<u64>,
    /// Seed of the run.
    pub seed: u64,
}

/// On what it was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// As given.
    pub path: String,
    /// K.
    pub classes: usize,
    /// Images of the training part (the bank), bad ones left out.
    pub train_images: usize,
    /// Images of the test part, bad ones left out.
    pub test_images: usize,
    /// Fingerprint of the training split.
    pub train_fingerprint: String,
    /// Fingerprint of the test split; none where it is a hold-out of the training split.
    pub test_fingerprint: Option<String>,
    /// Digest of the stored bytes of all images of the training split; none where it is not known.
    #[serde(default)]
    pub train_content: Option<String>,
    /// The same of the test split.
    #[serde(default)]
    pub test_content: Option<String>,
    /// Images that could not be decoded: name and reason.
    pub bad: Vec<(String, String)>,
}

/// How it was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProtocolFacts {
    /// Neighbours, as used.
    pub knn_k: i64,
    /// Temperature of the votes exp(sim / T); none = plain majority.
    pub knn_temperature: Option<f64>,
    /// Neighbours of the retrieval.
    pub retrieval_k: i64,
    /// The linear classifier in words.
    pub linear: String,
    /// Candidates for lambda.
    pub lambdas: Vec<f64>,
    /// Seed of subsets, hold-outs and folds.
    pub seed: u64,
    /// Seeds of the random-init encoders.
    pub random_init_seeds: Vec<u64>,
    /// The protocols that train, in words, by the name of their row.
    pub trained: Vec<(String, String)>,
}

/// One data set of the transfer protocol (spec 8.4, 8.6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferRow {
    /// As given.
    pub data: String,
    /// Fingerprint of its training split.
    pub fingerprint: String,
    /// What is reported, by its name on the command line.
    pub metric: Metric,
    /// Training and test images.
    pub images: (usize, usize),
    /// Trained h, `[0, 1]`.
    pub trained: f64,
    /// The random-init encoder, `[0, 1]`.
    pub random_init: Option<f64>,
    /// Regularisation chosen for the trained h.
    pub lambda: f64,
    /// What the regularisation was chosen on.
    pub validation: String,
    /// Accuracy of each class on trained h, by class name; none where no test image is of the class.
    pub per_class: Vec<(String, Option<f64>)>,
    /// File in the run folder with the predicted labels of trained h.
    pub predictions: String,
    /// The whole network fine-tuned from the run's weights (spec 8.5), where that was asked for.
    #[serde(default)]
    pub finetuned: Option<Tuned>,
    /// The same from fresh weights.
    #[serde(default)]
    pub fresh: Option<Tuned>,
    /// What a reader of the figures must know of the set.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One network fine-tuned on a set of the transfer protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The set's metric on its test part, `[0, 1]`.
    pub figure: f64,
    /// Chosen learning rate.
    pub learning_rate: f64,
    /// Chosen weight decay as it was used: the grid's value divided by the learning rate.
    pub weight_decay: f64,
    /// Steps of the training that was tested.
    pub steps: u64,
    /// Images per step.
    pub batch: usize,
    /// Images trained on, validation part included.
    pub images: usize,
    /// File in the run folder with the predicted labels.
    pub predictions: String,
}

/// What a data set is judged by (spec 8.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Share of right answers (Food-101, CIFAR, Birdsnap, SUN397, Cars, DTD).
    #[default]
    Top1,
    /// Mean over classes of their accuracies (Aircraft, Pets, Caltech-101, Flowers).
    MeanPerClass,
    /// Mean over classes of the 11-point average precision (VOC2007).
    Map11,
}

/// One encoder or control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `trained h`, `random-init h` (and so for every layer), `raw pixels`, `chance`: frozen, under kNN and linear classifiers;
    /// after them the protocols that train, by name.
    pub name: String,
    /// Dimensions that the classifiers saw; 0 for chance.
    pub dimensions: i64,
    /// Weighted kNN with all labels.
    pub knn: Option<Cell>,
    /// kNN by plain majority, the same neighbours.
    pub knn_plain: Option<Cell>,
    /// Retrieval: mean precision among the [`ProtocolFacts::retrieval_k`] nearest training images.
    pub retrieval: Option<Cell>,
    /// A classifier with few and with all labels: one cell for each column that the protocol was run with, ascending in the
    /// share of the labels.
    pub by_labels: Vec<Cell>,
    /// Trained rows: `kNN` and `linear` with all labels, by class.
    #[serde(default)]
    pub per_class: Vec<(String, PerClass)>,
}

impl Metric {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Top1 => "top-1",
            Self::MeanPerClass => "mean-per-class",
            Self::Map11 => "map-11",
        }
    }

    /// The metric of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Top1, Self::MeanPerClass, Self::Map11].into_iter().find(|metric| metric.name() == name)
    }
}

impl TransferRow {
    /// Its notes, with the name of the set.
    pub(crate) fn notes_on_set(&self) -> impl Iterator<Item = String> {
        self.notes.iter().map(|note| format!("{}: {note}", self.data))
    }

    /// What was chosen for the fine-tuned networks, a line each.
    fn tuned_words(&self) -> Vec<String> {
        let line = |(name, tuned): (&str, &Option<Tuned>)| {
            let Tuned { learning_rate, weight_decay, steps, batch, .. } = tuned.as_ref()?;
            Some(format!(
                "{}, {name}: learning rate {learning_rate:.1e}, weight decay {weight_decay:.1e}, {steps} steps of {batch}\n",
                self.data
            ))
        };
        [("fine-tuned", &self.finetuned), ("fresh weights", &self.fresh)]
            .into_iter()
            .filter_map(line)
            .collect()
    }
}

impl Row {
    /// The classifier's cell with this share of the labels.
    pub fn at(&self, share: f64) -> Option<&Cell> {
        self.by_labels.iter().find(|cell| cell.shots.is_none() && cell.share == share)
    }

    /// The classifier's cell in the column of `other`.
    pub(crate) fn like(&self, other: &Cell) -> Option<&Cell> {
        self.by_labels.iter().find(|cell| cell.same_column(other))
    }
}

/// One figure: mean and spread over draws (subsets of labels, seeds of random encoders).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Share of the training labels asked for, or that `shots` come to.
    pub share: f64,
    /// Labels per class asked for, in place of a share.
    #[serde(default)]
    pub shots: Option<usize>,
    /// Labels used in each draw.
    pub labels: usize,
    /// Test accuracy of each draw.
    pub accuracies: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (n - 1); 0 for one draw.
    pub std: f64,
    /// Regularisation chosen in each draw; empty where there is none.
    pub lambdas: Vec<f64>,
    /// How each fit ended, or the learning rate that was chosen; empty for kNN and chance.
    pub fits: Vec<String>,
    /// Files in the run folder with the predicted labels of each draw, for tests of significance; empty for chance.
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

    /// Whether both are of one share, or of one number of labels per class.
    pub(crate) fn same_column(&self, other: &Self) -> bool {
        self.shots == other.shots && (self.shots.is_some() || self.share == other.share)
    }

    /// `10 % of labels` or `5 per class`.
    pub(crate) fn share_text(&self) -> String {
        let share = format!("{} % of labels", 100.0 * self.share);
        self.shots.map_or(share, |shots| format!("{shots} per class"))
    }

    /// With regularisation, endings and files of predictions.
    pub(crate) fn of_figures(share: f64, labels: usize, figures: Vec<Figure>) -> Self {
        let cell = Self::of(share, labels, figures.iter().map(|figure| figure.value).collect());
        let lambdas = figures.iter().filter_map(|figure| figure.lambda).collect();
        let fits = figures.iter().map(|figure| figure.how.clone()).filter(|how| !how.is_empty()).collect();
        let predicted = figures.iter().filter(|figure| figure.answers.is_some());
        let predictions = predicted.map(|figure| figure.file.clone()).collect();
        Self { lambdas, fits, predictions, ..cell }
    }

    /// Percent with one decimal, spread where there are several draws.
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

    /// Test accuracy in percent, aligned for a terminal, notes below.
    pub fn table(&self) -> String {
        let mut lines = vec![self.headings()];
        let (retrieval, columns) = (self.has_retrieval(), self.columns());
        lines.extend(self.rows.iter().map(|row| {
            let known =
                [Some(&row.knn), Some(&row.knn_plain), retrieval.then_some(&row.retrieval)].into_iter();
            let by_share = columns.iter().map(|column| row.like(column).map_or("-".into(), Cell::text));
            let cells = known.flatten().map(|cell| cell.as_ref().map_or("-".into(), Cell::text));
            std::iter::once(row.name.clone()).chain(cells).chain(by_share).collect()
        }));
        let mut text = format!("test accuracy in %, {} test images", self.data.test_images);
        text.extend(self.run.transform.as_ref().map(|transform| format!("; input: {transform}")));
        text.push('\n');
        text.push_str(&aligned(&lines));
        text.push_str(&format!("linear classifier: {}\n", self.protocol.linear));
        for row in &self.rows {
            if let Some(cell) = row.by_labels.last().filter(|cell| !cell.lambdas.is_empty()) {
                let lambdas: Vec<String> =
                    cell.lambdas.iter().map(|lambda| format!("{lambda:.0e}")).collect();
                text.push_str(&format!("lambda of {} with all labels: {}\n", row.name, lambdas.join(", ")));
            }
        }
        for row in &self.rows {
            let tables = row.per_class.iter();
            tables.for_each(|(name, found)| {
                text.push_str(&found.text(&format!("\n{name} on {}, all labels", row.name)))
            });
        }
        for (name, protocol) in &self.protocol.trained {
            text.push_str(&format!("{name}: {protocol}\n"));
        }
        if !self.transfer.is_empty() {
            text.push_str("\ntransfer, test figures in %: sum cross-entropy + lambda/2 |W|^2 on features as they are, L-BFGS\n");
            text.push_str(&aligned(&self.transfer_lines()));
            self.transfer.iter().flat_map(TransferRow::tuned_words).for_each(|line| text.push_str(&line));
        }
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }

    fn headings(&self) -> Vec<String> {
        let k = self.protocol.knn_k;
        let mut headings = vec![String::new(), format!("kNN (k={k})"), "plain kNN".into()];
        if self.has_retrieval() {
            headings.push(format!("precision at {}", self.protocol.retrieval_k));
        }
        let columns = self.columns().into_iter();
        headings.extend(columns.map(|column| format!("{} ({})", column.share_text(), column.labels)));
        headings
    }

    fn transfer_lines(&self) -> Vec<Vec<String>> {
        let mut headings =
            vec!["data", "metric", "images", "trained h", "random-init h", "lambda", "chosen on"];
        let tuned = self.transfer.iter().any(|row| row.finetuned.is_some());
        if tuned {
            headings.extend(["fine-tuned", "fresh weights"]);
        }
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let line = |row: &TransferRow| {
            let control = row.random_init.map_or("-".into(), percent);
            let images = format!("{} + {}", row.images.0, row.images.1);
            let lambda = format!("{:.1e}", row.lambda);
            let (metric, chosen_on) = (row.metric.name().into(), row.validation.clone());
            let mut line =
                vec![row.data.clone(), metric, images, percent(row.trained), control, lambda, chosen_on];
            let figure = |tuned: &Option<Tuned>| tuned.as_ref().map_or("-".into(), |t| percent(t.figure));
            if tuned {
                line.extend([figure(&row.finetuned), figure(&row.fresh)]);
            }
            line
        };
        let headings = headings.into_iter().map(str::to_owned).collect();
        std::iter::once(headings).chain(self.transfer.iter().map(line)).collect()
    }

    fn has_retrieval(&self) -> bool {
        self.rows.iter().any(|row| row.retrieval.is_some())
    }

    /// A cell of each column that any row has, ascending in the share of the labels.
    pub(crate) fn columns(&self) -> Vec<&Cell> {
        columns(self.rows.iter().flat_map(|row| &row.by_labels))
    }
}

/// One of `cells` for each column, ascending in the share of the labels.
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

/// First column left, all others right.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |line: &[String], column: usize| line.get(column).cloned().unwrap_or_default();
    let width =
        |column: usize| lines.iter().map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, &width) in widths.iter().enumerate() {
            let cell = cell(line, column);
            text.push_str(&if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("   {cell:>width$}")
            });
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_knows_mean_and_spread() {
        let cell = Cell::of(0.1, 60, vec![0.5, 0.6, 0.7]);
        assert!((cell.mean - 0.6).abs() < 1e-12 && (cell.std - 0.1).abs() < 1e-12);
        assert_eq!(cell.text(), "60.0 ±10.0");
        assert_eq!(Cell::of(1.0, 60, vec![0.8065]).text(), "80.7");
    }

    #[test]
    fn rows_of_version_4_are_still_read() {
        let (cell, per_class) = (Cell::of(0.1, 60, vec![0.5]), Vec::new());
        let (name, by_labels) = ("trained h".into(), vec![cell.clone()]);
        let row = Row {
            name,
            dimensions: 8,
            knn: Some(cell),
            knn_plain: None,
            retrieval: None,
            by_labels,
            per_class,
        };
        let mut old = serde_json::to_value(&row).unwrap();
        old.as_object_mut().unwrap().remove("per_class").unwrap();
        old["by_labels"][0].as_object_mut().unwrap().remove("shots").unwrap();
        old["knn"].as_object_mut().unwrap().remove("shots").unwrap();
        assert_eq!(serde_json::from_value::<Row>(old).unwrap(), row);
    }

    #[test]
    fn labels_per_class_have_columns_of_their_own() {
        let cell = |share, shots, labels| Cell { shots, ..Cell::of(share, labels, vec![0.5]) };
        let cells =
            [cell(1.0, None, 100), cell(0.1, None, 10), cell(0.1, Some(5), 10), cell(0.12, Some(5), 12)];
        let found = columns(cells.iter());
        let texts: Vec<_> =
            found.iter().map(|cell| format!("{} ({})", cell.share_text(), cell.labels)).collect();
        assert_eq!(texts, ["5 per class (10)", "10 % of labels (10)", "100 % of labels (100)"]);
    }

    #[test]
    fn columns_are_aligned() {
        let lines = [vec![String::new(), "kNN".into()], vec!["raw pixels".into(), "8.0 ±1.0".into()]];
        assert_eq!(aligned(&lines), "                  kNN\nraw pixels   8.0 ±1.0\n");
    }
}
