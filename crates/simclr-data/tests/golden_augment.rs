//! Every operator and a whole view against Pillow, torchvision and written-out formulas (`reference/augment.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "golden/cases.rs"]
mod cases;

use std::collections::HashMap;

use cases::{Case, goldens, picture};
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{self, Scratch, evaluation_view, evaluation_view_of},
};

fn view(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.channels * size * size];
    augment::apply(image, params, config, size, &mut out, &mut Scratch::default());
    out
}

#[track_caller]
fn near(name: &str, found: &[f32], goldens: &HashMap<String, Vec<f32>>, tolerance: f32) {
    let expected = &goldens[name];
    assert_eq!(found.len(), expected.len(), "{name}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{name}: off by {worst}, allowed {tolerance}");
}

/// One level of 255: Pillow and `fast_image_resize` both round to bytes, by slightly different fixed-point weights.
const ONE_LEVEL: f32 = 1.01 / 255.0;

#[test]
fn crops_resize_as_pillow_does() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::resizes() {
        near(&name, &view(&image, &params, &config, size), &goldens, ONE_LEVEL);
    }
}

/// A 16x16 image is not resized, so what is left is f32 against f64.
const ROUNDING: f32 = 2e-6;

#[test]
fn every_operator_alone() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::operators() {
        near(&name, &view(&image, &params, &config, size), &goldens, ROUNDING);
    }
}

#[test]
fn a_whole_view() {
    let Case { name, image, params, config, size } = cases::whole_view();
    // The resize's one level, which a change of hue carries from channel to channel.
    near(&name, &view(&image, &params, &config, size), &goldens(), 2.0 * ONE_LEVEL);
}

#[test]
fn evaluation_views_follow_the_official_crop() {
    // 32 px and less: the image as it is.
    let image = picture(32, 32, 3);
    let mut out = vec![0.0; 3 * 32 * 32];
    evaluation_view(&image, 32, &mut out, &mut Scratch::default());
    assert!((0..1024).all(|at| (out[at] - f32::from(image.data[3 * at]) / 255.0).abs() < 1e-6));
    // Larger: the middle 87.5 % of the shorter side, so nothing of a dark frame around the middle 56x56 of 80x64.
    let mut image = Image::new(80, 64, 1, vec![0; 80 * 64]);
    for y in 4..60 {
        image.data[y * 80 + 12..y * 80 + 68].fill(255);
    }
    let mut out = vec![0.0; 56 * 56];
    evaluation_view(&image, 56, &mut out, &mut Scratch::default());
    assert!(out.iter().all(|&value| value == 1.0), "only the central square is seen");
    // The transfer protocol: the whole shorter side, frame included.
    let mut out = vec![0.0; 64 * 64];
    evaluation_view_of(&image, (64, 1.0), &mut out, &mut Scratch::default());
    let bright = out.iter().filter(|&&value| value == 1.0).count();
    assert_eq!((bright, out[0]), (56 * 56, 0.0));
}
