//! Parquet tables, with class names from the metadata of the Hugging Face hub, if any.

use std::path::Path;

use arrow_array::RecordBatch;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::{
    super::parquet::labels::{self, Label},
    Row, Table, Unusable, places,
};
use crate::guard::guarded;

pub fn read(path: &Path, images: &[&str]) -> Result<Table, Unusable> {
    guarded(|| parse(path, images), Unusable::Damaged)
}

fn parse(path: &Path, images: &[&str]) -> Result<Table, Unusable> {
    let damaged = |error: &dyn std::fmt::Display| Unusable::Damaged(error.to_string());
    let file = fs_err::File::open(path).map_err(|error| damaged(&error))?.into_parts().0;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file);
    let builder = builder.map_err(|error| damaged(&format!("not a parquet file: {error}")))?;
    let schema = builder.schema().clone();
    let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let (image, label) = places(&columns, images)?;
    let hub = schema.metadata().get("huggingface");
    let class_names = hub.and_then(|text| labels::hub_class_names(text, &columns[label])).unwrap_or_default();
    let mask = ProjectionMask::roots(builder.parquet_schema(), [image, label]);
    let batches = builder.with_projection(mask).build();
    let mut rows = Vec::new();
    for batch in batches.map_err(|error| damaged(&error))? {
        let batch = batch.map_err(|error| damaged(&format!("damaged parquet file: {error}")))?;
        let [images, found] = [image, label].map(|at| stored(&batch, &columns[at]));
        for (image, label) in images?.into_iter().zip(found?) {
            let image = image.map(|image| as_text(image, &[])).transpose()?.flatten().unwrap_or_default();
            let label = label.map(|label| as_text(label, &class_names)).transpose()?.flatten();
            rows.push(Row { image, label: label.filter(|label| !label.is_empty()) });
        }
    }
    Ok(Table { rows, class_names })
}

fn stored(batch: &RecordBatch, name: &str) -> Result<Vec<Option<Label>>, Unusable> {
    let column = batch.column_by_name(name).ok_or_else(|| Unusable::Damaged(format!("no column {name}")))?;
    labels::stored(column).map_err(|reason| Unusable::Damaged(format!("column {name}: {reason}")))
}

/// `None` for a negative number with class names, which the hub writes for withheld labels.
fn as_text(label: Label, class_names: &[String]) -> Result<Option<String>, Unusable> {
    match label {
        Label::Text(text) => Ok(Some(text)),
        Label::Number(number) if class_names.is_empty() => Ok(Some(number.to_string())),
        Label::Number(number) if number < 0 => Ok(None),
        Label::Number(number) => {
            let name = usize::try_from(number).ok().and_then(|at| class_names.get(at).cloned());
            let expected = class_names.len();
            let reason = || format!("label {number}, expected below {expected}, the number of class names");
            name.map(Some).ok_or_else(|| Unusable::Damaged(reason()))
        }
    }
}
