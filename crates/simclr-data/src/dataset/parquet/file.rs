//! A parquet file: its labels, and the encoded images of all rows or of one.

use std::{
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData,
        reader::{ChunkReader, Length},
    },
};

use super::{
    super::identity::FileState,
    labels::{self, Label},
};
use crate::{DataError, guard::guarded};

const IMAGE_COLUMNS: [&str; 3] = ["image", "img", "jpg"];
const LABEL_COLUMNS: [&str; 7] = ["label", "labels", "fine_label", "cls", "class", "category", "target"];

/// An open parquet file, with all labels.
pub struct File {
    pub path: PathBuf,
    /// One per row.
    pub labels: Vec<Option<Label>>,
    /// From the metadata of the hub; may be empty.
    pub class_names: Vec<String>,
    /// A note on an unusable label column.
    pub note: Option<String>,
    pub state: FileState,
    metadata: ArrowReaderMetadata,
    reader: SharedFile,
    /// Index of the image column among the fields of the schema.
    image: usize,
}

/// Checks the claims of a footer that sizes and positions follow from, for a file of `bytes` bytes: row counts and column ranges.
/// A row takes at least one byte of its image column.
fn check_footer(footer: &ParquetMetaData, bytes: u64) -> Result<(), String> {
    let count = |what: &str, number: i64| {
        u64::try_from(number).map_err(|_| format!("its footer claims {number} {what}"))
    };
    let rows = count("rows", footer.file_metadata().num_rows())?;
    let mut sum = 0u64;
    for group in footer.row_groups() {
        sum = sum.saturating_add(count("rows in a group", group.num_rows())?);
        for column in group.columns() {
            let pages = [Some(column.data_page_offset()), column.dictionary_page_offset()];
            for start in pages.into_iter().flatten() {
                count("as the start of a column", start)?;
            }
            count("uncompressed bytes in a column", column.uncompressed_size())?;
            let length = count("bytes in a column", column.compressed_size())?;
            if length > bytes {
                return Err(format!("its footer claims a column of {length} bytes, the file has {bytes}"));
            }
        }
    }
    match (rows == sum, rows > bytes) {
        (false, _) => Err(format!("its footer claims {rows} rows, its row groups have {sum}")),
        (true, true) => Err(format!("its footer claims {rows} rows, the file has {bytes} bytes")),
        (true, false) => Ok(()),
    }
}

impl File {
    pub fn open(path: &Path) -> Result<Self, DataError> {
        guarded(|| Self::parse(path), |reason| DataError::format(path, reason))
    }

    fn parse(path: &Path) -> Result<Self, DataError> {
        let reader = SharedFile::open(path)?;
        let metadata = ArrowReaderMetadata::load(&reader, Default::default());
        let metadata =
            metadata.map_err(|error| DataError::format(path, format!("not a parquet file: {error}")))?;
        let schema = metadata.schema().clone();
        let find = |names: &[&str]| names.iter().find_map(|name| schema.index_of(name).ok());
        let image = find(&IMAGE_COLUMNS).ok_or_else(|| {
            let found: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            DataError::format(path, format!("no column image, img or jpg among {}", found.join(", ")))
        })?;
        let state = reader.state()?;
        check_footer(metadata.metadata(), state.bytes).map_err(|reason| DataError::format(path, reason))?;
        let rows = metadata.metadata().file_metadata().num_rows() as usize;
        let mut file = Self {
            path: path.to_owned(),
            labels: Vec::new(),
            class_names: Vec::new(),
            note: None,
            state,
            metadata,
            reader,
            image,
        };
        let is_usable = |name: &&str| {
            schema.field_with_name(name).is_ok_and(|field| labels::are_labels(field.data_type()))
        };
        let usable: Vec<&str> = LABEL_COLUMNS.iter().copied().filter(is_usable).collect();
        match find(&usable) {
            Some(label) => {
                let names = schema.metadata().get("huggingface");
                let names = names.and_then(|text| labels::hub_class_names(text, schema.field(label).name()));
                file.class_names = names.unwrap_or_default();
                file.labels = file.read_labels(label)?;
            }
            None => {
                file.labels = vec![None; rows];
                file.note = find(&LABEL_COLUMNS).map(|column| note_on_column(schema.field(column)));
            }
        }
        if file.labels.len() != file.rows().count() {
            return Err(DataError::format(
                path,
                format!("{} labels for {} rows", file.labels.len(), file.rows().count()),
            ));
        }
        Ok(file)
    }

