//! State shared by all protocols of one evaluation.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    features::{FrozenEncoder, ReadOptions},
    options::EvalConfig,
    report::ResultsCache,
};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

pub(crate) struct EvalContext<'a> {
    pub(crate) run: &'a RunFolder,
    /// The evaluated encoder.
    pub(crate) encoder: &'a FrozenEncoder,
    /// Random-init encoders of the same architecture.
    pub(crate) controls: &'a [FrozenEncoder],
    pub(crate) config: &'a EvalConfig,
    pub(crate) cache: &'a ResultsCache,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
}

impl EvalContext<'_> {
    pub(crate) fn read_options(&self) -> ReadOptions {
        ReadOptions::of(self.encoder, self.config.batch, self.config.threads)
    }

    /// # Errors
    /// [`EvalError::Stopped`] after a signal.
    pub(crate) fn check_stop(&self) -> Result<(), EvalError> {
        if self.stop.load(Ordering::Relaxed) { Err(EvalError::Stopped) } else { Ok(()) }
    }
}
