//! The two-view augmentation: [`AugmentConfig::draw`] samples the parameters of a view, [`apply`] computes its pixels.
//!
//! Order of operators: crop and resize (`crop`), flips, rotation (`geometry`), AutoAugment (`policy`), colour jitter, grayscale
//! (`color`), blur (`blur`), motion blur (`motion_blur`), equalize (`levels`), then solarize, Sobel, noise, cutout (`filters`).
//! Crop, flip, jitter, grayscale and blur follow the official code (google-research/simclr `data_util.py` `preprocess_for_train`,
//! blur in `model.py`); the paper gives no order for the rest. AutoAugment replaces the colour distortion in the paper's Table 1,
//! so it is at that place; with `color` and `gray` above 0 the distortion follows it.
//!
//! On C channels:
//!
//! | operator | C = 3 | C = 1 | other C |
//! | --- | --- | --- | --- |
//! | crop, flips, rotation, blurs, solarize, noise, cutout | each channel alike | same | same |
//! | equalize; AutoAugment's geometry and tables | each channel by itself | same | same |
//! | AutoAugment's colour and contrast | blend with Pillow's luma, with its mean | contrast only | grey = mean of channels |
//! | brightness | each channel alike | same | same |
//! | contrast | about each channel's mean (`tensorflow`), the grey mean (`torchvision`) | same | grey = mean of channels |
//! | saturation | HSV (`tensorflow`), blend with grey (`torchvision`) | changes nothing | distance from the largest channel; grey = mean of channels |
//! | hue | HSV rotation | changes nothing | changes nothing: hue is defined for RGB only |
//! | grayscale, luma of Sobel | .2989 R + .5870 G + .1140 B | changes nothing | mean of channels |

mod affine;
mod blur;
mod color;
mod config;
mod crop;
mod enhance;
mod filters;
mod geometry;
mod levels;
mod motion_blur;
mod params;
mod policy;
mod sample;
mod transform;
mod words;

pub use affine::Affine;
pub use config::{AugmentConfig, Brightness, ColorModel, CropSampler, Interpolation, SecondView};
pub use crop::shrink;
pub use motion_blur::MotionBlur;
pub use params::{Crop, Cutout, Jitter, NoiseSeed, ViewParams};
pub use policy::{Operation, Policy, PolicyStep};
pub use transform::{EvalCrop, EvalTransform, TransformChange, TransformConfig};

use std::cell::RefCell;

use crate::Image;

/// Buffers reused from view to view.
#[derive(Default)]
pub struct AugmentBuffers {
    resizer: fast_image_resize::Resizer,
    /// One plane of the source, for channels that are resized one by one; of the view, for operators on levels.
    source_plane: Vec<u8>,
    /// The resized crop, interleaved; the planes of the view, for operators on levels.
    resized: Vec<u8>,
    /// The rows of a crop, resized.
    filtered_rows: Vec<u8>,
    /// One or more planes of the view.
    planes: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<AugmentBuffers> = RefCell::default();
}

impl AugmentBuffers {
    /// Runs `work` with the buffers of the current thread.
    pub(crate) fn with_local<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        BUFFERS.with_borrow_mut(work)
    }
}

/// A view under construction: `channels` planes of `side` x `side` values in `[0, 1]`.
struct View<'a> {
    pixels: &'a mut [f32],
    channels: usize,
    side: usize,
}

impl View<'_> {
    fn area(&self) -> usize {
        self.side * self.side
    }
}

/// Computes one view into `out`: `[C, size, size]`, planar `f32` in `[0, 1]`.
///
/// # Panics
/// If `out` is not `C * size * size` long.
pub fn apply(
    image: &Image,
    params: &ViewParams,
    config: &AugmentConfig,
    size: usize,
    out: &mut [f32],
    buffers: &mut AugmentBuffers,
) {
    assert_eq!(out.len(), image.channels * size * size, "the view fills its slot");
    let resampling = crop::Resampling {
        interpolation: config.interpolation,
        antialias: config.antialias,
        rows_first: false,
    };
    crop::crop_and_resize(image, params.crop, (resampling, size), out, buffers);
    let mut view = View { pixels: out, channels: image.channels, side: size };
    if params.flip {
        geometry::flip(&mut view);
    }
    if params.vertical_flip {
        geometry::flip_vertically(&mut view);
    }
    geometry::rotate(&mut view, params.quarter_turns, &mut buffers.planes);
    if !params.policy.is_empty() {
        policy::apply(&mut view, &params.policy, (&mut buffers.resized, &mut buffers.source_plane));
    }
    // The official code clips after every jitter operation and, without jitter, before the blur.
    let rest =
        if config.antialias { &params.jitter[..] } else { apply_first_jitter(&mut view, params, config) };
    color::distort(&mut view, rest, params.gray, config.color_model);
    if !config.antialias && params.jitter.is_empty() {
        clip(&mut view);
    }
    if let Some(sigma) = params.blur {
        blur::gaussian(&mut view, sigma, params.gray, &mut buffers.planes);
    }
    if let Some(blur) = params.motion_blur {
        motion_blur::apply(&mut view, blur, params.gray, &mut buffers.planes);
    }
    if params.equalize {
        levels::equalize(&mut view);
    }
    filters::apply(&mut view, params, &mut buffers.planes);
}

/// After a resize without antialiasing, which may leave `[0, 1]`: applies the first jitter operation, clips, and returns the
/// remaining operations. Brightness and contrast clip by themselves and are left to the caller.
fn apply_first_jitter<'p>(view: &mut View, params: &'p ViewParams, config: &AugmentConfig) -> &'p [Jitter] {
    let Some((first @ (Jitter::Saturation(_) | Jitter::Hue(_)), rest)) = params.jitter.split_first() else {
        return &params.jitter;
    };
    color::distort(view, std::slice::from_ref(first), false, config.color_model);
    clip(view);
    rest
}

fn clip(view: &mut View) {
    view.pixels.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));
}
