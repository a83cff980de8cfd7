//! Interruptions, broken streams, concurrent processes and outputs that name inputs: no data is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod interrupted;
mod outputs;
mod run_lock;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use fs_err as fs;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Twelve steps, with a checkpoint after each; all are kept.
const STEPS: [&str; 6] =
    ["--epochs", "6", "--set", "train.checkpoint_minutes=0", "--set", "train.keep_checkpoints=20"];

/// All files below `folder` with their bytes, except for locks.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().unwrap() != "run.lock" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[track_caller]
fn no_partial_file(folder: &Path) {
    let partial = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".partial-");
    assert_eq!(contents(folder).keys().filter(partial).count(), 0);
}
