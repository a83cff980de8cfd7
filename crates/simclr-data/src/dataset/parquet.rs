//! Parquet as the Hugging Face hub writes image sets: a column `image` of structs {bytes, path} (or of plain bytes) and
//! an integer or text column `label`.
//!
//! The encoded images are kept in memory: training reads them in random order, and a page of a parquet file can only
//! be decompressed whole. Sets above [`MAX_BYTES`] are refused with a word on tar shards, which are read in place.

use std::path::{Path, PathBuf};

use arrow_array::{
    Array, ArrayRef, RecordBatch, StructArray,
    cast::AsArray,
    types::{Int32Type, Int64Type},
};
use bytes::Bytes;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::{Opened, Sample, Source, Split, shards_of_split};
use crate::{DataError, Image, decode};

/// Encoded bytes that are kept in memory at most.
const MAX_BYTES: u64 = 64 << 30;
const IMAGE_COLUMNS: [&str; 3] = ["image", "img", "jpg"];
const LABEL_COLUMNS: [&str; 4] = ["label", "labels", "fine_label", "cls"];

struct Memory {
    images: Vec<Bytes>,
    names: Vec<String>,
}

/// A label as stored.
enum Label {
    Number(i64),
    Text(String),
}

#[derive(Default)]
struct Rows {
    images: Vec<Bytes>,
    labels: Vec<Option<Label>>,
    names: Vec<String>,
    class_names: Vec<String>,
}

pub fn open(files: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let mut rows = Rows::default();
    for path in shards_of_split(files, split) {
        read(&path, &mut rows)?;
    }
    let classes = classes(&rows);
    let label = |label: &Option<Label>| match label {
        Some(Label::Number(number)) => u32::try_from(*number).ok(),
        Some(Label::Text(text)) => classes.iter().position(|name| name == text).map(|label| label as u32),
        None => None,
    };
    let samples = rows.names.iter().zip(&rows.labels);
    let samples = samples.map(|(name, stored)| Sample { name: name.clone(), label: label(stored) }).collect();
    Ok(Opened { samples, classes, source: Box::new(Memory { images: rows.images, names: rows.names }) })
}

/// Names from the hub's metadata, else the sorted texts, else the numbers.
fn classes(rows: &Rows) -> Vec<String> {
    let most = rows.labels.iter().flatten().filter_map(|label| match label {
        Label::Number(number) => Some(*number),
        Label::Text(_) => None,
    });
    let numbers = most.max().map_or(0, |most| most.max(-1) + 1) as usize;
    if rows.class_names.len() >= numbers && !rows.class_names.is_empty() {
        return rows.class_names.clone();
    }
    let mut texts: Vec<String> = rows.labels.iter().flatten().filter_map(|label| match label {
        Label::Text(text) => Some(text.clone()),
        Label::Number(_) => None,
    }).collect();
    texts.sort();
    texts.dedup();
    if texts.is_empty() { (0..numbers).map(|class| class.to_string()).collect() } else { texts }
}

fn read(path: &Path, rows: &mut Rows) -> Result<(), DataError> {
    let wrong = |reason: String| DataError::Format { path: path.to_owned(), reason };
    let file = fs_err::File::open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.into_file());
    let builder = builder.map_err(|error| wrong(format!("not a parquet file: {error}")))?;
    let schema = builder.schema().clone();
    let find = |names: &[&str]| names.iter().find_map(|name| schema.index_of(name).ok());
    let image = find(&IMAGE_COLUMNS).ok_or_else(|| {
        let found: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        wrong(format!("no column image, img or jpg among {}", found.join(", ")))
    })?;
    let label = find(&LABEL_COLUMNS);
    if let (Some(label), Some(text)) = (label, schema.metadata().get("huggingface")) {
        rows.class_names = hub_class_names(text, schema.field(label).name()).unwrap_or_default();
    }
    let stored: i64 = builder.metadata().row_groups().iter().map(|group| group.total_byte_size()).sum();
    if stored.unsigned_abs() > MAX_BYTES {
        return Err(wrong(format!("{stored} bytes are more than is kept in memory; use tar shards")));
    }
    let columns = ProjectionMask::roots(builder.parquet_schema(), [Some(image), label].into_iter().flatten());
    let reader = builder.with_projection(columns).build().map_err(|error| wrong(error.to_string()))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let image_name = schema.field(image).name();
    let label_name = label.map(|label| schema.field(label).name());
    for batch in reader {
        let batch = batch.map_err(|error| wrong(format!("damaged parquet file: {error}")))?;
        take(&batch, image_name, label_name.map(String::as_str), &stem, rows).map_err(wrong)?;
    }
    Ok(())
}

fn take(batch: &RecordBatch, image: &str, label: Option<&str>, stem: &str, rows: &mut Rows) -> Result<(), String> {
    let column = batch.column_by_name(image).ok_or("the image column is gone")?;
    let parts = column.as_any().downcast_ref::<StructArray>();
    let bytes = match parts {
        Some(parts) => parts.column_by_name("bytes").ok_or("the image column has no field `bytes`")?,
        None => column,
    };
    let labels = label.and_then(|label| batch.column_by_name(label));
    for row in 0..batch.num_rows() {
        let encoded = binary(bytes, row).ok_or_else(|| format!("column {image} holds {}, expected bytes", bytes.data_type()))?;
        rows.names.push(format!("{stem}/{:06}", rows.images.len()));
        rows.images.push(encoded);
        rows.labels.push(labels.and_then(|labels| stored_label(labels, row)));
    }
    Ok(())
}

/// The bytes of a row; empty where the row is null, which then fails to decode and is reported.
fn binary(column: &ArrayRef, row: usize) -> Option<Bytes> {
    if column.is_null(row) {
        return Some(Bytes::new());
    }
    if let Some(column) = column.as_binary_opt::<i32>() {
        return Some(Bytes::copy_from_slice(column.value(row)));
    }
    let column = column.as_binary_opt::<i64>()?;
    Some(Bytes::copy_from_slice(column.value(row)))
}

fn stored_label(column: &ArrayRef, row: usize) -> Option<Label> {
    if column.is_null(row) {
        return None;
    }
    if let Some(column) = column.as_primitive_opt::<Int64Type>() {
        return Some(Label::Number(column.value(row)));
    }
    if let Some(column) = column.as_primitive_opt::<Int32Type>() {
        return Some(Label::Number(column.value(row).into()));
    }
    column.as_string_opt::<i32>().map(|column| Label::Text(column.value(row).to_owned()))
}

/// `{"info": {"features": {"label": {"names": [...]}}}}` of the schema metadata.
fn hub_class_names(text: &str, label: &str) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = value.pointer(&format!("/info/features/{label}/names"))?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

impl Source for Memory {
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError> {
        decode::decode(&self.names[index], &self.images[index], channels)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.images[index].len() as u64
    }

    fn native_channels(&self) -> usize {
        self.images.first().map_or(3, |bytes| decode::native_channels(bytes))
    }
}
