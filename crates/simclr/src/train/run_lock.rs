//! One process at a time writes to a run folder: an advisory lock on a file in it.

use std::{fs::TryLockError, io::Write, path::Path, time::Duration};

use fs_err::File;
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// The file that is locked. It stays in the folder: removing it while another process waits to open it would let two in.
pub(super) const LOCK_FILE: &str = "run.lock";

/// How often a lock file that was removed at the same moment is made anew.
const TRIES: usize = 100;

/// The right to write to a run folder. The kernel releases it when the process ends, however that happens.
#[derive(Debug)]
pub(super) struct RunLock {
    file: File,
    /// Whether the file system has locks.
    is_locked: bool,
}

/// What the lock file tells a process that is refused. It decides nothing: the kernel's lock does.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
}

impl RunLock {
    /// Takes the lock of `folder`, which is made where it is missing: a run that could not start may just have removed it.
    ///
    /// # Errors
    /// [`TrainError::InUse`] where another process holds it; a folder that cannot be written.
    pub(super) fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(LOCK_FILE);
        for _ in 0..TRIES {
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
            lock.name_holder()?;
            return Ok(lock);
        }
        Err(in_use(folder))
    }

    /// What to tell the user where there is no protection.
    pub(super) fn note(&self) -> Option<String> {
        let note =
            "the file system of the run folder has no locks: make sure that no other process writes to it";
        (!self.is_locked).then(|| note.into())
    }

    fn name_holder(&self) -> Result<(), std::io::Error> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let holder = Holder { pid: std::process::id(), host };
        self.file.set_len(0)?;
        let mut file = self.file.file();
        file.write_all(serde_json::to_string(&holder)?.as_bytes())
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing the file releases the lock; a name that stays does no harm.
        let _ = self.file.set_len(0);
    }
}

/// Whether `file` is still the one at `path`. A lock on a file that was removed protects nothing.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (locked, there) = (file.metadata().map(id), fs_err::metadata(path).map(id));
    matches!((locked, there), (Ok(locked), Ok(there)) if locked == there)
}

/// NFS without a lock daemon, Lustre without `flock`, some FUSE file systems.
fn has_no_locks(error: &std::io::Error) -> bool {
    let no_lock = rustix::io::Errno::NOLCK.raw_os_error();
    error.kind() == std::io::ErrorKind::Unsupported || error.raw_os_error() == Some(no_lock)
}

fn in_use(folder: &Path) -> TrainError {
    TrainError::InUse { path: folder.to_owned(), holder: holder(&folder.join(LOCK_FILE)) }
}

/// `process 12 on host`, once the other process has written that down.
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
    fn the_second_is_refused_until_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = RunLock::take(&run).unwrap();
        assert!(first.note().is_none());
        let refused = RunLock::take(&run).unwrap_err();
        let pid = std::process::id().to_string();
        let message = refused.to_string();
        assert!(message.contains(&run.display().to_string()) && message.contains(&pid), "{message}");
        assert!(refused.hint().is_some());
        drop(first);
        RunLock::take(&run).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_in_the_file_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(LOCK_FILE), r#"{"pid":1,"host":"elsewhere"}"#).unwrap();
        RunLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK_FILE);
        let lock = RunLock::take(folder.path()).unwrap();
        assert!(is_at(&lock.file, &path));
        fs_err::remove_file(&path).unwrap();
        assert!(!is_at(&lock.file, &path));
        fs_err::write(&path, "").unwrap();
        assert!(!is_at(&lock.file, &path), "another file of the same name");
    }

    #[test]
    fn only_missing_locks_are_passed_over() {
        let of = |errno: rustix::io::Errno| std::io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [rustix::io::Errno::NOLCK, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOSYS] {
            assert!(has_no_locks(&of(errno)), "{errno}");
        }
        for errno in [rustix::io::Errno::IO, rustix::io::Errno::BADF, rustix::io::Errno::WOULDBLOCK] {
            assert!(!has_no_locks(&of(errno)), "{errno}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join(LOCK_FILE)).unwrap();
        assert!(RunLock { file, is_locked: false }.note().is_some());
    }
}
