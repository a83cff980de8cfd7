//! Statistics of augmentation parameters, and invariants of all views.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use proptest::prelude::*;
use simclr_data::{
    AugmentConfig, Image, ViewParams,
    augment::{self, AugmentBuffers, Brightness, ColorModel, Crop, CropSampler, Jitter},
    rng::Key,
};

fn key(image: u64, view: u64) -> Key {
    Key { seed: 7, epoch: 3, image, view }
}

fn draws(config: &AugmentConfig, (width, height): (usize, usize), count: u64) -> Vec<ViewParams> {
    (0..count).map(|image| config.draw(key(image, 0), width, height)).collect()
}

/// Allows five standard errors.
#[track_caller]
fn share(found: usize, of: usize, expected: f64) {
    let error = (expected * (1.0 - expected) / of as f64).sqrt();
    let found = found as f64 / of as f64;
    assert!((found - expected).abs() < 5.0 * error, "{found}, expected {expected}");
}

#[test]
fn probabilities_of_the_paper() {
    let drawn = draws(&AugmentConfig::default(), (200, 150), 20_000);
    let count = |test: &dyn Fn(&ViewParams) -> bool| drawn.iter().filter(|params| test(params)).count();
    share(count(&|p| p.flip), drawn.len(), 0.5);
    share(count(&|p| !p.jitter.is_empty()), drawn.len(), 0.8);
    share(count(&|p| p.gray), drawn.len(), 0.2);
    share(count(&|p| p.blur.is_some()), drawn.len(), 0.5);
    share(count(&|p| p.blur.is_some_and(|sigma| sigma < 0.575)), drawn.len(), 0.125);
    let off = |p: &ViewParams| {
        p.sobel || p.quarter_turns > 0 || p.solarize.is_some() || p.noise.is_some() || p.cutout.is_some()
    };
    assert_eq!(count(&off), 0);
}

/// A fixed order is a common bug.
#[test]
fn all_24_jitter_orders_are_equally_likely() {
    let mut orders: HashMap<Vec<std::mem::Discriminant<Jitter>>, usize> = HashMap::new();
    let config = AugmentConfig { jitter: 1.0, ..AugmentConfig::default() };
    for params in draws(&config, (32, 32), 24_000) {
        *orders.entry(params.jitter.iter().map(std::mem::discriminant).collect()).or_default() += 1;
    }
    assert_eq!(orders.len(), 24);
    orders.values().for_each(|&count| share(count, 24_000, 1.0 / 24.0));
}

#[test]
fn strengths_scale_with_s_and_brightness_by_configuration() {
    let config = AugmentConfig { jitter: 1.0, color: 0.5, ..AugmentConfig::default() };
    let range = |pick: &dyn Fn(&Jitter) -> Option<f32>| {
        let drawn = draws(&config, (32, 32), 4000);
        let found: Vec<f32> = drawn.iter().flat_map(|params| params.jitter.iter().filter_map(pick)).collect();
        assert_eq!(found.len(), 4000);
        (found.iter().copied().fold(f32::MAX, f32::min), found.iter().copied().fold(f32::MIN, f32::max))
    };
    let near = |(low, high): (f32, f32), expected: (f32, f32)| {
        let fine =
            low >= expected.0 && low < expected.0 + 0.01 && high <= expected.1 && high > expected.1 - 0.01;
        assert!(fine, "{low} to {high}, expected {expected:?}");
    };
    near(range(&|op| if let Jitter::Contrast(f) = op { Some(*f) } else { None }), (0.6, 1.4));
    near(range(&|op| if let Jitter::Brightness(f) = op { Some(*f) } else { None }), (0.6, 1.4));
    near(range(&|op| if let Jitter::Hue(d) = op { Some(*d) } else { None }), (-0.1, 0.1));
    let additive = AugmentConfig { brightness: Brightness::Additive, ..config.clone() };
    for params in draws(&additive, (32, 32), 100) {
        assert!(params.jitter.iter().any(|op| matches!(op, Jitter::BrightnessShift(d) if d.abs() <= 0.4)));
    }
    let none = AugmentConfig { color: 0.0, ..config };
    assert!(draws(&none, (32, 32), 10).iter().all(|params| params.jitter.is_empty()));
}

