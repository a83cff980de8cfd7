//! The run folder: which files, and where. Nothing else knows these names.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use simclr_data::output::resolved;

use super::run_lock::{LOCK_FILE, RunLock};
use crate::{
    CheckpointError, TrainError,
    checkpoint::{Checkpoint, PARTIAL_PREFIX, write_atomically},
};

/// A run's folder: `config.toml`, `plan.json`, `environment.json`, `metrics.jsonl`, `events.out.tfevents.*`,
/// `checkpoints/step-<n>.safetensors`, `images.safetensors`, `bad_files.txt`, `results.json`, `results/`.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    /// Held by all clones together, once one of them is to be written to.
    lock: Arc<Mutex<Option<RunLock>>>,
}

/// Folders of a run that only its own commands write to.
const OWN_FOLDERS: [&str; 2] = ["checkpoints", "evaluation"];
/// Files of a run, and how the names of others begin.
const OWN_FILES: [&str; 10] = [
    "config.toml",
    "plan.json",
    "environment.json",
    "metrics.jsonl",
    "bad_files.txt",
    "results.json",
    LOCK_FILE,
    "events.out.tfevents.",
    "nonfinite-step-",
    PARTIAL_PREFIX,
];

/// A checkpoint with its file, where there is one, and what is to be said about others.
pub type Newest = (Option<(PathBuf, Checkpoint)>, Vec<String>);

