//! From a folder of images to batches of two augmented views (SimCLR, arXiv 2002.05709, section 2 and appendix A).
//!
//! A module imports only modules that are declared before it: the order in which an image passes through. The crate depends on no tensor framework and
//! never prints. All randomness comes from [`rng`], keyed by (seed, epoch, image, view), so a view depends neither on the number
//! of threads, nor on the batch, nor on the step at which a run was resumed.
//!
//! Dimensions: N images of a batch, 2N views, C channels, H height, W width, S side of a view.

pub mod printable; // names in messages
pub mod guard; // panics of parsers become errors
pub mod error;

pub mod atomic_file; // write, sync, rename
pub mod rng; // (seed, epoch, image, view) -> random stream
pub mod range; // which stored values become 0 and 255
pub mod image; // u8 [H, W, C]
pub mod decode; // bytes -> Raster (stored values) -> Image
pub mod dataset; // a path to samples, labels, splits; stored bytes
pub mod augment; // ViewParams (augmentation parameters), then pixels
pub mod buffer_pool; // reused memory of batches
pub mod deferred; // images and parameters, for augmentation on another device
pub mod batch; // 2N views -> Batch, the row order
pub mod chunking; // which views go through the encoder together
pub mod loader; // order of an epoch, worker threads, prefetch, failed images
pub mod view_table; // images -> originals and views, to look at
pub mod contact_sheet; // tiles -> one JPEG
pub mod eval_reader; // outside training: images in a given order, without randomness
pub mod output; // which files a command may replace
pub mod pack; // a data set -> one file of decoded images
pub mod tinted_shapes; // synthetic images with known truth

pub use augment::{AugmentConfig, ViewParams};
pub use batch::{Batch, Chunk, Views};
pub use chunking::Chunking;
pub use dataset::{Dataset, Sample, Split};
pub use deferred::{DeferredView, DeferredViews, ViewSpec};
pub use error::DataError;
pub use eval_reader::{EvalPixels, EvalReader};
pub use image::Image;
pub use loader::{Loader, LoaderConfig};
pub use range::{RangeChoice, ValueRange};
