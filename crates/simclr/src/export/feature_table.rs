//! Tables of features: parquet (columns `path`, `part`, `label`, `class`, on request `x`, `y` and `image`, then `h`), `.npy` with a
//! separate text file of paths, one a line, or `.tsv` for TensorBoard's projector.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{
    ArrayRef, BinaryArray, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, StringArray,
    StructArray, cast::AsArray, types::Float32Type,
};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Fields, Schema};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
};
use simclr_data::{DataError, atomic_file::persist, contact_sheet::ContactSheet, output};
use tch::Tensor;
use tempfile::NamedTempFile;

use super::{
    npy::{self, NpyWriter},
    parquet_file::{element, schema_of, temporary_file, writer},
    projector::{self, Projector},
    rows::{JPEG_QUALITY, Rows, planes, values},
};
use crate::{
    EvalError,
    explore::projection::{Places, Projected, Projection},
};

/// What a table contains on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoreColumns {
    /// `x` and `y`: places of the rows, scaled to unit length.
    pub map: Option<Projection>,
    /// What the encoder sees: a column `image` of JPEGs as `bytes` and `path`, the way Hugging Face tables hold images; for `.tsv` a
    /// sheet of pictures.
    pub images: bool,
}

/// Of UMAP, as that of a report by default.
const MAP_SEED: u64 = 0;

/// A parquet file with exactly the columns of `embed`.
const PARQUET: output::Kind = output::Kind { name: "a table of features", is_earlier: is_table };
/// A `.npy` file of `embed` with a file of as many paths.
const NPY: output::Kind =
    output::Kind { name: "a table of features with its file of paths", is_earlier: is_array };
/// That file of paths, which is replaced together with its array only.
const PATHS: output::Kind = output::Kind { name: "the paths of a table of features", is_earlier: |_| false };

