//! What h says about a set: nearest neighbours, a map of two dimensions, and images that a person should look at.

mod embedded_set; // run, path -> images of all parts with h
pub mod findings; // neighbours, labels -> odd images, near-duplicates, label errors
pub mod map; // h -> two dimensions
pub mod nearest; // h -> neighbours
pub mod projection; // parts of h -> two dimensions
mod query; // files -> neighbours in a set
pub mod umap; // h -> two dimensions, not linear

pub use embedded_set::{EmbeddedSet, ExploreOptions, Member};
pub use query::{Found, Query, neighbours};
