//! One file per command: arguments to library calls to output.

pub mod classify;
pub mod compare;
pub mod config;
pub mod distill;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod export;
pub mod finetune;
pub mod inspect;
pub mod launch;
pub mod neighbours;
pub mod pack;
pub mod pretrain;
pub mod report;
pub mod self_train;
pub mod shell;
pub mod study;
pub mod views;

use std::path::PathBuf;

use simclr::data::dataset::as_one_path;

use crate::failure::Failure;

/// The `--data` paths as one path.
fn data_path(given: &[PathBuf]) -> Result<Option<PathBuf>, Failure> {
    Ok((!given.is_empty()).then(|| as_one_path(given)).transpose()?)
}
