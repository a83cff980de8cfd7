//! A stored record of the content of a data set's images, by which a later process detects images that have changed under the same
//! names and sizes.

use std::path::Path;

use serde_json::json;
use simclr_data::{
    Dataset,
    dataset::{Changes, Observed},
};
use tch::{Kind, Tensor};

use super::RunFolder;
use crate::{CheckpointError, TrainError, checkpoint::Checkpoint};

/// Longest list of names in a message.
const MAX_NAMES: usize = 5;

/// Digests of the images of a data set.
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

    /// `None` if `file` does not exist.
    ///
    /// # Errors
    /// A file that cannot be read or is no record.
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

    /// `content`: digest of the whole set, if all images have been read.
    ///
    /// # Errors
    /// A file that cannot be written.
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

    /// Number of images with a content digest.
    fn digests(&self) -> usize {
        self.observed.contents.iter().filter(|&&content| content != 0).count()
    }
}

/// Such as "6 of 60000 images (`a`, `b`, `c`, `d`, `e` and 1 more)".
pub(crate) fn named(set: &Dataset, indices: &[usize]) -> String {
    let names = indices.iter().take(MAX_NAMES).map(|&index| format!("`{}`", set.samples()[index].name));
    let names: Vec<String> = names.collect();
    let more = indices.len().saturating_sub(MAX_NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} of {} images ({}{more})", indices.len(), set.len(), names.join(", "))
}

/// Writes `images.safetensors` of a run.
pub(super) struct TrainedImages {
    /// Number of digests in the file; `None` before the first write.
    written: Option<usize>,
}

impl TrainedImages {
    pub(super) fn new() -> Self {
        Self { written: None }
    }

    /// Writes the record if more images have been read since the last write.
    pub(super) fn save(&mut self, folder: &RunFolder, set: &Dataset) -> Result<(), TrainError> {
        if self.written == Some(set.len()) {
            return Ok(());
        }
        let record = ImageRecord::of(set);
        if self.written != Some(record.digests()) {
            record.save(&folder.images_file(), set.content_digest().as_deref())?;
            self.written = Some(record.digests());
        }
        Ok(())
    }
}

/// Compares `set`, which has the fingerprint of the run, with the record of a run that is resumed. Returns a note about images that
/// cannot be compared.
///
/// # Errors
/// [`CheckpointError::Images`] if an image has changed that the run has read.
pub(super) fn check(folder: &RunFolder, set: &Dataset) -> Result<Option<String>, CheckpointError> {
    let file = folder.images_file();
    let record = match ImageRecord::load(&file) {
        Ok(Some(record)) if record.fingerprint == set.fingerprint() => record,
        Ok(Some(_)) => return Ok(None),
        Ok(None) => return Ok(Some(unchecked("the run has no record of its images (images.safetensors)"))),
        Err(error) => return Ok(Some(unchecked(&error.to_string()))),
    };
    let Changes { changed, unknown, .. } = set.changes_since(&record.observed);
    if !changed.is_empty() {
        let what = named(set, &changed);
        let reason = format!("{what} have changed under the same names and sizes since the run read them");
        return Err(CheckpointError::Images { path: folder.path().to_owned(), reason });
    }
    Ok((!unknown.is_empty()).then(|| {
        format!("{} may have changed since the run began; it had not read them yet", named(set, &unknown))
    }))
}

fn unchecked(reason: &str) -> String {
    format!("not checked whether images have changed under the same names and sizes: {reason}")
}
