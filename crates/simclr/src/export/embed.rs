//! Export of features h with image paths: parquet (columns `path`, `part`, `label`, `class`, `h`), or `.npy` with a separate
//! text file of paths, one a line.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, FieldRef, Schema};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ArrowReaderMetadata},
    basic::Compression,
    file::properties::WriterProperties,
};
use simclr_data::{
    DataError, Dataset, Split,
    atomic_file::{self, persist},
    augment::{EvalTransform, TransformChange},
    dataset::Labels,
    decode::Decoding,
    output,
};
use tch::Tensor;
use tempfile::NamedTempFile;

use super::npy::{self, NpyWriter};
use crate::{
    EvalError,
    device::DeviceChoice,
    eval::{
        features::{BadImage, ReadOptions, flat_pixels, load_encoder_on, pixel_dim, stream},
        layer::Layer,
    },
    train::RunFolder,
};

/// Options of [`embed`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedOptions {
    /// One split; none = every image of the set.
    pub split: Option<Split>,
    /// Source of the labels.
    pub labels: Labels,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    pub threads: usize,
    /// Device instead of the run's.
    pub device: Option<DeviceChoice>,
    /// Write the raw pixels of an evaluation's control instead of h.
    pub pixels: bool,
    /// Changes of the run's input transform.
    pub transform: TransformChange,
    /// The output of the model; its parquet column is called `h` in any case.
    pub layer: Layer,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        let transform = TransformChange::default();
        let labels = Labels::Auto;
        let (batch, threads, device) = (256, 0, None);
        Self { split: None, labels, batch, threads, device, pixels: false, transform, layer: Layer::H }
    }
}

/// Result of [`embed`].
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The table.
    pub path: PathBuf,
    /// The file of paths of a `.npy`.
    pub paths_file: Option<PathBuf>,
    /// Rows n.
    pub images: usize,
    /// F, or the number of pixel values.
    pub feature_dim: usize,
    /// Input transform.
    pub transform: EvalTransform,
    /// Caveats about transform and data set.
    pub notes: Vec<String>,
    /// Undecodable images, which have no row.
    pub bad: Vec<BadImage>,
}

/// Writes h of every image at `data` to `out`, `.parquet` or `.npy` by its name. Only an earlier table is replaced, once the
/// new one is whole.
///
/// # Errors
/// Another ending, no checkpoint, more bad images than the run allows, or a file that cannot be written or must not be
/// replaced.
pub fn embed(
    run: &RunFolder,
    data: &Path,
    out: &Path,
    options: &EmbedOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Embedded, EvalError> {
    let format = Format::of(out)?;
    let _held = RunFolder::around(out, Some(run)).map_err(Box::new)?;
    format.check(out, data)?;
    let frozen = load_encoder_on(run, options.device)?.with_transform(&options.transform)?;
    let sets = open(data, options, &frozen.decoding())?;
    let read = ReadOptions::of(&frozen, options.batch, options.threads);
    let total: usize = sets.iter().map(|(_, set)| set.len()).sum();
    let layer = frozen.layer_dim(options.layer)?;
    let width = if options.pixels { pixel_dim(&frozen) } else { layer } as usize;
    let mut table = Table::create(format, out, width)?;
    let (mut before, mut bad) = (0, Vec::new());
    for (part, set) in &sets {
        let indices: Vec<usize> = (0..set.len()).collect();
        let mut each = |pixels: &Tensor, rows: &[usize]| {
            let values =
                if options.pixels { flat_pixels(pixels) } else { frozen.layers(pixels, &[options.layer])? };
            table.push((set, part.name()), rows, &values)
        };
        let mut report = |done: usize, _: usize| progress(before + done, total);
        bad.extend(stream(set, &indices, &read, &mut each, &mut report)?);
        before += set.len();
    }
    let images = total - bad.len();
    let paths_file = table.finish(out)?;
    let transform = read.transform;
    let shapes = sets.first().and_then(|(_, set)| transform.note_on_shapes(set));
    let of_sets = sets.iter().flat_map(|(_, set)| set.notes()).cloned();
    let notes = frozen.origin().assumed.iter().cloned().chain(shapes).chain(of_sets).collect();
    Ok(Embedded { path: out.to_owned(), paths_file, images, feature_dim: width, transform, notes, bad })
}

/// One split, or all there are.
fn open(data: &Path, options: &EmbedOptions, how: &Decoding) -> Result<Vec<(Split, Dataset)>, EvalError> {
    let splits = options.split.map_or_else(|| Dataset::splits(data), |split| vec![split]);
    let open =
        |split| Ok((split, Dataset::open_as(data, split, how)?.labelled(&options.labels, data, &[split])?));
    splits.into_iter().map(open).collect()
}

/// A parquet file with exactly the columns of [`embed`].
const PARQUET: output::Kind = output::Kind { name: "a table of features", is_earlier: is_table };
/// A `.npy` file of [`embed`] with a file of as many paths.
const NPY: output::Kind =
    output::Kind { name: "a table of features with its file of paths", is_earlier: is_array };
/// That file of paths, which is replaced together with its array only.
const PATHS: output::Kind = output::Kind { name: "the paths of a table of features", is_earlier: |_| false };

fn is_table(path: &Path) -> bool {
    let file = fs_err::File::open(path).map(|file| file.into_parts().0);
    let found = file.ok().and_then(|file| ArrowReaderMetadata::load(&file, Default::default()).ok());
    found.is_some_and(|found| {
        let columns = found.schema().fields();
        let width = columns.last().and_then(|column| match column.data_type() {
            DataType::FixedSizeList(_, width) => Some(*width as usize),
            _ => None,
        });
        width.is_some_and(|width| {
            let expected = schema(width);
            let is_same =
                |(a, b): (&FieldRef, &FieldRef)| a.name() == b.name() && a.data_type() == b.data_type();
            let mut without_part = expected.fields().to_vec();
            without_part.remove(1);
            // Earlier versions wrote no column of parts.
            [expected.fields().to_vec(), without_part]
                .iter()
                .any(|expected| columns.len() == expected.len() && columns.iter().zip(expected).all(is_same))
        })
    })
}

fn is_array(path: &Path) -> bool {
    let rows = npy::rows(path);
    let lines = fs_err::read(paths_file(path)).map(|text| text.iter().filter(|&&byte| byte == b'\n').count());
    rows.is_some() && rows == lines.ok()
}

/// The file of paths of a `.npy`.
fn paths_file(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".paths.txt");
    name.into()
}

