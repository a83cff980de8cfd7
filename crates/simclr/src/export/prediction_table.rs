//! Tables of predictions: parquet, with a list of the probabilities and, in the metadata, its order of classes; or CSV, with a column for
//! each class.

use std::{collections::HashMap, io::Read, path::Path, sync::Arc};

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::{arrow::ArrowWriter, errors::ParquetError};
use simclr_data::{Dataset, atomic_file::persist, output};
use tch::Tensor;
use tempfile::NamedTempFile;

use super::parquet_file::{element, schema_of, temporary_file, writer};
use crate::EvalError;

/// Metadata of a parquet table: names of the classes as JSON, in the order of `probabilities`.
const CLASSES: &str = "classes";
/// Columns of every table, before the probabilities of all classes.
const COLUMNS: [&str; 4] = ["path", "part", "class", "probability"];
/// The list of a parquet table.
const PROBABILITIES: &str = "probabilities";
/// Before the name of a class in the header of a CSV table.
const PROBABILITY_OF: &str = "probability:";

/// For some hundred thousand classes.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The only kind of file that a table replaces.
const KIND: output::Kind = output::Kind { name: "a table of predictions", is_earlier: is_predictions };

fn is_predictions(path: &Path) -> bool {
    if let Some(found) = schema_of(path) {
        return found
            .fields()
            .iter()
            .map(|field| &field.name()[..])
            .eq([&COLUMNS[..], &[PROBABILITIES]].concat());
    }
    // Bounded, since any file may be at `path`, also one of gigabytes without a line break.
    let start = fs_err::File::open(path).map(|file| file.take(MAX_HEADER_BYTES));
    let header = start.ok().and_then(|start| csv::Reader::from_reader(start).headers().cloned().ok());
    header.is_some_and(|header| {
        let mut names = header.iter();
        names.by_ref().take(COLUMNS.len()).eq(COLUMNS)
            && header.len() > COLUMNS.len()
            && names.all(|name| name.starts_with(PROBABILITY_OF))
    })
}

/// File formats, by the ending of the name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Parquet,
    Csv,
}

impl Format {
    /// # Errors
    /// Another ending; a file at `out` that is no table of predictions, or would become a member of the set at `data`.
    pub(super) fn of(out: &Path, data: &Path) -> Result<Self, EvalError> {
        let format = match out.extension().and_then(|ending| ending.to_str()) {
            Some("parquet") => Self::Parquet,
            Some("csv") => Self::Csv,
            _ => {
                let reason = "expected a name that ends in .parquet or .csv".into();
                return Err(EvalError::File { path: out.to_owned(), reason });
            }
        };
        output::check(out, KIND, Some(data))?;
        Ok(format)
    }
}

/// Images of one part of a set, with their predictions.
pub(super) struct Rows<'a> {
    pub(super) set: &'a Dataset,
    /// Name of the part that the set is.
    pub(super) part: &'a str,
    /// Indices into the set.
    pub(super) rows: &'a [usize],
    /// `[n, classes]`, f32.
    pub(super) probabilities: &'a Tensor,
}

impl Rows<'_> {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|&row| &self.set.samples()[row].name[..])
    }

    /// Index and probability of the most probable class of each row.
    fn best(&self) -> Result<(Vec<i64>, Vec<f32>), EvalError> {
        let (probability, class) = self.probabilities.max_dim(1, false);
        Ok((class.try_into()?, probability.try_into()?))
    }

    fn values(&self) -> Result<Vec<f32>, EvalError> {
        Ok(self.probabilities.contiguous().view([-1]).try_into()?)
    }
}

/// A table written to a temporary file.
pub(super) struct Table<'a> {
    classes: &'a [String],
    writer: Writer,
}

enum Writer {
    Parquet(Box<ArrowWriter<NamedTempFile>>, Arc<Schema>),
    Csv(Box<csv::Writer<NamedTempFile>>),
}

