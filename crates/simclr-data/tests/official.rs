//! Crops and resizes against the official TF2 code (`reference/official_pixels.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{
        self, AugmentBuffers, CropSampler, EvalCrop, EvalTransform, Interpolation, Jitter, TransformConfig,
    },
    rng::Key,
};

fn file(name: &str) -> Vec<u8> {
    fs_err::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn crops() -> Value {
    serde_json::from_slice(&file("official_crops.json")).unwrap()
}

/// As `image` in the reference script.
fn image(width: usize, height: usize) -> Image {
    let byte = |at: usize| {
        let (y, x, c) = ((at / 3 / width) as u32, (at / 3 % width) as u32, (at % 3) as u32);
        let place = y.wrapping_mul(7919).wrapping_add(x.wrapping_mul(104_729)).wrapping_add(c * 1_299_709);
        (place.wrapping_mul(2_654_435_761) >> 24) as u8
    };
    Image::new(width, height, 3, (0..width * height * 3).map(byte).collect())
}

fn transform(crop: EvalCrop, interpolation: Interpolation, size: usize) -> EvalTransform {
    TransformConfig { crop, interpolation, antialias: false, ..TransformConfig::default() }.to(size, 3)
}

#[test]
fn evaluation_crops_equal_the_official_ones() {
    let table = crops()["evaluation"].clone();
    let rows: Vec<(usize, usize, f64, usize, usize, usize)> = serde_json::from_value(table).unwrap();
    assert!(rows.len() >= 20);
    for (height, width, share, side, top, left) in rows {
        let image = Image::new(width, height, 1, vec![0; width * height]);
        let seen = TransformConfig { crop: EvalCrop::Share(share), ..TransformConfig::default() };
        let crop = seen.to(8, 1).region(&image);
        let found = (crop.width, crop.height, crop.y, crop.x);
        assert_eq!(found, (side, side, top, left), "{height} x {width}, {share}");
    }
}

/// For f32 sums of four products in another order.
const ROUNDING: f32 = 2e-6;

#[test]
fn resize_without_antialiasing_equals_tensorflow() {
    let bytes = file("official_pixels.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for (name, view) in goldens.tensors() {
        let expected = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let (place, size) = name.rsplit_once('.').unwrap();
        let (kind, shape) = place.rsplit_once('.').unwrap();
        let (height, width) = shape.split_once('x').unwrap();
        let (image, size) = (image(width.parse().unwrap(), height.parse().unwrap()), size.parse().unwrap());
        let found = match kind {
            "crop" => evaluated(&image, transform(EvalCrop::Share(0.875), Interpolation::Bicubic, size)),
            "whole.bicubic" => trained(&image, Interpolation::Bicubic, size),
            "whole.bilinear" => trained(&image, Interpolation::Bilinear, size),
            _ => panic!("{name}"),
        };
        for (at, expected) in expected.enumerate() {
            // [S, S, 3] there, [3, S, S] here. Views are clipped at last.
            let found = found[at % 3 * size * size + at / 3];
            let difference = (found - expected.clamp(0.0, 1.0)).abs();
            assert!(difference <= ROUNDING, "{name}, value {at}: {found}, expected {expected}");
        }
        seen += 1;
    }
    assert_eq!(seen, 15);
}

fn evaluated(image: &Image, transform: EvalTransform) -> Vec<f32> {
    let mut out = vec![f32::NAN; 3 * transform.size * transform.size];
    transform.apply(image, &mut out, &mut AugmentBuffers::default());
    out
}

/// A view of the whole image without other operators.
fn trained(image: &Image, interpolation: Interpolation, size: usize) -> Vec<f32> {
    let config = AugmentConfig { interpolation, antialias: false, ..AugmentConfig::nothing() };
    view(image, &config.draw(key(0), image.width, image.height), &config, size)
}

fn view(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; 3 * size * size];
    augment::apply(image, params, config, size, &mut out, &mut AugmentBuffers::default());
    out
}

fn key(image: u64) -> Key {
    Key { seed: 1, epoch: 0, image, view: 0 }
}

#[test]
fn antialiasing_affects_only_shrinking() {
    let image = image(60, 60);
    let soft = TransformConfig::default();
    let sharp = TransformConfig { antialias: false, ..soft };
    let contrast = |view: &[f32]| view.iter().map(|value| (value - 0.5).powi(2)).sum::<f32>();
    // Noise averages out where all source pixels count.
    let shrunk = [soft, sharp].map(|config| contrast(&evaluated(&image, config.to(15, 3))));
    assert!(shrunk[1] > 3.0 * shrunk[0], "{shrunk:?}");
    let kept = [soft, sharp].map(|config| evaluated(&image, config.to(60, 3)));
    assert!(kept[0].iter().zip(&kept[1]).all(|(a, b)| (a - b).abs() < 1e-6));
}

