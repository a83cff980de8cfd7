//! From a folder of images to batches of two augmented views (SimCLR, arXiv 2002.05709, section 2 and appendix A).
//!
//! The modules stand in the order in which an image passes through them. Nothing here knows a tensor framework,
//! and nothing prints. All randomness starts in [`rng`], keyed by (seed, epoch, image, view), so a view does not
//! depend on threads, on the batch, or on where a run was resumed.
//!
//! Dimension alphabet: N images of a batch, 2N views, C channels, H height, W width, S side of a view.

pub mod error;
pub mod image;

pub mod augment; // dice (ViewParams), then pixels
pub mod batch; // 2N views -> Batch, the row order
pub mod chunking; // which views go through the encoder together
pub mod dataset; // what exists: samples, labels, splits
pub mod decode; // bytes -> Image
pub mod deferred; // images and dice, for views that are made elsewhere
pub mod loader; // order, worker threads, prefetch, bad files
pub mod output; // where results may be written
pub mod range; // which stored values become 0 and 255
pub mod rng; // (seed, epoch, image, view) -> generator

pub use augment::{AugmentConfig, ViewParams};
pub use batch::{Batch, Chunk, Views};
pub use chunking::Chunking;
pub use dataset::{Dataset, Sample, Split};
pub use deferred::{DeferredView, DeferredViews, ViewSpec};
pub use error::DataError;
pub use image::Image;
pub use loader::{Loader, LoaderConfig};
pub use range::{RangeChoice, ValueRange};
