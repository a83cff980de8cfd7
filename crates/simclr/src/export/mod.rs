//! Export of the encoder as safetensors with torchvision's names (`encoder`) and of features as parquet or .npy (`embed`).

pub mod embed; // images -> table of h
pub mod encoder; // run -> encoder file, verified
mod npy; // rows -> .npy

pub use embed::{EmbedOptions, Embedded, embed};
pub use encoder::{Exported, export_encoder};
pub use npy::{NpyWriter, rows as npy_rows};
