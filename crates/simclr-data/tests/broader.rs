//! The broader augmentation and AutoAugment: against Pillow and torchvision (`reference/broader.py`), statistics of the parameters,
//! invariants of all views.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "golden/cases.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod cases;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use cases::{BROADER_SIDE, Case, broader_images, goldens, picture, plain};
use proptest::prelude::*;
use serde_json::Value;
use simclr_data::{
    AugmentConfig, DataError, Dataset, Image, Loader, LoaderConfig, Sample, ViewParams,
    augment::{self, AugmentBuffers, Operation, Policy, PolicyStep, SecondView},
    dataset::Source,
    decode::Decoding,
    rng::Key,
};

fn view(image: &Image, params: &ViewParams, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.channels * size * size];
    augment::apply(image, params, &AugmentConfig::nothing(), size, &mut out, &mut AugmentBuffers::default());
    out
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// f32 against f64, on images that are not resized.
const ROUNDING: f32 = 2e-6;

#[test]
fn operators_equal_pillow_and_the_formulas() {
    let goldens = goldens();
    for Case { name, image, params, size, .. } in cases::broader_operators() {
        let off = worst(&view(&image, &params, size), &goldens[&name]);
        // Equalize is an exact function of levels.
        let allowed = if name.starts_with("equalize") { 0.0 } else { ROUNDING };
        assert!(off <= allowed, "{name}: off by {off}");
    }
}

/// As `OPERATIONS` in `reference/broader.py`, translations as shares of the side.
fn operations() -> Vec<(Operation, Vec<f32>)> {
    let pixels = |count: f32| count / BROADER_SIDE as f32;
    vec![
        (Operation::ShearX, vec![0.3, -1.0 / 6.0]),
        (Operation::ShearY, vec![0.2, -0.3]),
        (Operation::TranslateX, vec![pixels(12.0), pixels(-7.0)]),
        (Operation::TranslateY, vec![pixels(3.0), pixels(-12.0)]),
        (Operation::Rotate, vec![30.0, -80.0 / 3.0, 10.0]),
        (Operation::Brightness, vec![0.7, -0.6]),
        (Operation::Color, vec![0.8, -0.9]),
        (Operation::Contrast, vec![0.8, -0.6]),
        (Operation::Sharpness, vec![0.9, -0.7]),
        (Operation::Posterize, vec![4.0, 6.0]),
        (Operation::Solarize, vec![255.0 / 9.0 * 4.0, 170.0]),
        (Operation::AutoContrast, vec![0.0]),
        (Operation::Equalize, vec![0.0]),
        (Operation::Invert, vec![0.0]),
    ]
}

