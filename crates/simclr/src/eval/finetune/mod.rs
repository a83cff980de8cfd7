//! Protocols that train.

pub(crate) mod grid; // learning rates and weight decays -> candidates
pub(crate) mod presets; // the run's configuration -> that of a protocol
pub(crate) mod protocols; // protocols on the evaluated set -> rows
pub(crate) mod runner; // configuration, images -> figure of a trained model
pub(crate) mod transfer; // fine-tuning on transfer sets -> figures
