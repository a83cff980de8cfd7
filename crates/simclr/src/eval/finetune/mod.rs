//! finetune

pub mod grid;
pub mod presets;
pub mod protocols;
pub mod runner;
pub mod transfer;
