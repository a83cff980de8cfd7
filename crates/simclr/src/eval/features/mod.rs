//! Frozen encoders and the features of images.

pub(crate) mod cache; // images -> features, in pieces that survive an interruption
mod decodable; // decodable images of both parts
mod extract; // images -> rows
mod frozen_encoder; // run folder -> frozen encoder
pub mod import;
mod official; // weights of other programs -> run folder

pub(crate) use cache::{Columns, FeatureCache, Part};
pub(crate) use decodable::DecodableImages;
pub use extract::*;
pub use frozen_encoder::{FrozenEncoder, Origin, load_encoder, load_encoder_on};
