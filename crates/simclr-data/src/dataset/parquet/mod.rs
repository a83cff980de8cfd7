//! Parquet image sets of the Hugging Face hub: a column `image` of structs {bytes, path} (or of plain bytes) and a column `label`
//! of integers, booleans, texts or categories.
//!
//! Training reads in random order, and a page of a parquet file can only be decompressed as a whole. Sets of up to
//! [`KEEP_BYTES`] are therefore decompressed once and kept encoded in memory. In larger sets each image is read from its row
//! group, which decompresses one page (about 1 MB) and bounds memory at any size.

mod file;
pub(super) mod labels;

use std::{borrow::Cow, collections::HashSet, path::PathBuf};

use bytes::Bytes;

use self::{file::File, labels::Label};
use super::{Opened, Sample, Source, Split, class_names::ClassNames, splits};
use crate::{DataError, decode};

/// Maximal number of classes, against columns of identifiers.
const MAX_CLASSES: i64 = 1 << 20;
/// Maximal size of encoded images in memory.
const KEEP_BYTES: u64 = 4 << 30;

pub fn open(paths: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    open_keeping(paths, split, KEEP_BYTES)
}

fn open_keeping(paths: &[PathBuf], split: Split, keep_bytes: u64) -> Result<Opened, DataError> {
    // Labels of all files, so that all splits number the classes alike.
    let files = paths.iter().map(|path| File::open(path)).collect::<Result<Vec<_>, _>>()?;
    let classes = classes(&files)?;
    let wanted: HashSet<PathBuf> = splits::shards_of(paths, split).into_iter().collect();
    let files: Vec<_> = files.into_iter().filter(|file| wanted.contains(&file.path)).collect();
    let first_note = files.iter().find_map(|file| file.note.clone()).filter(|_| split == Split::Train);
    let mut samples = Vec::new();
    for file in &files {
        let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
        let labels = labels::indices(&file.labels, &classes);
        let named = labels.enumerate().map(|(row, label)| Sample { name: format!("{stem}/{row:06}"), label });
        samples.extend(named);
    }
    let names = samples.iter().map(|sample| sample.name.clone()).collect();
    let total: u64 = files.iter().map(File::image_bytes).sum();
    let source: Box<dyn Source> = if total <= keep_bytes {
        let images = files.iter().map(File::read_all).collect::<Result<Vec<_>, _>>()?.concat();
        let rows = files.iter().map(|file| (file.labels.len(), file.state.stamp));
        let stamps = rows.flat_map(|(rows, stamp)| std::iter::repeat_n(stamp, rows)).collect();
        Box::new(Memory { images, stamps, names })
    } else {
        let rows = files
            .iter()
            .enumerate()
            .flat_map(|(at, file)| file.rows().map(move |(group, row)| (at, group, row)));
        Box::new(Disk { rows: rows.collect(), files, names })
    };
    let left = splits::note_on_shards(paths).filter(|_| split == Split::Train);
    let label_notes = first_note.into_iter().chain(classes.notes()).collect();
    Ok(Opened { samples, notes: left.into_iter().collect(), label_notes, classes: classes.names, source })
}

/// Class names of a set: from the metadata of the hub, else the sorted texts, else the numbers.
fn classes(files: &[File]) -> Result<ClassNames, DataError> {
    let mut numbers = 0;
    for file in files {
        let counts = file.labels.iter().flatten().filter_map(|label| match label {
            Label::Number(number) => Some(number.saturating_add(1)),
            Label::Text(_) => None,
        });
        let count = counts.max().unwrap_or(0);
        if count > MAX_CLASSES {
            let reason = format!("label {}, expected below {MAX_CLASSES}", count - 1);
            return Err(DataError::format(&file.path, reason));
        }
        numbers = numbers.max(count);
    }
    if let Some(file) = files.iter().find(|file| !file.class_names.is_empty()) {
        if (file.class_names.len() as i64) < numbers {
            let reason = format!(
                "label {}, expected below {}, the number of class names",
                numbers - 1,
                file.class_names.len()
            );
            return Err(DataError::format(&file.path, reason));
        }
        return Ok(ClassNames::numbered(file.class_names.clone()));
    }
    check_one_kind(files)?;
    let texts = files.iter().flat_map(|file| file.labels.iter().flatten()).filter_map(|label| match label {
        Label::Text(text) => Some(text.clone()),
        Label::Number(_) => None,
    });
    let texts = ClassNames::sorted(texts);
    let numbered = || ClassNames::numbered((0..numbers).map(|class| class.to_string()).collect());
    Ok(if texts.names.is_empty() { numbered() } else { texts })
}

/// # Errors
/// Numbers in one file and texts in another: without names of the numbers they denote no common classes.
fn check_one_kind(files: &[File]) -> Result<(), DataError> {
    let first = |is_kind: fn(&Label) -> bool| {
        files.iter().find(|file| file.labels.iter().flatten().any(is_kind)).map(|file| &file.path)
    };
    let number = first(|label| matches!(label, Label::Number(0..)));
    let text = first(|label| matches!(label, Label::Text(_)));
    match (number, text) {
        (Some(number), Some(text)) => {
            let expected = format!("expected integers, as in `{}`", number.display());
            Err(DataError::format(text, format!("its labels are texts or booleans, {expected}")))
        }
        _ => Ok(()),
    }
}

struct Memory {
    images: Vec<Bytes>,
    stamps: Vec<u64>,
    names: Vec<String>,
}

impl Source for Memory {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        Ok(self.images[index].clone())
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        Some(self.names[index][..].into())
    }

    fn stamp(&self, index: usize) -> u64 {
        self.stamps[index]
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.images[index].len() as u64
    }

    fn native_channels(&self) -> usize {
        self.images.first().map_or(3, |bytes| decode::native_channels(bytes))
    }
}

struct Disk {
    files: Vec<File>,
    /// File, row group, row in the group.
    rows: Vec<(usize, usize, usize)>,
    names: Vec<String>,
}

impl Disk {
    fn bytes(&self, index: usize) -> Result<Bytes, DataError> {
        let (file, group, row) = self.rows[index];
        let bytes = self.files[file].read_row(group, row);
        bytes.map_err(|error| DataError::decode(&self.names[index], error.to_string()))
    }
}

impl Source for Disk {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        self.bytes(index)
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        Some(self.names[index][..].into())
    }

    fn stamp(&self, index: usize) -> u64 {
        self.files[self.rows[index].0].state.stamp
    }

    /// The mean of the row group: the size of a single image is unknown before it is decompressed.
    fn stored_bytes(&self, index: usize) -> u64 {
        let (file, group, _) = self.rows[index];
        self.files[file].mean_bytes(group)
    }

    fn native_channels(&self) -> usize {
        self.bytes(0).map_or(3, |bytes| decode::native_channels(&bytes))
    }
}

#[cfg(test)]
mod tests;
