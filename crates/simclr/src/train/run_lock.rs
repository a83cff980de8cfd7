//! An advisory file lock that lets one process at a time write to a run folder.

use std::{fs::TryLockError, io::Write, path::Path, time::Duration};

use fs_err::File;
use serde::{Deserialize, Serialize};

use crate::{TrainError, dist::host};

/// The locked file. It stays in the folder: if it were removed while another process opens it, two processes could hold a lock.
pub(super) const LOCK_FILE: &str = "run.lock";

/// Attempts if the lock file is removed concurrently.
const MAX_ATTEMPTS: usize = 100;

/// The lock of a run folder. The kernel releases it when the process ends for any reason.
#[derive(Debug)]
pub(super) struct RunLock {
    file: File,
    /// `false` if the file system does not support locks.
    is_locked: bool,
}

/// Content of the lock file, for the error message of other processes; the kernel's lock is what excludes them.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
}

impl RunLock {
    /// Takes the lock of `folder`, which is created if it is missing, because a run that could not start may just have removed it.
    ///
    /// # Errors
    /// [`TrainError::InUse`] if another process has it; a folder that cannot be written.
    pub(super) fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(LOCK_FILE);
        for _ in 0..MAX_ATTEMPTS {
            fs_err::create_dir_all(folder)?;
            let mut options = fs_err::OpenOptions::new();
            let file = match options.create(true).truncate(false).read(true).write(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let is_locked = match file.file().try_lock() {
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => return Err(in_use(folder)),
                Err(TryLockError::Error(error)) if has_no_locks(&error) => false,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            };
            let lock = Self { file, is_locked };
            lock.write_holder()?;
            return Ok(lock);
        }
        Err(in_use(folder))
    }

    /// A warning if the file system does not support locks.
    pub(super) fn note(&self) -> Option<String> {
        let note = "the file system of the run folder does not support locks: make sure that no other process writes to it";
        (!self.is_locked).then(|| note.into())
    }

    fn write_holder(&self) -> Result<(), std::io::Error> {
        let holder = Holder { pid: std::process::id(), host: host() };
        self.file.set_len(0)?;
        let mut file = self.file.file();
        file.write_all(serde_json::to_string(&holder)?.as_bytes())
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing the file releases the lock; if truncation fails, the stale content is harmless.
        let _ = self.file.set_len(0);
    }
}

/// Whether `file` is still the file at `path`; a lock on a removed file excludes no one.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let locked = file.metadata().map(id).ok();
    locked.is_some() && locked == fs_err::metadata(path).map(id).ok()
}

/// As on NFS without a lock daemon, Lustre without `flock`, some FUSE file systems.
fn has_no_locks(error: &std::io::Error) -> bool {
    let no_lock = rustix::io::Errno::NOLCK.raw_os_error();
    error.kind() == std::io::ErrorKind::Unsupported || error.raw_os_error() == Some(no_lock)
}

fn in_use(folder: &Path) -> TrainError {
    TrainError::InUse { path: folder.to_owned(), holder: holder(&folder.join(LOCK_FILE)) }
}

/// Such as `process 12 on host`, once the other process has written the file.
fn holder(path: &Path) -> String {
    for _ in 0..20 {
        let text = fs_err::read_to_string(path).unwrap_or_default();
        if let Ok(Holder { pid, host }) = serde_json::from_str(&text) {
            let host: String = host.chars().filter(|c| c.is_ascii_graphic()).collect();
            return format!("process {pid} on {host}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    "another process".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_fails_until_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = RunLock::take(&run).unwrap();
        assert!(first.note().is_none());
        let error = RunLock::take(&run).unwrap_err();
        let pid = std::process::id().to_string();
        let message = error.to_string();
        assert!(message.contains(&run.display().to_string()) && message.contains(&pid), "{message}");
        assert!(error.hint().is_some());
        drop(first);
        RunLock::take(&run).unwrap();
    }

    #[test]
    fn stale_content_of_a_killed_process_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(LOCK_FILE), r#"{"pid":1,"host":"elsewhere"}"#).unwrap();
        RunLock::take(folder.path()).unwrap();
    }

    #[test]
    fn is_at_detects_a_removed_or_replaced_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK_FILE);
        let lock = RunLock::take(folder.path()).unwrap();
        assert!(is_at(&lock.file, &path));
        fs_err::remove_file(&path).unwrap();
        assert!(!is_at(&lock.file, &path));
        fs_err::write(&path, "").unwrap();
        assert!(!is_at(&lock.file, &path), "a new file of the same name");
    }

    #[test]
    fn only_unsupported_locks_are_tolerated() {
        let os_error = |errno: rustix::io::Errno| std::io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [rustix::io::Errno::NOLCK, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOSYS] {
            assert!(has_no_locks(&os_error(errno)), "{errno}");
        }
        for errno in [rustix::io::Errno::IO, rustix::io::Errno::BADF, rustix::io::Errno::WOULDBLOCK] {
            assert!(!has_no_locks(&os_error(errno)), "{errno}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join(LOCK_FILE)).unwrap();
        assert!(RunLock { file, is_locked: false }.note().is_some());
    }
}
