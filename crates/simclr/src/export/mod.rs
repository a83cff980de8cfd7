//! Export of the encoder as safetensors with torchvision's names (`encoder`), of features as parquet or .npy (`embed`), and of views
//! as safetensors (`array`).

mod array; // views -> safetensors
pub mod embed; // images -> table of h
pub mod encoder; // run -> encoder file, verified
mod npy; // rows -> .npy

pub use array::{is_safetensors_of_views, safetensors_of_views};
pub use embed::{EmbedOptions, Embedded, embed};
pub use encoder::{Exported, export_encoder, load_exported};
pub use npy::{NpyWriter, rows as npy_rows};
