//! The two-view augmentation: dice first ([`ViewParams`]), then pixels (one file per family of operators).
//!
//! Order: crop and resize, flip, rotation, colour jitter, grayscale, blur, then the operators of the composition
//! study (solarize, Sobel, noise, cutout). The first six follow the official code (google-research/simclr
//! `data_util.py` `preprocess_for_train`, blur in `model.py`); the paper gives no order for the rest.
//!
//! On C channels:
//!
//! | operator | C = 3 | C = 1 | other C |
//! | --- | --- | --- | --- |
//! | crop, flip, rotation, blur, solarize, noise, cutout | each channel alike | same | same |
//! | brightness | each channel alike | same | same |
//! | contrast | about each channel's mean (`tensorflow`), the grey mean (`torchvision`) | same | grey = mean of channels |
//! | saturation | HSV (`tensorflow`), blend with grey (`torchvision`) | changes nothing | distance from the largest channel; grey = mean of channels |
//! | hue | HSV rotation | changes nothing | changes nothing: hue is a notion of three primaries |
//! | grayscale, luma of Sobel | .2989 R + .5870 G + .1140 B | changes nothing | mean of channels |

mod blur;
mod color;
mod config;
mod crop;
mod params;
mod sample;
mod study;
mod transform;

pub use config::{AugmentConfig, Brightness, ColorModel, CropSampler, Interpolation};
pub use crop::shrink;
pub use params::{Crop, Cutout, Jitter, NoiseSeed, ViewParams};
pub use transform::{EvalCrop, EvalTransform, TransformChange, TransformConfig};

use crate::Image;

/// Buffers that views reuse; one per worker thread.
#[derive(Default)]
pub struct Scratch {
    resizer: fast_image_resize::Resizer,
    /// One image plane of the source, where channels are resized one by one.
    source_plane: Vec<u8>,
    /// The resized crop, interleaved.
    resized: Vec<u8>,
    /// One or more planes of the view.
    planes: Vec<f32>,
}

/// A view while operators work on it: `channels` planes of `side` x `side`, values in `[0, 1]`.
struct View<'a> {
    pixels: &'a mut [f32],
    channels: usize,
    side: usize,
}

impl View<'_> {
    /// Values of a plane.
    fn area(&self) -> usize {
        self.side * self.side
    }
}

/// Makes one view: `out` receives `[C, size, size]` planar `f32` in `[0, 1]`.
///
/// # Panics
/// If `out` is not `C * size * size` long.
pub fn apply(
    image: &Image,
    params: &ViewParams,
    config: &AugmentConfig,
    size: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    assert_eq!(out.len(), image.channels * size * size, "the view fills its slot");
    let how = crop::Resampling { interpolation: config.interpolation, antialias: config.antialias };
    crop::crop_and_resize(image, params.crop, params.flip, (how, size), out, scratch);
    let mut view = View { pixels: out, channels: image.channels, side: size };
    study::rotate(&mut view, params.quarter_turns, &mut scratch.planes);
    // The official code clips after every operation of the jitter and, where there is none, before the blur.
    let rest =
        if config.antialias { &params.jitter[..] } else { clipped_by_first(&mut view, params, config) };
    color::distort(&mut view, rest, params.gray, config.color_model);
    if !config.antialias && params.jitter.is_empty() {
        clip(&mut view);
    }
    if let Some(sigma) = params.blur {
        blur::gaussian(&mut view, sigma, params.gray, &mut scratch.planes);
    }
    study::study_operators(&mut view, params, &mut scratch.planes);
}

/// Applies the first operation of the jitter to values that a resize without antialiasing left outside `[0, 1]`, clips, and
/// returns the operations to come. Brightness and contrast clip anyway.
fn clipped_by_first<'p>(view: &mut View, params: &'p ViewParams, config: &AugmentConfig) -> &'p [Jitter] {
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
