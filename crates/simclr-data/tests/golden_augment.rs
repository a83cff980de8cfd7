//! Operators and whole views against Pillow, torchvision and explicit formulas (`reference/augment.py`), and the input of an evaluation
//! against Pillow (`reference/eval_pixels.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "golden/cases.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod cases;

use std::collections::HashMap;

use cases::{Case, goldens};
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{self, AugmentBuffers, EvalCrop, EvalTransform, Interpolation, TransformConfig},
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

/// With hard edges the order of the passes matters: columns first is off by up to 28 levels of the cubic.
#[test]
fn the_input_of_an_evaluation_equals_pillows() {
    const SIDE: usize = 16;
    let text = include_str!("golden/eval_pixels.json");
    let goldens: HashMap<String, Vec<f32>> = serde_json::from_str(text).unwrap();
    let value =
        |x: usize, y: usize, channel: usize| if (3 * x + 5 * y + x * y + channel) % 7 < 3 { 255 } else { 0 };
    let picture = |width: usize, height: usize| {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let data = places.flat_map(|(x, y)| [0, 1, 2].map(|channel| value(x, y, channel))).collect();
        Image::new(width, height, 3, data)
    };
    assert_eq!(goldens.len(), 8);
    for (name, levels) in goldens {
        let (filter, case) = name.split_once('.').unwrap();
        let (image, crop) = match case {
            "grow" => (picture(10, 7), EvalCrop::Whole),
            "narrow" => (picture(16, 30), EvalCrop::Whole),
            "shrink" => (picture(40, 30), EvalCrop::Whole),
            _ => (picture(40, 30), EvalCrop::Share(26.0 / 30.0)),
        };
        let interpolation =
            if filter == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear };
        let transform: EvalTransform =
            TransformConfig { crop, interpolation, antialias: true, ..TransformConfig::default() }
                .to(SIDE, 3);
        let mut found = vec![f32::NAN; 3 * SIDE * SIDE];
        transform.apply(&image, &mut found, &mut AugmentBuffers::default());
        let plane = |at: usize| (at % 3) * SIDE * SIDE + at / 3;
        let off = levels.iter().enumerate().map(|(at, level)| (found[plane(at)] * 255.0 - level).abs());
        let worst = off.fold(0.0, f32::max);
        assert!(worst < 1.01, "{name}: off by {worst} levels");
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
