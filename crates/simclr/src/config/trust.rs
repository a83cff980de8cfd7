//! Which TorchScript modules are loaded. A module runs code with the rights of the user, so one that a run folder names is loaded only
//! if this user made the folder or trusts such modules.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::RunConfig;
use crate::ConfigError;

static TRUSTED: AtomicBool = AtomicBool::new(false);

/// Loads the TorchScript modules of all run folders from now on (`--trust-encoder-file`).
pub fn trust_encoder_files() {
    TRUSTED.store(true, Ordering::Relaxed);
}

/// Checks the `config` at `file` of a run folder.
///
/// # Errors
/// [`ConfigError::Untrusted`] for a TorchScript module in the configuration of another user.
pub(super) fn check(config: &RunConfig, file: &Path) -> Result<(), ConfigError> {
    let Some(module) = config.encoder.file.as_deref().filter(|_| !TRUSTED.load(Ordering::Relaxed)) else {
        return Ok(());
    };
    match (owner(file), owner(Path::new("/proc/self"))) {
        (Some(made_by), Some(own)) if made_by != own => {
            Err(ConfigError::Untrusted { path: file.to_owned(), module: module.to_owned(), owner: made_by })
        }
        _ => Ok(()),
    }
}

/// User of a file; of `/proc/self` that of this process.
#[cfg(unix)]
fn owner(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs_err::metadata(path).ok().map(|metadata| metadata.uid())
}

#[cfg(not(unix))]
fn owner(_: &Path) -> Option<u32> {
    None
}
