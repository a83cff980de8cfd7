//! The run folder: which files, and where. Nothing else knows these names.

use std::path::{Path, PathBuf};

use crate::TrainError;

/// A run's folder: `config.toml`, `plan.json`, `environment.json`, `metrics.jsonl`, `events.out.tfevents.*`,
/// `checkpoints/step-<n>.safetensors`, `bad_files.txt`, `results.json`, `views.png`.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes a new run folder.
    ///
    /// # Errors
    /// A folder that already holds a run, or that cannot be written.
    pub fn create(path: &Path) -> Result<Self, TrainError> {
        let _ = path;
        todo!("helper train")
    }

    /// Opens an existing one.
    ///
    /// # Errors
    /// No run there.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let _ = path;
        todo!("helper train")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`.
    pub fn config_file(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The newest whole checkpoint.
    pub fn newest_checkpoint(&self) -> Result<Option<PathBuf>, TrainError> {
        todo!("helper train")
    }
}
