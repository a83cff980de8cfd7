//! Which images a run or a figure is of, by content: a record that outlives the process, so that a later one notices images
//! that have changed under the same names and sizes.

use std::path::Path;

use serde_json::json;
use simclr_data::{
    Dataset,
    dataset::{Changes, Observed},
};
use tch::{Kind, Tensor};

use super::RunFolder;
use crate::{CheckpointError, TrainError, checkpoint::Checkpoint};

/// Names that a message lists at most.
const NAMED: usize = 5;

/// What is known of the images of a set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageRecord {
    /// Of names, labels and sizes.
    pub(crate) fingerprint: String,
    /// See [`Dataset::identity`].
    pub(crate) identity: String,
    pub(crate) observed: Observed,
}

impl ImageRecord {
    pub(crate) fn of(set: &Dataset) -> Self {
        Self { fingerprint: set.fingerprint(), identity: set.identity(), observed: set.observed() }
    }

    /// The record in `file`; none where there is none.
    ///
    /// # Errors
    /// A damaged file.
    pub(crate) fn load(file: &Path) -> Result<Option<Self>, CheckpointError> {
        if !file.exists() {
            return Ok(None);
        }
        let mut stored = Checkpoint::load(file)?;
        let mut column = |name: &str| {
            let column = Vec::<i64>::try_from(stored.tensors.remove(name)?).ok()?;
            Some(column.into_iter().map(|value| value as u64).collect())
        };
        let observed = column("stamps").zip(column("contents"));
        let set = stored.sections.remove("set").unwrap_or_default();
        let text = |key: &str| Some(set[key].as_str()?.to_owned());
        let record = || {
            let (stamps, contents) = observed?;
            let observed = Observed { stamps, contents };
            Some(Self { fingerprint: text("fingerprint")?, identity: text("identity")?, observed })
        };
        let incomplete =
            || CheckpointError::Damaged { path: file.to_owned(), reason: "not a record of images".into() };
        record().map(Some).ok_or_else(incomplete)
    }

    /// Writes it; `content` is the digest of the whole set, where it is known.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn save(&self, file: &Path, content: Option<&str>) -> Result<(), CheckpointError> {
        let column = |values: &[u64]| {
            let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
            Tensor::from_slice(&values).to_kind(Kind::Int64)
        };
        let mut stored = Checkpoint::default();
        stored.tensors.insert("stamps".into(), column(&self.observed.stamps));
        stored.tensors.insert("contents".into(), column(&self.observed.contents));
        let set = json!({ "fingerprint": self.fingerprint, "identity": self.identity, "content": content });
        stored.sections.insert("set".into(), set);
        stored.save(file)
    }

    /// Images whose content is known.
    fn known(&self) -> usize {
        self.observed.contents.iter().filter(|&&content| content != 0).count()
    }
}

/// "3 of 60000 images: `a`, `b` and `c`", with the names of a few.
pub(crate) fn named(set: &Dataset, indices: &[usize]) -> String {
    let names = indices.iter().take(NAMED).map(|&index| format!("`{}`", set.samples()[index].name));
    let names: Vec<String> = names.collect();
    let more = indices.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} of {} images ({}{more})", indices.len(), set.len(), names.join(", "))
}

/// The record of a run, `images.safetensors`, and how much of it is written.
pub(super) struct TrainedImages {
    written: Option<usize>,
}

impl TrainedImages {
    pub(super) fn new() -> Self {
        Self { written: None }
    }

    /// Writes the record where more images have been read than when it was last written.
    pub(super) fn save(&mut self, folder: &RunFolder, set: &Dataset) -> Result<(), TrainError> {
        if self.written == Some(set.len()) {
            return Ok(());
        }
        let record = ImageRecord::of(set);
        if self.written != Some(record.known()) {
            record.save(&folder.images_file(), set.content_digest().as_deref())?;
            self.written = Some(record.known());
        }
        Ok(())
    }
}

/// What there is to say about the images of a run that goes on; `set` has the fingerprint that they had.
///
/// # Errors
/// [`CheckpointError::Images`] where an image has changed that the run was trained on.
pub(super) fn check(folder: &RunFolder, set: &Dataset) -> Result<Option<String>, CheckpointError> {
    let file = folder.images_file();
    let record = match ImageRecord::load(&file) {
        Ok(Some(record)) if record.fingerprint == set.fingerprint() => record,
        Ok(Some(_)) => return Ok(None),
        Ok(None) => return Ok(Some(unchecked("the run has no record of them (images.safetensors)"))),
        Err(error) => return Ok(Some(unchecked(&error.to_string()))),
    };
    let Changes { changed, unknown, .. } = set.changes_since(&record.observed);
    if !changed.is_empty() {
        let what = named(set, &changed);
        let reason = format!("{what} have changed under the same names and sizes since the run read them");
        return Err(CheckpointError::Images { path: folder.path().to_owned(), reason });
    }
    let files = "have files that may have changed since the run began, and it had not read them yet";
    Ok((!unknown.is_empty()).then(|| format!("{} {files}", named(set, &unknown))))
}

fn unchecked(why: &str) -> String {
    format!("not checked whether images have changed under the same names and sizes: {why}")
}