/// To the level; all are on 8-bit values.
#[test]
fn operations_of_autoaugment_equal_torchvision() {
    let goldens = goldens();
    let mut compared = 0;
    for (kind, image) in broader_images() {
        for (operation, magnitudes) in operations() {
            for (number, magnitude) in magnitudes.into_iter().enumerate() {
                let name = format!("{operation:?}.{number}.{kind}");
                let params =
                    ViewParams { policy: vec![PolicyStep { operation, magnitude }], ..plain(&image) };
                let off = worst(&view(&image, &params, BROADER_SIDE), &goldens[&name]);
                assert!(off == 0.0, "{name}: off by {} levels", off * 255.0);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 26);
}

#[test]
fn the_policies_equal_torchvision() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autoaugment.json");
    let tables: Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    let sizes: Vec<usize> = serde_json::from_value(tables["sizes"].clone()).unwrap();
    type Row = (String, f32, f32, bool, Vec<i64>);
    for (policy, name) in [(Policy::AutoaugmentImagenet, "imagenet"), (Policy::AutoaugmentCifar10, "cifar10")]
    {
        let expected: Vec<[Row; 2]> = serde_json::from_value(tables[name].clone()).unwrap();
        assert_eq!((policy.pairs().len(), expected.len()), (25, 25));
        let rows = policy.pairs().iter().flatten().zip(expected.iter().flatten());
        for ((operation, probability, number), (name, p, magnitude, signed, pixels)) in rows {
            let found = (format!("{operation:?}"), *probability, operation.is_signed());
            assert_eq!(found, (name.clone(), *p, *signed));
            let found = operation.magnitude(*number);
            let scale = if pixels.is_empty() { 1.0 } else { 224.0 };
            assert!((found * scale - magnitude).abs() <= 3e-7 * magnitude.abs(), "{name}: {found}");
            for (size, pixels) in sizes.iter().zip(pixels) {
                assert_eq!(moved(*operation, found, *size), *pixels, "{name} {number} at {size} px");
                assert_eq!(moved(*operation, -found, *size), -*pixels);
            }
        }
    }
}

/// Pixels by which a white view is moved to the right or down.
fn moved(operation: Operation, magnitude: f32, size: usize) -> i64 {
    let image = Image::new(size, size, 1, vec![255; size * size]);
    let params = ViewParams { policy: vec![PolicyStep { operation, magnitude }], ..plain(&image) };
    let pixels = view(&image, &params, size);
    let step = if operation == Operation::TranslateX { 1 } else { size };
    let line: Vec<f32> = pixels.iter().step_by(step).take(size).copied().collect();
    let black = line.iter().filter(|&&value| value == 0.0).count() as i64;
    if line[0] == 0.0 { black } else { -black }
}

fn draws(config: &AugmentConfig, count: u64) -> Vec<ViewParams> {
    let key = |image| Key { seed: 11, epoch: 2, image, view: 0 };
    (0..count).map(|image| config.draw(key(image), 60, 50)).collect()
}

/// Allows five standard errors.
#[track_caller]
fn share(found: usize, of: usize, expected: f64) {
    let error = (expected * (1.0 - expected) / of as f64).sqrt();
    let found = found as f64 / of as f64;
    assert!((found - expected).abs() <= 5.0 * error, "{found}, expected {expected}");
}

fn broader() -> AugmentConfig {
    AugmentConfig { vertical_flip: 0.3, motion_blur: 0.6, equalize: 0.2, ..AugmentConfig::default() }
}

#[test]
fn probabilities_are_those_of_the_configuration_and_independent() {
    let drawn = draws(&broader(), 20_000);
    let count = |test: &dyn Fn(&ViewParams) -> bool| drawn.iter().filter(|params| test(params)).count();
    share(count(&|p| p.vertical_flip), drawn.len(), 0.3);
    share(count(&|p| p.motion_blur.is_some()), drawn.len(), 0.6);
    share(count(&|p| p.equalize), drawn.len(), 0.2);
    share(count(&|p| p.equalize && p.vertical_flip), drawn.len(), 0.06);
    share(count(&|p| p.flip && p.vertical_flip), drawn.len(), 0.15);
    share(count(&|p| p.motion_blur.is_some_and(|blur| blur.length < 6.0)), drawn.len(), 0.6 * 0.25);
    share(count(&|p| p.motion_blur.is_some_and(|blur| blur.degrees < 45.0)), drawn.len(), 0.6 * 0.25);
    assert!(drawn.iter().flat_map(|p| p.motion_blur).all(|blur| (3.0..15.0).contains(&blur.length)));
    assert!(drawn.iter().flat_map(|p| p.motion_blur).all(|blur| (0.0..180.0).contains(&blur.degrees)));
    let certain = AugmentConfig { vertical_flip: 1.0, motion_blur: 1.0, equalize: 1.0, ..broader() };
    assert!(draws(&certain, 100).iter().all(|p| p.vertical_flip && p.equalize && p.motion_blur.is_some()));
}

/// Existing runs keep their parameters, and the new operators do not depend on each other.
#[test]
fn other_parameters_do_not_depend_on_the_new_operators() {
    let without = AugmentConfig { solarize: 0.5, noise: 0.5, ..AugmentConfig::default() };
    let policy = Policy::AutoaugmentCifar10;
    let with = AugmentConfig { solarize: 0.5, noise: 0.5, policy, ..broader() };
    for (with, without) in draws(&with, 500).into_iter().zip(draws(&without, 500)) {
        let stripped = ViewParams {
            vertical_flip: false,
            motion_blur: None,
            equalize: false,
            policy: Vec::new(),
            ..with
        };
        assert_eq!(stripped, without);
    }
    let one = AugmentConfig { equalize: 0.2, ..AugmentConfig::default() };
    let equalized =
        |config: &AugmentConfig| draws(config, 500).iter().map(|p| p.equalize).collect::<Vec<_>>();
    assert_eq!(equalized(&one), equalized(&with));
}

/// The parameters of a run recorded before the new operators (commit 8b57fc3), so that its streams are never changed.
#[test]
fn parameters_of_older_runs_are_kept() {
    let config = AugmentConfig {
        solarize: 0.5,
        rotate: 0.5,
        cutout: 0.5,
        noise: 0.5,
        sobel: 0.5,
        ..AugmentConfig::default()
    };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/draws.json");
    let recorded: Vec<Value> = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert_eq!(recorded.len(), 8);
    for (found, recorded) in draws(&config, 8).iter().zip(recorded) {
        let text = serde_json::to_string(found).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), recorded);
        assert_eq!(serde_json::from_value::<ViewParams>(recorded).unwrap(), *found);
    }
}

