//! What the tables of features and of predictions share.

use std::{path::Path, sync::Arc};

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ArrowReaderMetadata},
    basic::Compression,
    file::properties::WriterProperties,
};
use simclr_data::atomic_file;
use tempfile::NamedTempFile;

use crate::EvalError;

/// A writer of a temporary file in the folder of `out`.
pub(super) fn writer(out: &Path, schema: &Arc<Schema>) -> Result<ArrowWriter<NamedTempFile>, EvalError> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let writer = ArrowWriter::try_new(temporary_file(out)?, schema.clone(), Some(properties));
    writer.map_err(|error| EvalError::encoding(format!("`{}`", out.display()), error))
}

/// In the folder of `out`, which is created.
pub(super) fn temporary_file(out: &Path) -> Result<NamedTempFile, std::io::Error> {
    if let Some(folder) = out.parent() {
        fs_err::create_dir_all(folder)?;
    }
    atomic_file::create(out)
}

/// Of the file at `path`, if it is parquet.
pub(super) fn schema_of(path: &Path) -> Option<SchemaRef> {
    let file = fs_err::File::open(path).ok()?.into_parts().0;
    Some(ArrowReaderMetadata::load(&file, Default::default()).ok()?.schema().clone())
}

/// Of a list of values.
pub(super) fn element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Float32, false))
}