impl RunFolder {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: Arc::default() }
    }

    /// Makes a new run folder and holds it, see [`RunFolder::hold`].
    ///
    /// # Errors
    /// A folder that already holds a run, to which another process writes, or that cannot be written.
    pub fn create(path: &Path) -> Result<Self, TrainError> {
        let folder = Self::at(path);
        match (folder.hold(), folder.config_file().exists()) {
            (Err(in_use @ TrainError::InUse { .. }), _) => Err(in_use),
            (_, true) => {
                let reason = "it holds a run already; resume it, or choose another folder";
                Err(TrainError::RunFolder { path: path.to_owned(), reason: reason.into() })
            }
            (Err(error), false) => Err(error),
            (Ok(_), false) => {
                fs_err::create_dir_all(folder.checkpoints())?;
                Ok(folder)
            }
        }
    }

    /// Keeps other processes from writing here until the last clone of this is dropped; again is the same as once. Returns
    /// a note for the user where the file system cannot do it.
    ///
    /// # Errors
    /// [`TrainError::InUse`] where another process writes here, or a folder that cannot be written.
    pub fn hold(&self) -> Result<Option<String>, TrainError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            *lock = Some(RunLock::take(&self.path)?);
        }
        Ok(lock.as_ref().and_then(RunLock::note))
    }

    /// The run folder that a result at `out` would lie in, held until it is written; none where it would lie in no run. `from` is
    /// the run that it is made of, which the caller may hold already.
    ///
    /// # Errors
    /// [`TrainError::RunFile`] for a place that the run uses itself, [`TrainError::InUse`] where another process writes there.
    pub fn around(out: &Path, from: Option<&Self>) -> Result<Option<Self>, TrainError> {
        let at = resolved(out)?;
        // The outermost: what an evaluation trains are runs inside a run.
        let is_run = |path: &&Path| path.join("config.toml").is_file() && path.join("checkpoints").is_dir();
        let Some(run) = at.ancestors().skip(1).filter(is_run).last() else { return Ok(None) };
        let inside = at.strip_prefix(run).unwrap_or(&at);
        let first = inside.iter().next().unwrap_or_default().to_string_lossy();
        let own_file = OWN_FILES.iter().any(|name| first.starts_with(name));
        if OWN_FOLDERS.contains(&&*first) || own_file {
            return Err(TrainError::RunFile { path: out.to_owned(), run: run.to_owned() });
        }
        let same = from.filter(|from| fs_err::canonicalize(&from.path).is_ok_and(|path| path == run));
        let folder = same.cloned().unwrap_or_else(|| Self::at(run));
        folder.hold()?;
        Ok(Some(folder))
    }

    /// The folder as the other processes of a run name it; they read and write nothing there.
    pub fn of_another_process(path: &Path) -> Self {
        Self::at(path)
    }

    /// Opens an existing one, to read it; to write there, [`RunFolder::hold`] it.
    ///
    /// # Errors
    /// No run there.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let folder = Self::at(path);
        if !folder.config_file().is_file() {
            let reason = if path.exists() {
                "it holds no config.toml, so it is no run folder"
            } else {
                "no such folder"
            };
            return Err(TrainError::RunFolder { path: path.to_owned(), reason: reason.into() });
        }
        Ok(folder)
    }

    /// Removes what [`RunFolder::create`] made, if nothing else was written: a run that could not start leaves no trace. Only
    /// who holds the folder may do so: to others its files belong to another process.
    pub fn remove_if_unused(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() && !self.config_file().exists() {
            // `remove_dir` refuses a folder that holds anything.
            let _ = fs_err::remove_dir(self.checkpoints())
                .and_then(|()| fs_err::remove_file(self.path.join(LOCK_FILE)))
                .and_then(|()| fs_err::remove_dir(&self.path));
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration, every default written out.
    pub fn config_file(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// One JSON object per step.
    pub fn metrics_file(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Names of images that could not be decoded, with reasons.
    pub fn bad_files(&self) -> PathBuf {
        self.path.join("bad_files.txt")
    }

    /// Which images it was trained on: fingerprint, stamp and content of each.
    pub fn images_file(&self) -> PathBuf {
        self.path.join("images.safetensors")
    }

    /// What the newest evaluation found.
    pub fn results_file(&self) -> PathBuf {
        self.path.join("results.json")
    }

    /// What every evaluation found: a file for each data set, checkpoint and way of evaluating it.
    pub fn results_history(&self) -> PathBuf {
        self.path.join("results")
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The checkpoint after `step` steps.
    pub fn checkpoint_file(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:09}.safetensors"))
    }

    /// Name of the list of images of the batch after which a value was not finite.
    pub(super) fn non_finite_file(&self, step: u64) -> String {
        format!("nonfinite-step-{step}.txt")
    }

    /// Writes a text file of the run atomically.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, name: &str, text: &str) -> Result<(), TrainError> {
        Ok(write_atomically(&self.path.join(name), text.as_bytes())?)
    }

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn checkpoint_files(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let folder = self.checkpoints();
        let mut files = Vec::new();
        for entry in
            if folder.is_dir() { Some(fs_err::read_dir(folder)?) } else { None }.into_iter().flatten()
        {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("step-") && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
        files.sort(); // names carry the step with leading zeros
        Ok(files)
    }

    /// The newest whole checkpoint, with a sentence for each newer one that is damaged. `None`: none was written yet.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where there are checkpoints and none is whole: starting anew would lose the run.
    pub fn newest_checkpoint(&self) -> Result<Newest, CheckpointError> {
        let mut passed_over = Vec::new();
        let mut last_error = None;
        for path in self.checkpoint_files()?.into_iter().rev() {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => return Ok((Some((path, checkpoint)), passed_over)),
                Err(error) => {
                    passed_over.push(format!("passed over: {error}"));
                    last_error.get_or_insert(error);
                }
            }
        }
        last_error.map_or(Ok((None, Vec::new())), Err)
    }

    /// Removes all but the newest `keep` of the checkpoints up to `step`, which was just written. Later ones can only be
    /// damaged files that a resumed run passed over; they must not count as the ones to keep.
    ///
    /// # Errors
    /// The operating system's.
    pub fn prune_checkpoints(&self, step: u64, keep: usize) -> Result<(), CheckpointError> {
        let newest = self.checkpoint_file(step);
        let files: Vec<_> = self.checkpoint_files()?.into_iter().filter(|path| *path <= newest).collect();
        for old in &files[..files.len().saturating_sub(keep)] {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }

    /// Removes what a process that was killed while it wrote has left; call before anything is written, while holding the
    /// folder.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove_partial_files(&self) -> Result<(), std::io::Error> {
        for folder in [self.path.clone(), self.checkpoints()].iter().filter(|folder| folder.is_dir()) {
            for entry in fs_err::read_dir(folder)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX) {
                    fs_err::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }
}