#[test]
fn every_pair_of_a_policy_is_equally_likely_and_signs_are_fair() {
    let config = AugmentConfig { policy: Policy::AutoaugmentCifar10, ..AugmentConfig::nothing() };
    let drawn = draws(&config, 50_000);
    let with = |wanted: Operation| -> Vec<f32> {
        let steps = drawn.iter().flat_map(|params| &params.policy);
        steps.filter(|step| step.operation == wanted).map(|step| step.magnitude).collect()
    };
    // ShearY occurs with probabilities 0.5 and 0.2 in two of 25 pairs, Rotate with 0.7 in one.
    let shears = with(Operation::ShearY);
    share(shears.len(), drawn.len(), (0.5 + 0.2) / 25.0);
    share(shears.iter().filter(|&&magnitude| magnitude < 0.0).count(), shears.len(), 0.5);
    share(with(Operation::Rotate).len(), drawn.len(), 0.7 / 25.0);
    // (Sharpness 0.8, Sharpness 0.9), the only pair that runs it twice.
    let twice =
        |p: &&ViewParams| p.policy.len() == 2 && p.policy.iter().all(|s| s.operation == Operation::Sharpness);
    share(drawn.iter().filter(twice).count(), drawn.len(), 0.72 / 25.0);
    assert!(with(Operation::Posterize).iter().all(|&bits| bits == 5.0));
    assert!(with(Operation::Solarize).iter().all(|&level| level > 0.0), "a threshold has no sign");
    let imagenet = AugmentConfig { policy: Policy::AutoaugmentImagenet, ..config };
    let drawn = draws(&imagenet, 50_000);
    let mut operations: HashMap<String, usize> = HashMap::new();
    for step in drawn.iter().flat_map(|params| &params.policy) {
        *operations.entry(format!("{:?}", step.operation)).or_default() += 1;
    }
    share(operations["ShearX"], drawn.len(), 0.6 / 25.0);
    assert!(!operations.contains_key("Brightness"), "not in the policy for ImageNet");
}

#[test]
fn ranges_are_checked_for_both_views() {
    let broken = |config: AugmentConfig| config.validate().unwrap_err().to_string();
    let error = broken(AugmentConfig { motion_blur_length: [0.5, 3.0], ..AugmentConfig::default() });
    assert_eq!(error, "augment.motion_blur_length = 0.5: expected lengths of at least 1 pixel");
    for config in [
        AugmentConfig { equalize: 1.5, ..AugmentConfig::default() },
        AugmentConfig { vertical_flip: -0.1, ..AugmentConfig::default() },
        AugmentConfig { motion_blur: f32::NAN, ..AugmentConfig::default() },
        AugmentConfig { motion_blur_length: [3.0, 101.0], ..AugmentConfig::default() },
    ] {
        assert!(config.validate().is_err(), "{config:?}");
    }
    let second_view = Some(SecondView { solarize: Some(1.5), ..SecondView::default() });
    let error = broken(AugmentConfig { second_view, ..AugmentConfig::default() });
    assert_eq!(error, "augment.second_view.solarize = 1.5: expected a number between 0 and 1");
    broader().validate().unwrap();
}

/// Every key of `[augment]` except those that both views share.
#[test]
fn the_second_view_may_change_every_operator() {
    let all = serde_json::to_value(AugmentConfig::default()).unwrap();
    let shared = ["interpolation", "antialias", "color_model"];
    let keys = all.as_object().unwrap().keys().filter(|key| !shared.contains(&key.as_str()));
    let mut expected: Vec<String> = keys.map(|key| format!("augment.second_view.{key}")).collect();
    let mut found: Vec<String> = SecondView::KEYS.iter().map(|&key| key.to_owned()).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let second_view = SecondView { blur: Some(0.1), solarize: Some(0.2), ..SecondView::default() };
    let both = AugmentConfig { blur: 1.0, second_view: Some(second_view), ..AugmentConfig::default() };
    let [first, second] = both.of_views();
    assert_eq!(first, AugmentConfig { blur: 1.0, ..AugmentConfig::default() });
    assert_eq!(second, AugmentConfig { blur: 0.1, solarize: 0.2, ..AugmentConfig::default() });
    let [first, second] = AugmentConfig::default().of_views();
    assert_eq!((&first, &second), (&AugmentConfig::default(), &first));
}

/// Ten images of noise.
struct Noise;

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        let mut stream = Key { seed: 5, epoch: 0, image: index as u64, view: 0 }.stream();
        Ok(Image::new(20, 17, channels, (0..20 * 17 * channels).map(|_| stream.below(256) as u8).collect()))
    }

    fn stored_bytes(&self, _: usize) -> u64 {
        1
    }
}

