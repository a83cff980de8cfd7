//! The run: loop ([`run`]), one update ([`step`]), what is saved ([`state`]), who is told ([`observe`]).

pub mod observe;
pub mod run;
pub mod run_folder;
pub mod state;
pub mod step;

pub use observe::{Observer, StepReport};
pub use run::{Outcome, pretrain};
pub use run_folder::RunFolder;
