//! The run: its loop ([`run`]), one update ([`step`]), what is saved ([`state`]), who is told ([`observe`]).

mod bad_files;
mod clock;
mod events;
mod metrics;
pub mod observe;
mod online_knn;
pub mod run;
pub mod run_folder;
mod start;
pub mod state;
pub mod step;

pub use observe::{Observer, Silent, StepReport};
pub use run::{Outcome, pretrain, pretrain_among};
pub use run_folder::RunFolder;