fn is_table(path: &Path) -> bool {
    schema_of(path).is_some_and(|found| {
        let columns = found.fields();
        let width = columns.last().and_then(|column| match column.data_type() {
            DataType::FixedSizeList(_, width) => Some(*width as usize),
            _ => None,
        });
        width.is_some_and(|width| {
            let all = schema(width, MoreColumns { map: Some(Projection::Pca), images: true });
            let expected = all.fields().iter().filter(|column| {
                // Earlier versions wrote no column of parts.
                let may_lack = ["part", "x", "y", "image"].contains(&column.name().as_str());
                !may_lack || columns.find(column.name()).is_some()
            });
            let kinds = |column: &FieldRef| (column.name().clone(), column.data_type().clone());
            expected.map(kinds).eq(columns.iter().map(kinds))
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
pub(super) enum Format {
    Parquet,
    Npy,
    Tsv,
}

impl Format {
    /// Refuses to replace anything but an earlier table.
    pub(super) fn check(self, out: &Path, data: &Path) -> Result<(), DataError> {
        match self {
            Self::Parquet => output::check(out, PARQUET, Some(data)),
            Self::Npy => {
                output::check(out, NPY, Some(data))?;
                if out.exists() { Ok(()) } else { output::check(&paths_file(out), PATHS, Some(data)) }
            }
            Self::Tsv => projector::check(out, data),
        }
    }

    pub(super) fn of(out: &Path, more: MoreColumns) -> Result<Self, EvalError> {
        let reason = match out.extension().and_then(|ending| ending.to_str()) {
            Some("parquet") => return Ok(Self::Parquet),
            Some("npy") if more == MoreColumns::default() => return Ok(Self::Npy),
            Some("tsv") if more.map.is_none() => return Ok(Self::Tsv),
            Some("tsv") => {
                "expected a name that ends in .parquet: the projector computes its own maps of a .tsv file"
            }
            Some("npy") => "expected a name that ends in .parquet: an .npy file holds no map and no images",
            _ => "expected a name that ends in .parquet, .npy or .tsv",
        };
        Err(EvalError::File { path: out.to_owned(), reason: reason.into() })
    }
}

/// A table written to a temporary file.
pub(super) enum Table {
    Parquet(Box<ParquetTable>),
    Npy { writer: NpyWriter<NamedTempFile>, paths: NamedTempFile },
    Tsv(Box<Projector>),
}

impl Table {
    /// For at most `rows` rows of `width` values, of images of `side` pixels a side.
    pub(super) fn create(
        format: Format,
        out: &Path,
        [rows, width, side]: [usize; 3],
        more: MoreColumns,
    ) -> Result<Self, EvalError> {
        Ok(match format {
            Format::Parquet => Self::Parquet(Box::new(ParquetTable::create(out, width, more)?)),
            Format::Npy => Self::Npy {
                writer: NpyWriter::new(temporary_file(out)?, width)?,
                paths: temporary_file(out)?,
            },
            Format::Tsv => Self::Tsv(Box::new(Projector::create(out, rows, more.images.then_some(side))?)),
        })
    }

    pub(super) fn push(&mut self, rows: Rows<'_>) -> Result<(), EvalError> {
        match self {
            Self::Parquet(table) => table.push(&rows),
            Self::Tsv(table) => table.push(&rows),
            Self::Npy { writer, paths } => {
                writer.push(&values(rows.h)?)?;
                for &row in rows.rows {
                    // A line break inside a name would shift every line after it.
                    writeln!(paths, "{}", rows.set.samples()[row].name.replace(['\n', '\r'], "\u{fffd}"))?;
                }
                Ok(())
            }
        }
    }

    /// Finishes the file and moves it to `out`; returns the file of paths of a `.npy` or `.tsv`.
    pub(super) fn finish(self, out: &Path) -> Result<Option<PathBuf>, EvalError> {
        match self {
            Self::Parquet(table) => {
                persist(table.finish(out)?, out)?;
                Ok(None)
            }
            Self::Tsv(table) => table.finish(out).map(Some),
            Self::Npy { writer, paths } => {
                let paths_file = paths_file(out);
                persist(paths, &paths_file)?;
                persist(writer.finish()?, out)?;
                Ok(Some(paths_file))
            }
        }
    }
}

/// A parquet file without `x` and `y`, which are known after the last row only.
pub(super) struct ParquetTable {
    writer: ArrowWriter<NamedTempFile>,
    schema: Arc<Schema>,
    /// For a map: of the rows written, and the schema with `x` and `y`.
    map: Option<(Projected, Arc<Schema>)>,
}

impl ParquetTable {
    fn create(out: &Path, width: usize, more: MoreColumns) -> Result<Self, EvalError> {
        let map = more.map.map(|map| (Projected::new(map, width), Arc::new(schema(width, more))));
        let schema = Arc::new(schema(width, MoreColumns { map: None, ..more }));
        Ok(Self { writer: writer(out, &schema)?, schema, map })
    }

    fn push(&mut self, rows: &Rows<'_>) -> Result<(), EvalError> {
        if let Some((rows_so_far, _)) = &mut self.map {
            rows_so_far.add(rows.h);
        }
        let batch = record_batch(&self.schema, rows)?;
        self.writer.write(&batch).map_err(|error| parquet_error(self.writer.inner().path(), error))
    }

    fn finish(self, out: &Path) -> Result<NamedTempFile, EvalError> {
        let written = self.writer.into_inner().map_err(|error| parquet_error(out, error))?;
        match self.map {
            Some((rows, schema)) => {
                with_places(&written, rows.places(MAP_SEED)?, (writer(out, &schema)?, schema))
            }
            None => Ok(written),
        }
    }
}

/// Copies a table to `writer` with the columns `x` and `y`, a batch of rows at a time.
fn with_places(
    table: &NamedTempFile,
    mut places: Places,
    (mut writer, schema): (ArrowWriter<NamedTempFile>, Arc<Schema>),
) -> Result<NamedTempFile, EvalError> {
    let path = writer.inner().path().to_owned();
    let at = schema.index_of("x").map_err(|error| parquet_error(&path, error))?;
    let rows = ParquetRecordBatchReaderBuilder::try_new(table.reopen()?).and_then(|rows| rows.build());
    for batch in rows.map_err(|error| parquet_error(&path, error))? {
        let batch = batch.map_err(|error| parquet_error(&path, error))?;
        let mut columns = batch.columns().to_vec();
        let h = batch.column(columns.len() - 1).as_fixed_size_list();
        let values = h.values().as_primitive::<Float32Type>().values();
        let h = Tensor::from_slice(values).view([batch.num_rows() as i64, i64::from(h.value_length())]);
        let places = places.of_next(&h)?;
        let column = |axis: usize| -> ArrayRef {
            Arc::new(places.iter().map(|place| Some(place[axis] as f32)).collect::<Float32Array>())
        };
        columns.splice(at..at, [column(0), column(1)]);
        let batch = RecordBatch::try_new(schema.clone(), columns);
        let written = batch.map_err(ParquetError::from).and_then(|batch| writer.write(&batch));
        written.map_err(|error| parquet_error(&path, error))?;
    }
    writer.into_inner().map_err(|error| parquet_error(&path, error))
}

fn schema(width: usize, more: MoreColumns) -> Schema {
    let mut columns = vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("part", DataType::Utf8, false),
        Field::new("label", DataType::Int32, true),
        Field::new("class", DataType::Utf8, true),
    ];
    if more.map.is_some() {
        columns.extend(["x", "y"].map(|name| Field::new(name, DataType::Float32, false)));
    }
    if more.images {
        columns.push(Field::new("image", DataType::Struct(image_fields()), false));
    }
    columns.push(Field::new("h", DataType::FixedSizeList(element(), width as i32), false));
    Schema::new(columns)
}

fn image_fields() -> Fields {
    vec![Field::new("bytes", DataType::Binary, false), Field::new("path", DataType::Utf8, false)].into()
}

fn jpegs(pixels: &Tensor) -> Result<Vec<Vec<u8>>, EvalError> {
    let (values, (channels, side)) = planes(pixels)?;
    let jpeg = |planes: &[f32]| {
        let mut sheet = ContactSheet::new(1, side);
        sheet.put(0, planes, (channels, side));
        Ok(sheet.jpeg(JPEG_QUALITY)?)
    };
    values.chunks_exact(channels * side * side).map(jpeg).collect()
}

fn record_batch(schema: &Arc<Schema>, of: &Rows<'_>) -> Result<RecordBatch, EvalError> {
    let samples = || of.rows.iter().map(|&row| &of.set.samples()[row]);
    let class = |label: u32| of.set.classes().get(label as usize).cloned();
    let names = || Arc::new(samples().map(|sample| Some(&sample.name)).collect::<StringArray>());
    let mut columns: Vec<ArrayRef> = vec![
        names(),
        Arc::new(samples().map(|_| Some(of.part)).collect::<StringArray>()),
        Arc::new(samples().map(|sample| sample.label.map(|label| label as i32)).collect::<Int32Array>()),
        Arc::new(samples().map(|sample| sample.label.and_then(class)).collect::<StringArray>()),
    ];
    let encoding = |error: ArrowError| EvalError::encoding("table of features", error);
    if schema.column_with_name("image").is_some() {
        let bytes: ArrayRef = Arc::new(jpegs(of.pixels)?.iter().map(Some).collect::<BinaryArray>());
        let images = StructArray::try_new(image_fields(), vec![bytes, names()], None);
        columns.push(Arc::new(images.map_err(encoding)?));
    }
    let width = of.h.size()[1] as i32;
    let values = Arc::new(Float32Array::from(values(of.h)?));
    columns.push(Arc::new(FixedSizeListArray::try_new(element(), width, values, None).map_err(encoding)?));
    RecordBatch::try_new(schema.clone(), columns).map_err(encoding)
}

fn parquet_error(path: &Path, error: impl std::fmt::Display) -> EvalError {
    EvalError::encoding(format!("`{}`", path.display()), error)
}