#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Npy,
}

impl Format {
    /// Refuses to replace anything but an earlier table.
    fn check(self, out: &Path, data: &Path) -> Result<(), DataError> {
        match self {
            Self::Parquet => output::check(out, PARQUET, Some(data)),
            Self::Npy => {
                output::check(out, NPY, Some(data))?;
                if out.exists() { Ok(()) } else { output::check(&paths_file(out), PATHS, Some(data)) }
            }
        }
    }

    fn of(out: &Path) -> Result<Self, EvalError> {
        match out.extension().and_then(|ending| ending.to_str()) {
            Some("parquet") => Ok(Self::Parquet),
            Some("npy") => Ok(Self::Npy),
            _ => {
                let reason = "expected a name that ends in .parquet or .npy".into();
                Err(EvalError::File { path: out.to_owned(), reason })
            }
        }
    }
}

/// A table written to a temporary file.
enum Table {
    Parquet { writer: Box<ArrowWriter<NamedTempFile>>, schema: Arc<Schema> },
    Npy { writer: NpyWriter<NamedTempFile>, paths: NamedTempFile },
}

impl Table {
    fn create(format: Format, out: &Path, width: usize) -> Result<Self, EvalError> {
        Ok(match format {
            Format::Parquet => {
                let schema = Arc::new(schema(width));
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let writer = ArrowWriter::try_new(temporary_file(out)?, schema.clone(), Some(properties));
                Self::Parquet { writer: Box::new(writer.map_err(|error| parquet_error(out, error))?), schema }
            }
            Format::Npy => Self::Npy {
                writer: NpyWriter::new(temporary_file(out)?, width)?,
                paths: temporary_file(out)?,
            },
        })
    }

    /// Appends h `[rows, F]` of the images `rows` of the part `part`.
    fn push(&mut self, (set, part): (&Dataset, &str), rows: &[usize], h: &Tensor) -> Result<(), EvalError> {
        let values = Vec::<f32>::try_from(h.contiguous().view([-1]))?;
        match self {
            Self::Parquet { writer, schema } => {
                let batch = record_batch(schema, (set, part), rows, values);
                let written =
                    batch.map_err(parquet::errors::ParquetError::from).and_then(|batch| writer.write(&batch));
                written.map_err(|error| parquet_error(writer.inner().path(), error))
            }
            Self::Npy { writer, paths } => {
                writer.push(&values)?;
                for &row in rows {
                    // A line break inside a name would shift every line after it.
                    writeln!(paths, "{}", set.samples()[row].name.replace(['\n', '\r'], "\u{fffd}"))?;
                }
                Ok(())
            }
        }
    }

    /// Finishes the file and moves it to `out`; returns the file of paths of a `.npy`.
    fn finish(self, out: &Path) -> Result<Option<PathBuf>, EvalError> {
        match self {
            Self::Parquet { writer, .. } => {
                persist(writer.into_inner().map_err(|error| parquet_error(out, error))?, out)?;
                Ok(None)
            }
            Self::Npy { writer, paths } => {
                let paths_file = paths_file(out);
                persist(paths, &paths_file)?;
                persist(writer.finish()?, out)?;
                Ok(Some(paths_file))
            }
        }
    }
}

fn schema(width: usize) -> Schema {
    Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("part", DataType::Utf8, false),
        Field::new("label", DataType::Int32, true),
        Field::new("class", DataType::Utf8, true),
        Field::new("h", DataType::FixedSizeList(element(), width as i32), false),
    ])
}

fn element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Float32, false))
}

fn record_batch(
    schema: &Arc<Schema>,
    (set, part): (&Dataset, &str),
    rows: &[usize],
    values: Vec<f32>,
) -> Result<RecordBatch, arrow_schema::ArrowError> {
    let samples = || rows.iter().map(|&row| &set.samples()[row]);
    let class = |label: u32| set.classes().get(label as usize).cloned();
    let width = (values.len() / rows.len()) as i32;
    let h = FixedSizeListArray::try_new(element(), width, Arc::new(Float32Array::from(values)), None)?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(samples().map(|sample| Some(&sample.name)).collect::<StringArray>()),
        Arc::new(samples().map(|_| Some(part)).collect::<StringArray>()),
        Arc::new(samples().map(|sample| sample.label.map(|label| label as i32)).collect::<Int32Array>()),
        Arc::new(samples().map(|sample| sample.label.and_then(class)).collect::<StringArray>()),
        Arc::new(h),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

/// In the folder of `out`, which is created.
fn temporary_file(out: &Path) -> Result<NamedTempFile, std::io::Error> {
    if let Some(folder) = out.parent() {
        fs_err::create_dir_all(folder)?;
    }
    atomic_file::create(out)
}

fn parquet_error(path: &Path, error: impl std::fmt::Display) -> EvalError {
    EvalError::encoding(format!("`{}`", path.display()), error)
}
