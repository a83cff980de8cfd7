//! Paths of the files in a run folder; no other module has these names.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use simclr_data::output::resolved;

use super::run_lock::{LOCK_FILE, RunLock};
use crate::{
    CheckpointError, TrainError,
    checkpoint::{Checkpoint, PARTIAL_PREFIX},
    config::Written,
};

/// Folder of a run: `config.toml`, `written.toml`, `plan.json`, `environment.json`, `sessions.jsonl`, `metrics.jsonl`,
/// `events.out.tfevents.*`, `checkpoints/step-<n>.safetensors`, `images.safetensors`, `bad_files.txt`, `results.json`, `results/`, `classifier.json`.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    /// Shared by all clones; `None` until [`RunFolder::hold`].
    lock: Arc<Mutex<Option<RunLock>>>,
}

const CONFIG: &str = "config.toml";
const WRITTEN: &str = "written.toml";
const PLAN: &str = "plan.json";
const ENVIRONMENT: &str = "environment.json";
const SESSIONS: &str = "sessions.jsonl";
const METRICS: &str = "metrics.jsonl";
const BAD_FILES: &str = "bad_files.txt";
const RESULTS: &str = "results.json";
const NON_FINITE: &str = "nonfinite-step-";
const CLASSIFIER: &str = "classifier.json";
const CHECKPOINTS: &str = "checkpoints";
const EVALUATION: &str = "evaluation";
/// Subfolders reserved for the run.
const RESERVED_FOLDERS: [&str; 2] = [CHECKPOINTS, EVALUATION];
/// Files reserved for the run, by name or prefix.
const RESERVED_FILES: [&str; 13] = [
    CONFIG,
    WRITTEN,
    PLAN,
    ENVIRONMENT,
    SESSIONS,
    METRICS,
    BAD_FILES,
    RESULTS,
    CLASSIFIER,
    LOCK_FILE,
    "events.out.tfevents.",
    NON_FINITE,
    PARTIAL_PREFIX,
];

/// The newest intact checkpoint, and notes about damaged newer ones.
pub type Newest = (Option<Checkpoint>, Vec<String>);