impl<'a> Table<'a> {
    pub(super) fn create(format: Format, out: &Path, classes: &'a [String]) -> Result<Self, EvalError> {
        let writer = match format {
            Format::Parquet => {
                let schema = Arc::new(schema(classes));
                Writer::Parquet(Box::new(writer(out, &schema)?), schema)
            }
            Format::Csv => {
                let mut table = csv::Writer::from_writer(temporary_file(out)?);
                let header = COLUMNS.map(str::to_owned).into_iter();
                let header = header.chain(classes.iter().map(|class| format!("{PROBABILITY_OF}{class}")));
                table.write_record(header).map_err(|error| refused(out, &error))?;
                Writer::Csv(Box::new(table))
            }
        };
        Ok(Self { classes, writer })
    }

    pub(super) fn push(&mut self, rows: &Rows<'_>) -> Result<(), EvalError> {
        match &mut self.writer {
            Writer::Parquet(writer, schema) => {
                let batch = record_batch(schema, rows, self.classes)?;
                writer.write(&batch).map_err(|error| refused(writer.inner().path(), &error))
            }
            Writer::Csv(table) => push_lines(table, rows, self.classes),
        }
    }

    /// Moves the table to `out`.
    pub(super) fn finish(self, out: &Path) -> Result<(), EvalError> {
        let file = match self.writer {
            Writer::Parquet(writer, _) => writer.into_inner().map_err(|error| refused(out, &error))?,
            Writer::Csv(table) => table.into_inner().map_err(|error| refused(out, error.error()))?,
        };
        Ok(persist(file, out)?)
    }
}

fn schema(classes: &[String]) -> Schema {
    let [text @ .., probability] = COLUMNS;
    let mut columns: Vec<Field> = text.map(|name| Field::new(name, DataType::Utf8, false)).into();
    columns.push(Field::new(probability, DataType::Float32, false));
    let list = DataType::FixedSizeList(element(), classes.len() as i32);
    columns.push(Field::new(PROBABILITIES, list, false));
    let names = serde_json::json!(classes).to_string();
    Schema::new(columns).with_metadata(HashMap::from([(CLASSES.to_owned(), names)]))
}

fn record_batch(schema: &Arc<Schema>, of: &Rows<'_>, classes: &[String]) -> Result<RecordBatch, EvalError> {
    let (class, probability) = of.best()?;
    let lists = Arc::new(Float32Array::from(of.values()?));
    let columns = |lists| -> Result<RecordBatch, ParquetError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(of.names().map(Some).collect::<StringArray>()),
            Arc::new(of.rows.iter().map(|_| Some(of.part)).collect::<StringArray>()),
            Arc::new(class.iter().map(|&at| Some(&classes[at as usize])).collect::<StringArray>()),
            Arc::new(Float32Array::from(probability)),
            Arc::new(FixedSizeListArray::try_new(element(), classes.len() as i32, lists, None)?),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    };
    columns(lists).map_err(|error| EvalError::encoding("table of predictions", error))
}

/// Values have the digits that give the same f32 when read again.
fn push_lines(
    table: &mut csv::Writer<NamedTempFile>,
    of: &Rows<'_>,
    classes: &[String],
) -> Result<(), EvalError> {
    let (best, probability) = of.best()?;
    let values = of.values()?;
    let rows = of.names().zip(best).zip(probability).zip(values.chunks_exact(classes.len()));
    for (((name, class), probability), all) in rows {
        let own = [name, of.part, &classes[class as usize]].map(str::to_owned).into_iter();
        let line = own.chain(std::iter::once(&probability).chain(all).map(f32::to_string));
        table.write_record(line).map_err(|error| EvalError::encoding("table of predictions", error))?;
    }
    Ok(())
}

fn refused(path: &Path, error: &dyn std::fmt::Display) -> EvalError {
    EvalError::File { path: path.to_owned(), reason: error.to_string() }
}
