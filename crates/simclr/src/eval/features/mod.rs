//! features

pub mod cache;
pub mod frozen_encoder;
pub mod import;

pub use frozen_encoder::*;
