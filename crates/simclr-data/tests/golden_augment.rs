//! Operators and whole views against Pillow, torchvision and explicit formulas (`reference/augment.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "golden/cases.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod cases;

use std::collections::HashMap;

use cases::{Case, goldens};
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{self, AugmentBuffers},
};

fn view(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.channels * size * size];
    augment::apply(image, params, config, size, &mut out, &mut AugmentBuffers::default());
    out
}

#[track_caller]
fn near(name: &str, found: &[f32], goldens: &HashMap<String, Vec<f32>>, tolerance: f32) {
    let expected = &goldens[name];
    assert_eq!(found.len(), expected.len(), "{name}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{name}: off by {worst}, allowed {tolerance}");
}

/// One level of 255: Pillow and `fast_image_resize` round to bytes with slightly different fixed-point weights.
const ONE_LEVEL: f32 = 1.01 / 255.0;

#[test]
fn resized_crops_equal_pillow() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::resizes() {
        near(&name, &view(&image, &params, &config, size), &goldens, ONE_LEVEL);
    }
}

/// Images of 16x16 are not resized; the difference is f32 against f64.
const ROUNDING: f32 = 2e-6;

#[test]
fn single_operators() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::operators() {
        near(&name, &view(&image, &params, &config, size), &goldens, ROUNDING);
    }
}

#[test]
fn all_operators_together() {
    let Case { name, image, params, config, size } = cases::whole_view();
    // The resize's one level, which a change of hue carries from channel to channel.
    near(&name, &view(&image, &params, &config, size), &goldens(), 2.0 * ONE_LEVEL);
}