/// Rows of the first batch: 10 first views, then 10 second views.
fn batch(augment: &AugmentConfig, threads: usize) -> Vec<f32> {
    let samples = (0..10).map(|index| Sample { name: index.to_string(), label: None }).collect();
    let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(Noise)));
    let config = LoaderConfig { batch: 10, size: 12, threads, ..LoaderConfig::default() };
    let loader = Loader::new(dataset, augment.clone(), config).unwrap();
    let batch = loader.batches(0, 1).unwrap().next().unwrap().unwrap();
    batch.pixels().to_vec()
}

#[test]
fn batches_do_not_depend_on_threads() {
    let second_view = Some(SecondView { policy: Some(Policy::None), ..SecondView::default() });
    let config = AugmentConfig { policy: Policy::AutoaugmentImagenet, second_view, ..broader() };
    assert!(batch(&config, 1) == batch(&config, 4));
}

#[test]
fn the_second_half_of_a_batch_has_the_second_policy() {
    let plain = AugmentConfig::nothing();
    let second_view = Some(SecondView { vertical_flip: Some(1.0), ..SecondView::default() });
    let flipped = AugmentConfig { vertical_flip: 1.0, ..plain.clone() };
    let mixed = batch(&AugmentConfig { second_view, ..plain.clone() }, 2);
    let (plain, flipped) = (batch(&plain, 2), batch(&flipped, 2));
    let half = mixed.len() / 2;
    assert_eq!(mixed[..half], plain[..half]);
    assert_eq!(mixed[half..], flipped[half..]);
    assert_ne!(mixed[half..], plain[half..]);
}

fn noisy(side: usize, channels: usize, level: Option<u8>) -> Image {
    let pixel = |at: usize| level.unwrap_or(((at * 2_654_435_761) >> 9) as u8);
    Image::new(side, side, channels, (0..side * side * channels).map(pixel).collect())
}

#[test]
fn invert_twice_changes_nothing_and_grey_has_no_colour() {
    let image = picture(12, 12, 3);
    let steps = |operations: &[(Operation, f32)]| {
        let step = |&(operation, magnitude): &(Operation, f32)| PolicyStep { operation, magnitude };
        let policy = operations.iter().map(step).collect();
        view(&image, &ViewParams { policy, ..plain(&image) }, 12)
    };
    let original = view(&image, &plain(&image), 12);
    assert_eq!(steps(&[(Operation::Invert, 0.0), (Operation::Invert, 0.0)]), original);
    assert_eq!(steps(&[(Operation::Posterize, 8.0)]), original);
    assert_eq!(steps(&[(Operation::Solarize, 0.0)]), steps(&[(Operation::Invert, 0.0)]));
    let grey = steps(&[(Operation::Color, -1.0)]);
    assert_eq!(grey[..144], grey[144..288]);
    assert_eq!(steps(&[(Operation::Color, -1.0), (Operation::Color, 0.7)]), grey);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn views_of_any_image_are_within_0_and_1(
        side in 1usize..50, channels in 1usize..6, image in any::<u64>(), size in 8usize..40, antialias in any::<bool>(),
        level in prop_oneof![Just(None), Just(Some(0u8)), Just(Some(255))],
        policy in prop::sample::select(vec![Policy::None, Policy::AutoaugmentImagenet, Policy::AutoaugmentCifar10]),
    ) {
        let picture = noisy(side, channels, level);
        let config = AugmentConfig {
            vertical_flip: 0.5, motion_blur: 0.5, motion_blur_length: [1.0, 60.0], equalize: 0.5, solarize: 0.3, sobel: 0.3,
            rotate: 0.3, antialias, policy, ..AugmentConfig::default()
        };
        let params = config.draw(Key { seed: 3, epoch: 0, image, view: 1 }, side, side);
        let mut out = vec![f32::NAN; channels * size * size];
        augment::apply(&picture, &params, &config, size, &mut out, &mut AugmentBuffers::default());
        prop_assert!(out.iter().all(|value| (0.0..=1.0).contains(value)), "{:?}", params);
    }

    /// A single channel equals each of three equal ones.
    #[test]
    fn equal_channels_stay_equal(image in any::<u64>(), channels in 2usize..5) {
        let one = noisy(20, 1, None);
        let data = one.data.iter().flat_map(|&level| vec![level; channels]).collect();
        let many = Image::new(20, 20, channels, data);
        let config = AugmentConfig {
            policy: Policy::AutoaugmentCifar10, equalize: 0.5, motion_blur: 0.5, vertical_flip: 0.5,
            ..AugmentConfig::nothing()
        };
        let params = config.draw(Key { seed: 4, epoch: 0, image, view: 0 }, 20, 20);
        let (one, many) = (view(&one, &params, 20), view(&many, &params, 20));
        for plane in many.chunks(400) {
            prop_assert!(worst(plane, &one) == 0.0, "{:?}", params);
        }
    }
}
