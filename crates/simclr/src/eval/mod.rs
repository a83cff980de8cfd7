//! eval

pub mod data;
pub mod evaluate;
pub mod features;
pub mod finetune;
pub mod layer;
pub mod probes;
pub mod report;