    /// Row group, and row within the group, of each row.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.metadata.metadata().row_groups().iter().enumerate();
        groups.flat_map(|(group, meta)| (0..meta.num_rows().max(0) as usize).map(move |row| (group, row)))
    }

    /// Uncompressed size of all columns, which is mostly images.
    pub fn image_bytes(&self) -> u64 {
        self.metadata.metadata().row_groups().iter().map(|group| group.total_byte_size().unsigned_abs()).sum()
    }

    /// Mean uncompressed size of the rows of a group.
    pub fn mean_bytes(&self, group: usize) -> u64 {
        let group = self.metadata.metadata().row_group(group);
        group.total_byte_size().unsigned_abs() / group.num_rows().max(1) as u64
    }

    pub fn read_all(&self) -> Result<Vec<Bytes>, DataError> {
        guarded(|| self.parse_all(), |reason| self.format(reason))
    }

    fn parse_all(&self) -> Result<Vec<Bytes>, DataError> {
        let mut images = Vec::new();
        for batch in self.builder(self.image).build().map_err(|error| self.damaged(&error))? {
            let batch = batch.map_err(|error| self.damaged(&error))?;
            images.extend(encoded(&batch).map_err(|reason| self.format(reason))?);
        }
        if images.len() != self.labels.len() {
            return Err(self.format(format!("{} images, expected {}", images.len(), self.labels.len())));
        }
        Ok(images)
    }

    pub fn read_row(&self, group: usize, row: usize) -> Result<Bytes, DataError> {
        guarded(|| self.parse_row(group, row), |reason| self.format(reason))
    }

    fn parse_row(&self, group: usize, row: usize) -> Result<Bytes, DataError> {
        let builder = self.builder(self.image).with_row_groups(vec![group]).with_offset(row).with_limit(1);
        let mut batches = builder.build().map_err(|error| self.damaged(&error))?;
        let batch = batches.next().ok_or_else(|| self.format("a row is missing".into()))?;
        let images =
            encoded(&batch.map_err(|error| self.damaged(&error))?).map_err(|reason| self.format(reason))?;
        images.into_iter().next().ok_or_else(|| self.format("a row is missing".into()))
    }

    fn read_labels(&self, column: usize) -> Result<Vec<Option<Label>>, DataError> {
        let mut labels = Vec::with_capacity(self.rows().count().min(1 << 24));
        for batch in self.builder(column).build().map_err(|error| self.damaged(&error))? {
            let batch = batch.map_err(|error| self.damaged(&error))?;
            labels.extend(labels::stored(batch.column(0)).map_err(|reason| self.format(reason))?);
        }
        Ok(labels)
    }

    fn builder(&self, column: usize) -> ParquetRecordBatchReaderBuilder<SharedFile> {
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), [column]);
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.reader.clone(), self.metadata.clone())
            .with_projection(mask)
    }

    fn damaged(&self, error: &dyn std::error::Error) -> DataError {
        self.format(format!("damaged parquet file: {error}"))
    }

    fn format(&self, reason: String) -> DataError {
        DataError::format(&self.path, reason)
    }
}

fn note_on_column(field: &Field) -> String {
    let (name, found) = (field.name(), field.data_type());
    format!("column `{name}` gives no labels: expected integers, booleans or texts, got {found}")
}

/// The encoded images of a batch with only the image column.
fn encoded(batch: &RecordBatch) -> Result<Vec<Bytes>, String> {
    let column = batch.column(0);
    let bytes = match column.as_struct_opt() {
        Some(parts) => parts.column_by_name("bytes").ok_or("the image column has no field `bytes`")?,
        None => column,
    };
    let binary = |row| {
        binary(bytes, row)
            .ok_or_else(|| format!("images are stored as {}, expected bytes", bytes.data_type()))
    };
    (0..batch.num_rows()).map(binary).collect()
}

/// The bytes of a row; empty for a null row, which later fails to decode and is reported.
fn binary(column: &ArrayRef, row: usize) -> Option<Bytes> {
    if column.is_null(row) {
        return Some(Bytes::new());
    }
    let bytes = match column.data_type() {
        DataType::Binary => column.as_binary::<i32>().value(row),
        DataType::LargeBinary => column.as_binary::<i64>().value(row),
        DataType::BinaryView => column.as_binary_view().value(row),
        _ => return None,
    };
    Some(Bytes::copy_from_slice(bytes))
}

/// A file with positioned reads, so that threads share it without sharing a cursor.
#[derive(Clone)]
struct SharedFile {
    file: Arc<fs_err::File>,
    length: u64,
}

impl SharedFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), length })
    }

    fn state(&self) -> io::Result<FileState> {
        Ok(FileState::from(&self.file.metadata()?))
    }
}

impl Length for SharedFile {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for SharedFile {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Cursor { file: self.file.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} reach past the end at {}",
                self.length
            )));
        }
        let mut bytes = vec![0; length];
        self.file.file().read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// Sequential reads from a position.
struct Cursor {
    file: Arc<fs_err::File>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.file().read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
