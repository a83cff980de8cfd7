//! The run: its loop ([`run`]), one update ([`step`]; of a batch in chunks: [`large`]), what is saved ([`state`]), who is told ([`observe`]).

mod agreed;
mod bad_files;
mod chance; // loss -> a warning where it stays at chance
mod clock;
pub mod doctor;
mod events;
mod feed;
mod fit; // what a run takes where nothing is written, and how long it takes
pub(crate) mod images;
pub mod large;
mod lock_step;
mod metrics;
pub mod observe;
mod online_knn;
pub mod recorded;
pub mod run;
pub mod run_folder;
mod run_lock;
mod start;
pub mod state;
pub mod step;

pub use observe::{Observer, Silent, StepReport};
pub use run::{Outcome, fit, pretrain};
pub use run_folder::RunFolder;
