//! The life of a run, top to bottom.

use std::{path::Path, sync::atomic::AtomicBool};

use super::{Observer, RunFolder};
use crate::{RunConfig, TrainError};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done.
    Finished,
    /// `stop` was set: a checkpoint is written, `--resume` goes on from it.
    Stopped,
}

/// Pretrains on the images of `data`, or goes on from the newest checkpoint of `folder` if it has one.
///
/// # Errors
/// See [`TrainError`]; whatever happens, the last whole checkpoint stays.
pub fn pretrain(
    config: &RunConfig,
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let _ = (config, data, folder, observer, stop);
    todo!("helper train")
}
