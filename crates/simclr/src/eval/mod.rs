//! Evaluation of encoders: frozen features under kNN, retrieval and linear classifiers, compared with three controls; and
//! protocols that train: fine-tuning, on the evaluated set and on others, the linear classifier on crops, the supervised
//! baseline.

pub mod classify; // the better classifier of a run, calibrated
mod context; // state shared by the protocols
pub mod data; // labelled sets, label subsets, splits
mod evaluate; // run, data -> results
pub mod features; // frozen encoders, features
mod finetune; // protocols that train
pub mod layer; // h, z or a layer of the head
mod load; // TOML and --set -> EvalConfig
pub mod options; // EvalConfig
pub mod probes; // classifiers on frozen features
pub mod report; // results, tables, comparison
pub mod semi_supervised; // fine-tuning, distillation, self-training as runs of their own
mod validate; // ranges of the options

pub use evaluate::evaluate;
pub use load::{EvalKey, KEYS};
pub use options::EvalConfig;