/// TensorFlow clips after each jitter operation, but not after the resize.
#[test]
fn bicubic_overshoot_is_clipped_after_the_first_jitter_operation() {
    // A bright square on a dark ground, enlarged: the cubic rises above 1 along the edges.
    let mut image = Image::new(12, 12, 3, vec![0; 12 * 12 * 3]);
    for y in 4..8 {
        image.data[(y * 12 + 4) * 3..(y * 12 + 8) * 3].fill(255);
    }
    let config = AugmentConfig { antialias: false, ..AugmentConfig::nothing() };
    let plain = config.draw(key(0), 12, 12);
    let with = |jitter: Vec<Jitter>| view(&image, &ViewParams { jitter, ..plain.clone() }, &config, 48);
    let dimmed = with(vec![Jitter::Brightness(0.5)]);
    let highest = dimmed.iter().copied().fold(0.0, f32::max);
    assert!(highest > 0.505, "0.5 is what a clipped white would give: {highest}");
    for first in [Jitter::Saturation(1.0), Jitter::Hue(0.0)] {
        let dimmed = with(vec![first, Jitter::Brightness(0.5)]);
        let highest = dimmed.iter().copied().fold(0.0, f32::max);
        assert!((highest - 0.5).abs() < 1e-6, "clipped after {first:?}: {highest}");
    }
}

#[test]
fn random_crops_have_the_distribution_of_the_official_samplers() {
    const DRAWS: usize = 20_000;
    let config = AugmentConfig { crop_sampler: CropSampler::Tensorflow, ..AugmentConfig::default() };
    for official in crops()["random"].as_array().unwrap() {
        let side = |name: &str| official[name].as_u64().unwrap() as usize;
        let (height, width) = (side("height"), side("width"));
        let boxes: Vec<_> =
            (0..DRAWS as u64).map(|image| config.draw(key(image), width, height).crop).collect();
        let figures: [(&str, Vec<f64>); 4] = [
            ("area", boxes.iter().map(|b| (b.width * b.height) as f64 / (width * height) as f64).collect()),
            ("log_aspect", boxes.iter().map(|b| (b.width as f64 / b.height as f64).ln()).collect()),
            ("centre_x", boxes.iter().map(|b| (b.x as f64 + b.width as f64 / 2.0) / width as f64).collect()),
            (
                "centre_y",
                boxes.iter().map(|b| (b.y as f64 + b.height as f64 / 2.0) / height as f64).collect(),
            ),
        ];
        let drawn_there = official["draws"].as_u64().unwrap() as f64;
        // Kolmogorov-Smirnov at p = 1e-4, two samples.
        let allowed = 2.23 * (1.0 / DRAWS as f64 + 1.0 / drawn_there).sqrt();
        for (name, values) in figures {
            let quantiles: Vec<f64> = serde_json::from_value(official["quantiles"][name].clone()).unwrap();
            let worst = distance(&values, &quantiles);
            assert!(worst < allowed, "{name} of {width} x {height}: {worst}, allowed {allowed}");
        }
    }
    // The test sees the other sampler.
    let other = AugmentConfig { crop_sampler: CropSampler::Torchvision, ..config };
    let areas: Vec<f64> = (0..DRAWS as u64)
        .map(|image| other.draw(key(image), 256, 256).crop)
        .map(|b| (b.width * b.height) as f64 / 65536.0)
        .collect();
    let quantiles: Vec<f64> =
        serde_json::from_value(crops()["random"][0]["quantiles"]["area"].clone()).unwrap();
    assert!(distance(&areas, &quantiles) > 0.08);
}

/// Largest distance of the empirical distribution to quantiles at 1 to 99 %; values may be tied.
fn distance(values: &[f64], quantiles: &[f64]) -> f64 {
    let share = |count: usize| count as f64 / values.len() as f64;
    let each = quantiles.iter().enumerate().map(|(at, quantile)| {
        let expected = (at + 1) as f64 / 100.0;
        // Quantiles are rounded to seven decimals.
        let below = share(values.iter().filter(|&&value| value < quantile - 1e-6).count());
        let up_to = share(values.iter().filter(|&&value| value < quantile + 1e-6).count());
        (below - expected).max(expected - up_to).max(0.0)
    });
    assert_eq!(quantiles.len(), 99);
    each.fold(0.0, f64::max)
}

#[test]
fn transforms_round_trip() {
    let whole = TransformConfig::default();
    let official = TransformConfig { crop: EvalCrop::Share(0.875), antialias: false, ..whole };
    for config in [whole, official] {
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TransformConfig>(&text).unwrap(), config, "{text}");
    }
    assert!(serde_json::to_string(&whole).unwrap().contains(r#""crop":"whole""#));
    assert!(serde_json::from_str::<TransformConfig>(r#"{"crop":"hole"}"#).is_err());
    for crop in [0.0, -0.5, 1.5, f64::NAN] {
        assert!(TransformConfig { crop: EvalCrop::Share(crop), ..whole }.validate().is_err(), "{crop}");
    }
    assert_eq!(whole.to(64, 3).to_string(), "whole image to 64 x 64 px, bicubic, antialiased");
    let text = "central square of 87.5 % of the shorter side to 224 x 224 px, bicubic, not antialiased";
    assert_eq!(official.to(224, 3).to_string(), text);
}

#[test]
fn whole_image_transforms_use_the_outermost_pixels() {
    let mut image = Image::new(100, 80, 1, vec![0; 8000]);
    for y in 0..80 {
        image.data[y * 100] = 255;
    }
    let seen = |crop: EvalCrop| {
        let mut out = vec![0.0; 64 * 64];
        TransformConfig { crop, ..TransformConfig::default() }.to(64, 1).apply(
            &image,
            &mut out,
            &mut AugmentBuffers::default(),
        );
        out.iter().any(|&value| value > 0.1)
    };
    assert!(seen(EvalCrop::Whole));
    assert!(!seen(EvalCrop::Share(0.875)));
}
