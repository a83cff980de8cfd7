//! Every operator and a whole view against Pillow, torchvision and written-out formulas (`reference/augment.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, path::PathBuf};

use safetensors::SafeTensors;
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{self, ColorModel, Crop, Interpolation, Jitter, Scratch, evaluation_view, evaluation_view_of},
    rng::Key,
};

fn goldens() -> HashMap<String, Vec<f32>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/augment.safetensors");
    let bytes = fs_err::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// The image that `reference/augment.py` calls `picture`.
fn picture(width: usize, height: usize, channels: usize) -> Image {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for k in 0..channels {
                let (x, y, k) = (x as f64, y as f64, k as f64);
                let value = 127.5
                    + 90.0 * (0.21 * x * (k + 1.0) + 0.13 * y).sin()
                    + 37.0 * (0.9 * y - 0.5 * x * k).cos();
                data.push(value.clamp(0.0, 255.0).floor() as u8);
            }
        }
    }
    Image::new(width, height, channels, data)
}

/// No operator: the whole image.
fn plain(image: &Image) -> ViewParams {
    let key = Key { seed: 0, epoch: 0, image: 0, view: 0 };
    AugmentConfig::nothing().draw(key, image.width, image.height)
}

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
    let (goldens, image) = (goldens(), picture(40, 30, 3));
    for (name, x, y, width, height) in
        [("shrink", 3, 2, 30, 26), ("grow", 10, 5, 9, 7), ("whole", 0, 0, 40, 30), ("pixel", 7, 7, 1, 1)]
    {
        let params = ViewParams { crop: Crop { x, y, width, height }, ..plain(&image) };
        for (kind, interpolation) in
            [("bicubic", Interpolation::Bicubic), ("bilinear", Interpolation::Bilinear)]
        {
            let config = AugmentConfig { interpolation, ..AugmentConfig::nothing() };
            near(&format!("{kind}.{name}"), &view(&image, &params, &config, 16), &goldens, ONE_LEVEL);
        }
    }
    let image = picture(40, 30, 5);
    let params = ViewParams { crop: Crop { x: 3, y: 2, width: 30, height: 26 }, ..plain(&image) };
    near("five", &view(&image, &params, &AugmentConfig::nothing(), 16), &goldens, ONE_LEVEL);
}

/// A 16x16 image is not resized, so what is left is f32 against f64.
const ROUNDING: f32 = 2e-6;

#[test]
fn every_operator_alone() {
    let (goldens, image) = (goldens(), picture(16, 16, 3));
    let tensorflow = AugmentConfig::nothing();
    let torchvision = AugmentConfig { color_model: ColorModel::Torchvision, ..AugmentConfig::nothing() };
    let jitter = |op| ViewParams { jitter: vec![op], ..plain(&image) };
    for (name, params, config) in [
        ("brightness", jitter(Jitter::Brightness(1.4)), &tensorflow),
        ("brightness_shift", jitter(Jitter::BrightnessShift(-0.3)), &tensorflow),
        ("contrast", jitter(Jitter::Contrast(1.6)), &tensorflow),
        ("saturation", jitter(Jitter::Saturation(1.7)), &tensorflow),
        ("hue", jitter(Jitter::Hue(0.17)), &tensorflow),
        ("gray", ViewParams { gray: true, ..plain(&image) }, &tensorflow),
        ("tv_contrast", jitter(Jitter::Contrast(1.6)), &torchvision),
        ("tv_saturation", jitter(Jitter::Saturation(0.4)), &torchvision),
        ("tv_hue", jitter(Jitter::Hue(0.17)), &torchvision),
        ("blur", ViewParams { blur: Some(1.3), ..plain(&image) }, &tensorflow),
        ("flip", ViewParams { flip: true, ..plain(&image) }, &tensorflow),
        ("rotate", ViewParams { quarter_turns: 1, ..plain(&image) }, &tensorflow),
        ("solarize", ViewParams { solarize: Some(0.5), ..plain(&image) }, &tensorflow),
    ] {
        near(name, &view(&image, &params, config, 16), &goldens, ROUNDING);
    }
    let wide = picture(60, 60, 3);
    let params = ViewParams { blur: Some(1.7), ..plain(&wide) };
    near("blur_wide", &view(&wide, &params, &tensorflow, 60), &goldens, ROUNDING);
}

#[test]
fn a_whole_view() {
    let (goldens, image) = (goldens(), picture(40, 30, 3));
    let params = ViewParams {
        crop: Crop { x: 3, y: 2, width: 30, height: 26 },
        flip: true,
        jitter: vec![
            Jitter::Hue(-0.08),
            Jitter::Brightness(0.7),
            Jitter::Saturation(1.3),
            Jitter::Contrast(0.5),
        ],
        blur: Some(0.6),
        ..plain(&image)
    };
    // The resize's one level, which a change of hue carries from channel to channel.
    near("view", &view(&image, &params, &AugmentConfig::nothing(), 16), &goldens, 2.0 * ONE_LEVEL);
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
