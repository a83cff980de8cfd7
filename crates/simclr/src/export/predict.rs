//! Predictions of a classifier for every image of a set, as a table.

use std::path::{Path, PathBuf};

use simclr_data::{Dataset, Split, dataset::Labels};
use tch::{Kind, Tensor};

use super::prediction_table::{Format, Rows, Table};
use crate::{
    EvalError,
    eval::{
        classify::{Classifier, Tested},
        features::{BadImage, ReadOptions, stream},
    },
    train::RunFolder,
};

/// Options of [`predict`].
#[derive(Debug, Clone, PartialEq)]
pub struct PredictOptions {
    /// One split; none = every image of the set.
    pub split: Option<Split>,
    /// Source of labels, with which predictions are compared.
    pub labels: Labels,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    pub threads: usize,
}

/// Result of [`predict`].
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// The table.
    pub path: PathBuf,
    /// Rows.
    pub images: usize,
    /// Undecodable images, which have no row.
    pub bad: Vec<BadImage>,
    /// Against the labels of the set; none if it has none, or classes that the classifier does not know.
    pub tested: Option<Tested>,
}

/// Writes class and probabilities of every image at `data` to `out`: columns `path`, `part`, `class` and `probability`; in a `.parquet`
/// file then the list `probabilities`, in the order of the classes that the metadata of the file holds; in a `.csv` file a column
/// `probability:CLASS` for each class.
///
/// # Errors
/// A name that ends in neither .parquet nor .csv, more bad images than the run allows, a file that cannot be written or must not be replaced.
pub fn predict(
    classifier: &Classifier,
    data: &Path,
    out: &Path,
    options: &PredictOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Predicted, EvalError> {
    let _held = RunFolder::around(out, None).map_err(Box::new)?;
    let format = Format::of(out, data)?;
    let decoding = classifier.encoder.decoding();
    let splits = options.split.map_or_else(|| Dataset::splits(data), |split| vec![split]);
    let open = |split| {
        Ok((split, Dataset::open_as(data, split, &decoding)?.labelled(&options.labels, data, &[split])?))
    };
    let sets: Vec<(Split, Dataset)> = splits.into_iter().map(open).collect::<Result<_, EvalError>>()?;
    let total: usize = sets.iter().map(|(_, set)| set.len()).sum();
    let read = ReadOptions::of(&classifier.encoder, options.batch, options.threads);
    let mut table = Table::create(format, out, &classifier.classes)?;
    let mut compared = Compared::default();
    let (mut before, mut bad) = (0, Vec::new());
    for (part, set) in &sets {
        let outputs = outputs(set, &classifier.classes);
        let indices: Vec<usize> = (0..set.len()).collect();
        let mut each = |pixels: &Tensor, rows: &[usize]| {
            let logits = classifier.logits(pixels)?;
            compared
                .push(&logits, rows.iter().map(|&row| outputs.as_ref()?[set.samples()[row].label? as usize]));
            let probabilities = &logits.softmax(1, Kind::Float);
            table.push(&Rows { set, part: part.name(), rows, probabilities })
        };
        bad.extend(stream(set, &indices, &read, &mut each, &mut |done, _| progress(before + done, total))?);
        before += set.len();
    }
    table.finish(out)?;
    let tested = compared.tested(&classifier.classes);
    Ok(Predicted { path: out.to_owned(), images: total - bad.len(), bad, tested })
}

/// The output of each class of `set`, by name; none if the classifier does not have one of them.
fn outputs(set: &Dataset, classes: &[String]) -> Option<Vec<Option<i64>>> {
    let position = |name: &String| classes.iter().position(|class| class == name).map(|at| at as i64);
    let found: Vec<Option<i64>> = set.classes().iter().map(position).collect();
    found.iter().all(Option::is_some).then_some(found)
}

/// Logits and labels of the images that have one.
#[derive(Default)]
struct Compared {
    logits: Vec<Tensor>,
    labels: Vec<i64>,
}

impl Compared {
    fn push(&mut self, logits: &Tensor, labels: impl Iterator<Item = Option<i64>>) {
        let (rows, labels): (Vec<i64>, Vec<i64>) =
            labels.enumerate().filter_map(|(row, label)| Some((row as i64, label?))).unzip();
        if !rows.is_empty() {
            self.logits.push(logits.index_select(0, &Tensor::from_slice(&rows)));
            self.labels.extend(labels);
        }
    }

    fn tested(&self, classes: &[String]) -> Option<Tested> {
        let labels = (!self.labels.is_empty()).then(|| Tensor::from_slice(&self.labels))?;
        Some(Tested::of(&Tensor::cat(&self.logits, 0), &labels, classes))
    }
}
