//! Export of the encoder as safetensors with torchvision's names (`encoder`), alone or with a classifier (`classifier`), of features
//! (`embed`) and predictions (`predict`) as tables, and of views as safetensors (`array`).

mod array; // views -> safetensors
mod card; // run -> model card
pub mod classifier; // encoder with classifier <-> file
pub mod embed; // images -> table of h
pub mod encoder; // run -> encoder file, verified
pub mod feature_table; // rows of h -> parquet, .npy, .tsv
pub mod onnx; // encoder -> ONNX
mod parquet_file; // schema -> writer of a table
mod npy; // rows -> .npy
pub mod predict; // images -> table of probabilities
mod prediction_table; // probabilities -> parquet, .csv
mod projector; // rows of h -> files of TensorBoard's projector
mod rows; // features with images -> writers
mod timm; // run -> folder of timm

pub use array::{is_safetensors_of_views, safetensors_of_views};
pub use classifier::{load_classifier, write_classifier};
pub use embed::{EmbedOptions, Embedded, embed};
pub use encoder::{Exported, export_encoder, load_exported};
pub use feature_table::MoreColumns;
pub use npy::{NpyWriter, rows as npy_rows};
pub use onnx::export_onnx;
pub use predict::{PredictOptions, Predicted, predict};
pub use timm::export_timm;
