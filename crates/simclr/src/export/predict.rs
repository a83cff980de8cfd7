//! Predictions of a classifier for every image of a set, as parquet.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::{arrow::ArrowWriter, errors::ParquetError};
use simclr_data::{Dataset, Split, atomic_file::persist, dataset::Labels, output};
use tch::{Kind, Tensor};
use tempfile::NamedTempFile;

use super::parquet_file::{element, schema_of, writer};
use crate::{
    EvalError,
    eval::{
        classify::{Classifier, Tested},
        features::{BadImage, ReadOptions, stream},
    },
    train::RunFolder,
};

/// Metadata of the table: names of the classes as JSON, in the order of `probabilities`.
const CLASSES: &str = "classes";

/// Output of [`predict`], and the only kind of file it replaces.
const PREDICTIONS: output::Kind = output::Kind { name: "a table of predictions", is_earlier: is_predictions };

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

/// Writes class and probabilities of every image at `data` to `out`: columns `path`, `part`, `class`, `probability` and `probabilities`,
/// the latter in the order of the classes, which the metadata of the file lists.
///
/// # Errors
/// A name that does not end in .parquet, more bad images than the run allows, a file that cannot be written or must not be replaced.
pub fn predict(
    classifier: &Classifier,
    data: &Path,
    out: &Path,
    options: &PredictOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Predicted, EvalError> {
    if out.extension().is_none_or(|ending| ending != "parquet") {
        let reason = "expected a name that ends in .parquet".into();
        return Err(EvalError::File { path: out.to_owned(), reason });
    }
    let _held = RunFolder::around(out, None).map_err(Box::new)?;
    output::check(out, PREDICTIONS, Some(data))?;
    let decoding = classifier.encoder.decoding();
    let splits = options.split.map_or_else(|| Dataset::splits(data), |split| vec![split]);
    let open = |split| {
        Ok((split, Dataset::open_as(data, split, &decoding)?.labelled(&options.labels, data, &[split])?))
    };
    let sets: Vec<(Split, Dataset)> = splits.into_iter().map(open).collect::<Result<_, EvalError>>()?;
    let total: usize = sets.iter().map(|(_, set)| set.len()).sum();
    let read = ReadOptions::of(&classifier.encoder, options.batch, options.threads);
    let mut table = Table::create(out, &classifier.classes)?;
    let mut compared = Compared::default();
    let (mut before, mut bad) = (0, Vec::new());
    for (part, set) in &sets {
        let outputs = outputs(set, &classifier.classes);
        let indices: Vec<usize> = (0..set.len()).collect();
        let mut each = |pixels: &Tensor, rows: &[usize]| {
            let logits = classifier.logits(pixels)?;
            compared
                .push(&logits, rows.iter().map(|&row| outputs.as_ref()?[set.samples()[row].label? as usize]));
            table.push((set, part.name()), rows, &logits.softmax(1, Kind::Float))
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

/// A table written to a temporary file.
struct Table<'a> {
    writer: Box<ArrowWriter<NamedTempFile>>,
    schema: Arc<Schema>,
    classes: &'a [String],
}

impl<'a> Table<'a> {
    fn create(out: &Path, classes: &'a [String]) -> Result<Self, EvalError> {
        let names = (CLASSES.to_owned(), serde_json::json!(classes).to_string());
        let schema = Arc::new(schema(classes.len()).with_metadata(std::collections::HashMap::from([names])));
        let writer = Box::new(writer(out, &schema)?);
        Ok(Self { writer, schema, classes })
    }

    fn push(&mut self, (set, part): (&Dataset, &str), rows: &[usize], p: &Tensor) -> Result<(), EvalError> {
        let (best, class) = p.max_dim(1, false);
        let class = Vec::<i64>::try_from(class)?;
        let values = Vec::<f32>::try_from(p.contiguous().view([-1]))?;
        let width = self.classes.len() as i32;
        let columns = || {
            let name = |&row: &usize| Some(&set.samples()[row].name);
            let lists = Arc::new(Float32Array::from(values));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(rows.iter().map(name).collect::<StringArray>()),
                Arc::new(rows.iter().map(|_| Some(part)).collect::<StringArray>()),
                Arc::new(class.iter().map(|&at| Some(&self.classes[at as usize])).collect::<StringArray>()),
                Arc::new(Float32Array::from(Vec::<f32>::try_from(best).unwrap_or_default())),
                Arc::new(FixedSizeListArray::try_new(element(), width, lists, None)?),
            ];
            RecordBatch::try_new(self.schema.clone(), columns)
        };
        let written = columns().map_err(ParquetError::from).and_then(|batch| self.writer.write(&batch));
        written.map_err(|error| refused(self.writer.inner().path(), &error))
    }

    fn finish(self, out: &Path) -> Result<(), EvalError> {
        let file = self.writer.into_inner().map_err(|error| refused(out, &error))?;
        Ok(persist(file, out)?)
    }
}

fn schema(classes: usize) -> Schema {
    Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("part", DataType::Utf8, false),
        Field::new("class", DataType::Utf8, false),
        Field::new("probability", DataType::Float32, false),
        Field::new("probabilities", DataType::FixedSizeList(element(), classes as i32), false),
    ])
}

fn is_predictions(path: &Path) -> bool {
    schema_of(path).is_some_and(|found| {
        let names: Vec<&str> = found.fields().iter().map(|field| &field.name()[..]).collect();
        names == ["path", "part", "class", "probability", "probabilities"]
    })
}

fn refused(path: &Path, error: &ParquetError) -> EvalError {
    EvalError::File { path: path.to_owned(), reason: error.to_string() }
}
