//! The files of the workspace, for tests that read them.

use fs_err as fs;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace has a root")
}

/// Files below `folder` with one of the `extensions`, sorted; at least one.
pub fn files_below(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let found = all_files(folder, extensions);
    assert!(!found.is_empty(), "no file with an extension of {extensions:?} below {}", folder.display());
    found
}

/// [`files_below`] that may find none.
pub fn all_files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all_files(&path, extensions));
        } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            found.push(path);
        }
    }
    found.sort();
    found
}
