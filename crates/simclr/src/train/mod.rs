//! A training run: set-up (`setup`), steps ([`fit`]), files of the run folder (`journal`), state of a checkpoint ([`state`]).

mod auto_config; // values of keys that the user did not set; memory and duration
mod bad_files;
mod chance;
mod clock;
mod communication; // its share of a step
pub mod doctor;
mod events;
mod fit;
pub(crate) mod images;
mod init; // initial weights of a new run
mod journal;
mod machine; // free memory, peak
mod memory_floor; // lower bound of the memory of a run
mod metrics;
pub mod observe;
mod online_knn;
pub mod recorded; // metrics.jsonl -> values
pub mod run_folder;
mod run_lock;
mod sessions;
mod setup;
mod start;
pub mod state;
pub mod trained_classifier;
mod view_sheet; // images and views, for TensorBoard

pub use auto_config::choose_views;
pub use fit::{Outcome, fit, pretrain};
pub use observe::{Observer, Silent, StepReport};
pub use run_folder::RunFolder;
pub use sessions::SessionEvent;
pub use state::may_change;
