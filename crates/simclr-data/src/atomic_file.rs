//! Atomic replacement of files: a temporary sibling is written, synced and renamed, so that `path` holds either the old file or
//! the whole new one.

use std::{
    io::{Error, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::NamedTempFile;

/// Name prefix of temporary files; one that exists later was left by a killed process.
pub const PARTIAL_PREFIX: &str = ".partial-";

/// Replaces `path` by a file of `bytes`.
///
/// # Errors
/// Those of the operating system, with the path. The old file is untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = create(path)?;
    file.write_all(bytes).map_err(|error| cannot_write(path, &error))?;
    persist(file, path)
}

/// A temporary file next to `path`, for [`persist`]; deleted if dropped. Its permissions follow the umask.
///
/// # Errors
/// Those of the operating system, with the path.
pub fn create(path: &Path) -> Result<NamedTempFile, Error> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL_PREFIX).permissions(PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder_of(path)).map_err(|error| cannot_write(path, &error))
}

/// Syncs `file` and renames it to `path`.
///
/// # Errors
/// Those of the operating system, with the path. The old file is untouched.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    let persisted = file.as_file().sync_all().and_then(|()| file.persist(path).map_err(|error| error.error));
    // The rename is durable once the folder is synced.
    let synced = persisted.and_then(|_| fs_err::File::open(folder_of(path))?.sync_all());
    synced.map_err(|error| cannot_write(path, &error))
}

/// `error` with the path that could not be written.
pub(crate) fn cannot_write(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