impl RunFolder {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: Arc::default() }
    }

    /// Creates a new run folder and locks it, see [`RunFolder::hold`].
    ///
    /// # Errors
    /// [`TrainError::InUse`] if another process writes to it, [`TrainError::RunExists`]; a folder that cannot be
    /// written.
    pub fn create(path: &Path) -> Result<Self, TrainError> {
        let folder = Self::at(path);
        match (folder.hold(), folder.config_file().exists()) {
            (Err(in_use @ TrainError::InUse { .. }), _) => Err(in_use),
            (_, true) => Err(TrainError::RunExists { path: path.to_owned() }),
            (Err(error), false) => Err(error),
            (Ok(_), false) => {
                fs_err::create_dir_all(folder.checkpoints())?;
                Ok(folder)
            }
        }
    }

    /// Locks the folder against other processes until the last clone is dropped. Idempotent. Returns a note for the user if the
    /// file system does not support locks.
    ///
    /// # Errors
    /// [`TrainError::InUse`] if another process has the lock; a folder that cannot be written.
    pub fn hold(&self) -> Result<Option<String>, TrainError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            *lock = Some(RunLock::take(&self.path)?);
        }
        Ok(lock.as_ref().and_then(RunLock::note))
    }

    /// The run folder that contains the output path `out`, locked; `None` if no run folder does. `from` is the run that the output is
    /// computed from and may be locked already.
    ///
    /// # Errors
    /// [`TrainError::RunFile`] for a path reserved for the run, [`TrainError::InUse`] if another process writes to the folder.
    pub fn around(out: &Path, from: Option<&Self>) -> Result<Option<Self>, TrainError> {
        let at = resolved(out)?;
        // The outermost one, because evaluations train runs inside a run folder.
        let is_run = |path: &&Path| Self::is_run(path) && path.join(CHECKPOINTS).is_dir();
        let Some(run) = at.ancestors().skip(1).filter(is_run).last() else { return Ok(None) };
        let inside = at.strip_prefix(run).unwrap_or(&at);
        let first = inside.iter().next().unwrap_or_default().to_string_lossy();
        let is_reserved_file = RESERVED_FILES.iter().any(|name| first.starts_with(name));
        if RESERVED_FOLDERS.contains(&&*first) || is_reserved_file {
            return Err(TrainError::RunFile { path: out.to_owned(), run: run.to_owned() });
        }
        let same = from.filter(|from| fs_err::canonicalize(&from.path).is_ok_and(|path| path == run));
        let folder = same.cloned().unwrap_or_else(|| Self::at(run));
        folder.hold()?;
        Ok(Some(folder))
    }

    /// For ranks above 0, which neither read nor write the folder.
    pub fn of_another_process(path: &Path) -> Self {
        Self::at(path)
    }

    /// Opens an existing run folder for reading; [`RunFolder::hold`] it before writing.
    ///
    /// # Errors
    /// [`TrainError::RunFolder`] without a `config.toml`.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let folder = Self::at(path);
        if !Self::is_run(path) {
            let reason = if path.exists() {
                "it holds no config.toml, so it is no run folder"
            } else {
                "no such folder"
            };
            return Err(TrainError::RunFolder { path: path.to_owned(), reason: reason.into() });
        }
        Ok(folder)
    }

    /// Undoes [`RunFolder::create`] for a run that could not start, if nothing else was written and this process has the lock.
    pub fn remove_if_unused(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() && !self.config_file().exists() {
            let _ = fs_err::remove_file(self.sessions_file());
            // `remove_dir` removes empty folders only.
            let _ = fs_err::remove_dir(self.checkpoints())
                .and_then(|()| fs_err::remove_file(self.path.join(LOCK_FILE)))
                .and_then(|()| fs_err::remove_dir(&self.path));
        }
    }

    /// Whether the folder `path` holds a configuration.
    pub fn is_run(path: &Path) -> bool {
        path.join(CONFIG).is_file()
    }

    /// As given, not canonical.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration, every default written out.
    pub fn config_file(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The configuration as written at the start, see [`Written`].
    pub fn written_file(&self) -> PathBuf {
        self.path.join(WRITTEN)
    }

    /// The contents of [`RunFolder::written_file`]; `None` in runs of earlier versions, and in runs by a caller of the library that
    /// leaves no key open.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn written(&self) -> Result<Option<Written>, TrainError> {
        let path = self.written_file();
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Written::of_toml(&path, &fs_err::read_to_string(&path)?)?))
    }

    /// The configuration as run, see [`crate::Plan`].
    pub fn plan_file(&self) -> PathBuf {
        self.path.join(PLAN)
    }

    /// Versions, host, device, threads and processes of the latest start.
    pub fn environment_file(&self) -> PathBuf {
        self.path.join(ENVIRONMENT)
    }

    /// Starts and ends of the processes that trained, see [`super::SessionEvent`].
    pub fn sessions_file(&self) -> PathBuf {
        self.path.join(SESSIONS)
    }

    /// Folder of cached figures and of the runs that evaluations train.
    pub fn evaluation(&self) -> PathBuf {
        self.path.join(EVALUATION)
    }

    /// One JSON object per step.
    pub fn metrics_file(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Names of images that could not be decoded, with reasons, tab-separated.
    pub fn bad_files(&self) -> PathBuf {
        self.path.join(BAD_FILES)
    }

    /// Record of the training images: fingerprint of the set, time stamp and content digest of each image.
    pub fn images_file(&self) -> PathBuf {
        self.path.join("images.safetensors")
    }

    /// Results of the newest evaluation.
    pub fn results_file(&self) -> PathBuf {
        self.path.join(RESULTS)
    }

    /// Accuracy of the run's own classifier.
    pub fn classifier_file(&self) -> PathBuf {
        self.path.join(CLASSIFIER)
    }

    /// Folder with the results of all evaluations, a file per data set, checkpoint and protocol.
    pub fn results_history(&self) -> PathBuf {
        self.path.join("results")
    }

    /// Folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The checkpoint after `step` steps.
    pub fn checkpoint_file(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:09}.safetensors"))
    }

    /// Names of the images of a batch with a non-finite loss, gradient or weight.
    pub(super) fn non_finite_file(&self, step: u64) -> PathBuf {
        self.path.join(format!("{NON_FINITE}{step}.txt"))
    }

    /// All checkpoints, oldest first.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn checkpoint_files(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let folder = self.checkpoints();
        let mut files = Vec::new();
        if !folder.is_dir() {
            return Ok(files);
        }
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("step-") && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
        files.sort(); // step numbers have leading zeros
        Ok(files)
    }

    /// The newest intact checkpoint, `None` if none was written yet; with a note for each newer one that is damaged.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if all checkpoints are damaged, because starting over would lose the run.
    pub fn newest_checkpoint(&self) -> Result<Newest, CheckpointError> {
        let mut passed_over = Vec::new();
        let mut last_error = None;
        for path in self.checkpoint_files()?.into_iter().rev() {
            match Checkpoint::load(&path) {
                Ok(checkpoint) => return Ok((Some(checkpoint), passed_over)),
                Err(error) => {
                    passed_over.push(format!("passed over: {error}"));
                    last_error.get_or_insert(error);
                }
            }
        }
        last_error.map_or(Ok((None, Vec::new())), Err)
    }

    /// Removes all but the newest `keep` of the checkpoints up to `step`, which was just written. Later ones are damaged files that
    /// the resumed run skipped; they are not counted.
    ///
    /// # Errors
    /// A folder that cannot be listed, a file that cannot be removed.
    pub fn prune_checkpoints(&self, step: u64, keep: usize) -> Result<(), CheckpointError> {
        let newest = self.checkpoint_file(step);
        let files: Vec<_> = self.checkpoint_files()?.into_iter().filter(|path| *path <= newest).collect();
        for old in &files[..files.len().saturating_sub(keep)] {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }

    /// Removes partial files of a process that was killed. Call with the lock held and before any write.
    ///
    /// # Errors
    /// A folder that cannot be listed, a file that cannot be removed.
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
