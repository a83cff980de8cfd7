//! Named tensors and JSON sections to one safetensors file and back, atomically. Knows no model.

use std::{collections::BTreeMap, path::Path};

use tch::Tensor;

use crate::CheckpointError;

/// What a checkpoint file holds.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// JSON sections by name (`state`, `config`, `versions`).
    pub sections: BTreeMap<String, serde_json::Value>,
}

impl Checkpoint {
    /// Writes to a temporary sibling, syncs, renames: `path` is either the old file or the new one, whole.
    ///
    /// # Errors
    /// Full disk, missing rights; the old file is untouched.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let _ = path;
        todo!("helper train")
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] for a file that is cut, of another format or another version.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let _ = path;
        todo!("helper train")
    }
}

/// Writes `bytes` to `path` atomically (temporary sibling, fsync, rename, fsync of the folder).
///
/// # Errors
/// The operating system's, with the path.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), std::io::Error> {
    let _ = (path, bytes);
    todo!("helper train")
}