#[test]
fn crop_areas_are_uniform_for_torchvision_and_skewed_for_tensorflow() {
    let below = |crop_sampler, area: f64| {
        let config = AugmentConfig { crop_sampler, ..AugmentConfig::default() };
        let areas = draws(&config, (400, 400), 20_000);
        let areas: Vec<f64> =
            areas.iter().map(|p| (p.crop.width * p.crop.height) as f64 / 160_000.0).collect();
        (areas.iter().filter(|found| **found < area).count(), areas.iter().copied().fold(1.0, f64::min))
    };
    // Up to half the area nothing is rejected for its shape: a third of [0.08, 0.5] lies below 0.22.
    let (tiny, smallest) = below(CropSampler::Torchvision, 0.22);
    let (small, _) = below(CropSampler::Torchvision, 0.5);
    share(tiny, small, 1.0 / 3.0);
    assert!(smallest >= 0.079);
    // The official sampler covers a tenth at least; below that the uniform height favours small areas. With an area
    // uniform in [0.1, 0.5], 30 % would lie below 0.22.
    let (tiny, smallest) = below(CropSampler::Tensorflow, 0.22);
    let (small, _) = below(CropSampler::Tensorflow, 0.5);
    assert!(smallest >= 0.0999, "{smallest}");
    assert!(tiny as f64 > 0.35 * small as f64, "{tiny} of {small}");
}

/// The basis of paired comparisons.
#[test]
fn views_depend_only_on_their_key_and_operators_are_independent() {
    let config = AugmentConfig::default();
    assert_eq!(config.draw(key(5, 0), 50, 40), config.draw(key(5, 0), 50, 40));
    assert_ne!(config.draw(key(5, 0), 50, 40), config.draw(key(5, 1), 50, 40));
    let colorless = AugmentConfig { color: 0.0, gray: 0.0, blur: 0.0, ..config.clone() };
    for image in 0..100 {
        let (with, without) = (config.draw(key(image, 0), 50, 40), colorless.draw(key(image, 0), 50, 40));
        assert_eq!((with.crop, with.flip), (without.crop, without.flip));
    }
}

#[test]
fn ranges_are_checked() {
    let broken = [
        AugmentConfig { flip: 1.5, ..AugmentConfig::default() },
        AugmentConfig { crop_scale: [0.0, 1.0], ..AugmentConfig::default() },
        AugmentConfig { crop_ratio: [2.0, 1.0], ..AugmentConfig::default() },
        AugmentConfig { color: f32::NAN, ..AugmentConfig::default() },
        AugmentConfig { color: 3.0, ..AugmentConfig::default() }, // hue beyond half a turn
        AugmentConfig { blur_sigma: [0.0, 1.0], ..AugmentConfig::default() },
    ];
    for config in broken {
        assert!(config.validate().is_err(), "{config:?}");
    }
    AugmentConfig::default().validate().unwrap();
}

fn noisy(width: usize, height: usize, channels: usize, level: Option<u8>) -> Image {
    let pixel = |at: usize| level.unwrap_or(((at * 2_654_435_761) >> 9) as u8);
    Image::new(width, height, channels, (0..width * height * channels).map(pixel).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn views_of_any_image_are_within_0_and_1(
        width in 1usize..60, height in 1usize..60, channels in 1usize..6, image in any::<u64>(), size in 8usize..40,
        level in prop_oneof![Just(None), Just(Some(0u8)), Just(Some(255))], tensorflow in any::<bool>(),
    ) {
        let picture = noisy(width, height, channels, level);
        let config = AugmentConfig {
            solarize: 0.5, rotate: 0.5, cutout: 0.5, noise: 0.5, sobel: 0.3,
            crop_sampler: if tensorflow { CropSampler::Tensorflow } else { CropSampler::Torchvision },
            color_model: if tensorflow { ColorModel::Tensorflow } else { ColorModel::Torchvision },
            ..AugmentConfig::default()
        };
        let params = config.draw(key(image, 1), width, height);
        let Crop { x, y, width: w, height: h } = params.crop;
        prop_assert!(w >= 1 && h >= 1 && x + w <= width && y + h <= height, "{:?}", params.crop);
        let mut out = vec![f32::NAN; channels * size * size];
        augment::apply(&picture, &params, &config, size, &mut out, &mut AugmentBuffers::default());
        prop_assert!(out.iter().all(|value| (0.0..=1.0).contains(value)), "{:?}", params);
    }
}
