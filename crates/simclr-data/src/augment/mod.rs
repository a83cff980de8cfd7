//! The two-view augmentation: dice first ([`params`]), then pixels (one file per operator).

mod params;

pub use params::{AugmentConfig, ViewParams};

use crate::Image;

/// Buffers that `apply` reuses between views; one per worker thread.
#[derive(Debug, Default)]
pub struct Scratch {}

/// Makes one view: `out` receives `[C, size, size]` planar `f32` in `[0, 1]`.
pub fn apply(image: &Image, params: &ViewParams, size: usize, out: &mut [f32], scratch: &mut Scratch) {
    let _ = (image, params, size, out, scratch);
    todo!("helper data-augment")
}

/// The view for evaluation: no randomness (spec 5.6). Sides up to 32 px: the image as it is, resized where its
/// size differs; larger: shorter side resized so that a central crop of 87.5 % is `size` x `size`.
pub fn evaluation_view(image: &Image, size: usize, out: &mut [f32], scratch: &mut Scratch) {
    let _ = (image, size, out, scratch);
    todo!("helper data-augment")
}
