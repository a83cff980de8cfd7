//! Augmentation by the GPU kernels, emulated: against the goldens of `simclr-data` (`reference/augment.py`), against augmentation by
//! the loader, and in whole runs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../simclr-data/tests/golden/cases.rs"]
mod cases;
mod filters;
mod fuzz;
mod gaussian_noise;
mod loader;
#[path = "../../../../fuzz/src/mutation.rs"]
mod mutation;
mod policy;
mod run;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use cases::{Case, goldens, picture, plain};
use proptest::prelude::*;
use simclr::{
    data::{
        AugmentConfig, DeferredView, DeferredViews, Image, ViewParams, ViewSpec,
        augment::{self, AugmentBuffers, Brightness, ColorModel, Crop, CropSampler, Cutout, Interpolation},
        rng::Key,
    },
    device::{DeviceChoice, choose_device},
    views::upload_deferred,
};
use simclr_shim::gpu::{Order, emulated};
use tch::Device;

/// Whether every view is also computed on a GPU and compared with the emulator.
static ON_GPU: AtomicBool = AtomicBool::new(false);

#[test]
#[ignore = "needs a GPU"]
fn gpu_kernels_agree_with_the_emulator() {
    assert!(choose_device(DeviceChoice::Cuda, 0).unwrap().is_cuda());
    ON_GPU.store(true, Ordering::Relaxed);
    resize_agrees_with_pillow();
    single_operators_agree_with_goldens();
    whole_view_agrees_with_golden();
    extreme_sizes_agree_with_the_cpu();
    views_without_antialiasing_agree_with_the_cpu();
    cutout_agrees_with_the_cpu();
    filters::operators_agree_with_goldens();
    filters::motion_blurs_and_edges_agree_with_the_cpu();
    filters::equalized_views_agree_with_the_cpu_to_the_bit();
    gaussian_noise::noise_agrees_with_the_cpu();
    gaussian_noise::noise_follows_sobel_and_solarization_and_precedes_cutout();
    policy::operations_agree_with_the_cpu_to_the_level();
    policy::uniform_and_two_level_views_agree_with_the_cpu();
    policy::drawn_policies_agree_with_the_cpu_to_the_level();
    policy::a_view_of_many_operators_agrees_with_the_cpu();
}

/// All kernels run.
fn deferred(images: &[(&Image, ViewParams)], config: &AugmentConfig, size: usize) -> DeferredViews {
    let channels = images[0].0.channels;
    let (mut bytes, mut rows) = (Vec::new(), Vec::new());
    for (image, params) in images {
        let (at, width, height) = (bytes.len(), image.width, image.height);
        rows.push(DeferredView { at, width, height, params: params.clone() });
        bytes.extend_from_slice(&image.data);
    }
    let AugmentConfig { interpolation, antialias, color_model, .. } = *config;
    let (policies, blurs, filters, noise) = (true, true, true, true);
    let method =
        ViewSpec { channels, size, interpolation, antialias, color_model, policies, blurs, filters, noise };
    DeferredViews { bytes: bytes.into(), rows, method }
}

/// `[B, C, S, S]`. Checks that both orders of emulated threads give the same bits.
fn views_of(deferred: &DeferredViews) -> Vec<f32> {
    let [rising, falling] = [Order::Rising, Order::Falling].map(|order| {
        emulated(order, || {
            let views = upload_deferred(deferred, Device::Cpu).unwrap().views().unwrap();
            let [b, c, s] =
                [deferred.rows.len(), deferred.method.channels, deferred.method.size].map(|side| side as i64);
            assert_eq!((views.size(), views.stride()), (vec![b, c, s, s], vec![c * s * s, 1, c * s, c]));
            Vec::<f32>::try_from(views.contiguous().view(-1)).unwrap()
        })
    });
    assert_eq!(rising, falling, "depends on the order of threads");
    if ON_GPU.load(Ordering::Relaxed) {
        let views = upload_deferred(deferred, Device::Cuda(0)).unwrap().views().unwrap();
        let views = Vec::<f32>::try_from(views.to_device(Device::Cpu).contiguous().view(-1)).unwrap();
        // Compilers may fuse a product and a sum, which rounds once instead of twice.
        assert!(max_difference(&views, &rising) < 1e-5, "off by {}", max_difference(&views, &rising));
    }
    rising
}

/// A view of each image, as `[C, S, S]`.
fn by_kernels(images: &[(&Image, ViewParams)], config: &AugmentConfig, size: usize) -> Vec<Vec<f32>> {
    let values = views_of(&deferred(images, config, size));
    values.chunks(values.len() / images.len()).map(<[f32]>::to_vec).collect()
}

fn by_kernel(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    by_kernels(&[(image, params.clone())], config, size).remove(0)
}

fn by_loader(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; image.channels * size * size];
    augment::apply(image, params, config, size, &mut out, &mut AugmentBuffers::default());
    out
}

/// The view by the kernels and by the loader.
fn by_both(image: &Image, params: &ViewParams, config: &AugmentConfig, size: usize) -> (Vec<f32>, Vec<f32>) {
    (by_kernel(image, params, config, size), by_loader(image, params, config, size))
}

/// Largest absolute difference.
fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |max, next| if next > max { next } else { max })
}

/// Pillow's `precompute_coeffs` in f64: weights of `input` pixels in each of `size` output pixels, for the crop of `length` pixels at
/// `start`.
fn weights(start: usize, length: usize, input: usize, size: usize, filter: Interpolation) -> Vec<Vec<f64>> {
    let scale = length as f64 / size as f64;
    let weight = |distance: f64| match (filter, distance.abs() / scale.max(1.0)) {
        (Interpolation::Bilinear, x) => (1.0 - x).max(0.0),
        (Interpolation::Bicubic, x) if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        (Interpolation::Bicubic, x) if x < 2.0 => -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    };
    let row = |out: usize| {
        let centre = start as f64 + (out as f64 + 0.5) * scale;
        let raw: Vec<f64> = (0..input).map(|pixel| weight(pixel as f64 + 0.5 - centre)).collect();
        let sum: f64 = raw.iter().sum();
        raw.into_iter().map(|weight| weight / sum).collect()
    };
    (0..size).map(row).collect()
}

/// The resize in f64: vertical pass, clamp, horizontal pass, clamp.
fn exact_resize(image: &Image, crop: Crop, filter: Interpolation, size: usize) -> Vec<f32> {
    let vertical = weights(crop.y, crop.height, image.height, size, filter);
    let horizontal = weights(crop.x, crop.width, image.width, size, filter);
    let value = |channel: usize, y: usize, x: usize| {
        f64::from(image.data[(y * image.width + x) * image.channels + channel])
    };
    let mut out = Vec::new();
    for channel in 0..image.channels {
        for rows in &vertical {
            let line: Vec<f64> = (0..image.width)
                .map(|x| {
                    rows.iter().enumerate().map(|(y, weight)| weight * value(channel, y, x)).sum::<f64>()
                })
                .map(|value| value.clamp(0.0, 255.0))
                .collect();
            out.extend(horizontal.iter().map(|columns| {
                let sum: f64 = columns.iter().zip(&line).map(|(weight, value)| weight * value).sum();
                (sum.clamp(0.0, 255.0) / 255.0) as f32
            }));
        }
    }
    out
}

#[track_caller]
fn assert_near(name: &str, found: &[f32], goldens: &HashMap<String, Vec<f32>>, tolerance: f32) {
    let worst = max_difference(found, &goldens[name]);
    assert!(worst <= tolerance, "{name}: off by {worst}, allowed {tolerance}");
}

/// Rounding error of Pillow: half a level of 255 at the end, and half a level after the first pass, which the bicubic weights of the
/// second pass (absolute values sum to 5/4) amplify to 5/8.
const PILLOW_ROUNDING: f32 = 1.125 / 255.0;
/// f32 rounding without a resize.
const ROUNDING: f32 = 2e-6;

#[test]
fn resize_agrees_with_pillow() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::resizes() {
        let view = by_kernel(&image, &params, &config, size);
        assert_near(&name, &view, &goldens, PILLOW_ROUNDING);
        let worst = max_difference(&view, &exact_resize(&image, params.crop, config.interpolation, size));
        assert!(worst <= ROUNDING, "{name}: off by {worst} from the formula");
    }
}

#[test]
fn single_operators_agree_with_goldens() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in cases::operators() {
        assert_near(&name, &by_kernel(&image, &params, &config, size), &goldens, ROUNDING);
    }
}

#[test]
fn whole_view_agrees_with_golden() {
    let Case { name, image, params, config, size } = cases::whole_view();
    assert_near(&name, &by_kernel(&image, &params, &config, size), &goldens(), 2.0 * PILLOW_ROUNDING);
}

/// White noise, the hardest input for a resize.
fn noise(width: usize, height: usize, channels: usize, seed: u64) -> Image {
    let mut stream = Key { seed, epoch: 0, image: 0, view: 0 }.stream();
    let data = (0..width * height * channels).map(|_| stream.below(256) as u8).collect();
    Image::new(width, height, channels, data)
}

fn configuration() -> impl Strategy<Value = AugmentConfig> {
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (kinds, 0.0f32..2.0).prop_map(|((bilinear, torchvision, additive, sampler, antialias), color)| {
        AugmentConfig {
            antialias,
            interpolation: if bilinear { Interpolation::Bilinear } else { Interpolation::Bicubic },
            color_model: if torchvision { ColorModel::Torchvision } else { ColorModel::Tensorflow },
            brightness: if additive { Brightness::Additive } else { Brightness::Multiplicative },
            crop_sampler: if sampler { CropSampler::Torchvision } else { CropSampler::Tensorflow },
            color,
            solarize: 0.3,
            rotate: 0.5,
            cutout: 0.3,
            ..AugmentConfig::default()
        }
    })
}

/// Rounding error of the CPU's resize, which rounds to bytes twice and has fixed-point weights.
const CPU_RESIZE_ROUNDING: f32 = 1.5 / 255.0;
/// Equal operations in f32, partly in another order.
const REORDERING: f32 = 1e-5;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Crop, flip and rotation only, for any sizes.
    #[test]
    fn resizes_agree(config in configuration(), sizes in (1usize..90, 1usize..70), size in 8usize..50,
                     channels in prop::sample::select(vec![1usize, 2, 3, 4, 5]), seed in any::<u64>()) {
        let image = noise(sizes.0, sizes.1, channels, seed);
        let config = AugmentConfig { color: 0.0, gray: 0.0, blur: 0.0, solarize: 0.0, cutout: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, image.width, image.height);
        let (found, expected) = by_both(&image, &params, &config, size);
        let worst = max_difference(&found, &expected);
        prop_assert!(worst <= CPU_RESIZE_ROUNDING, "off by {} levels: {:?}", worst * 255.0, params);
    }

    /// All operators except the resize, and except solarization, because its threshold amplifies rounding.
    #[test]
    fn operators_agree(config in configuration(), size in 8usize..50,
                       channels in prop::sample::select(vec![1usize, 2, 3, 4, 5]), seed in any::<u64>()) {
        let image = noise(size, size, channels, seed);
        let config = AugmentConfig { crop: false, solarize: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, size, size);
        let (found, expected) = by_both(&image, &params, &config, size);
        let worst = max_difference(&found, &expected);
        prop_assert!(worst <= REORDERING, "off by {worst}: {params:?}");
    }

    /// All operators in sequence; compares the mean, because colour jitter amplifies the rounding of the resize.
    #[test]
    fn whole_views_agree(config in configuration(), sizes in (20usize..60, 20usize..60), size in 8usize..40,
                         seed in any::<u64>()) {
        let image = picture(sizes.0, sizes.1, 3);
        let config = AugmentConfig { solarize: 0.0, ..config };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, image.width, image.height);
        let (found, expected) = by_both(&image, &params, &config, size);
        let mean = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f32>() / found.len() as f32;
        prop_assert!(mean <= CPU_RESIZE_ROUNDING, "off by {} levels on average: {:?}", mean * 255.0, params);
    }
}

/// Images much larger and much smaller than the view, views larger than a tile.
#[test]
fn extreme_sizes_agree_with_the_cpu() {
    let config = AugmentConfig::nothing();
    for (width, height, size) in [(700, 20, 9), (20, 700, 9), (3, 2, 70), (150, 90, 67)] {
        let image = noise(width, height, 3, 7);
        let params = ViewParams { quarter_turns: 3, flip: true, ..plain(&image) };
        let (found, expected) = by_both(&image, &params, &config, size);
        let worst = max_difference(&found, &expected);
        assert!(worst <= CPU_RESIZE_ROUNDING, "{width}x{height} to {size}: off by {} levels", worst * 255.0);
    }
}

/// Without antialiasing nothing is rounded to bytes.
#[test]
fn views_without_antialiasing_agree_with_the_cpu() {
    let noisy = AugmentConfig { antialias: false, solarize: 0.0, jitter: 0.7, ..AugmentConfig::default() };
    let soft = AugmentConfig { interpolation: Interpolation::Bilinear, ..noisy.clone() };
    for (at, (width, height, size)) in
        [(700, 20, 9), (20, 700, 9), (3, 2, 70), (150, 90, 67), (61, 47, 23), (40, 40, 40)]
            .into_iter()
            .enumerate()
    {
        for (config, channels) in [(&noisy, 3), (&soft, 3), (&noisy, 1), (&noisy, 5)] {
            let image = noise(width, height, channels, at as u64);
            for draw in 0..8 {
                let key = Key { seed: 5, epoch: 0, image: draw, view: 0 };
                let params = config.draw(key, width, height);
                let (found, expected) = by_both(&image, &params, config, size);
                let worst = max_difference(&found, &expected);
                assert!(
                    worst <= 2.0 * REORDERING,
                    "{width}x{height}x{channels} to {size}: off by {worst}, {params:?}"
                );
            }
        }
    }
}

#[test]
fn views_do_not_depend_on_other_rows() {
    let config = AugmentConfig::default();
    let images: Vec<Image> = (0..5).map(|seed| noise(30 + seed, 40 - seed, 3, seed as u64)).collect();
    let draw = |at: usize| {
        config.draw(Key { seed: 3, epoch: 0, image: at as u64, view: 0 }, images[at].width, images[at].height)
    };
    let all: Vec<_> = images.iter().enumerate().map(|(at, image)| (image, draw(at))).collect();
    let batch = by_kernels(&all, &config, 24);
    for (at, (image, params)) in all.iter().enumerate() {
        assert_eq!(by_kernel(image, params, &config, 24), batch[at], "view {at}");
    }
}

#[test]
fn cutout_agrees_with_the_cpu() {
    let image = picture(32, 32, 1);
    for (x, y) in [(0.5, 0.5), (0.01, 0.99)] {
        let params = ViewParams { cutout: Some(Cutout { x, y }), blur: Some(1.0), ..plain(&image) };
        let config = AugmentConfig::nothing();
        let (found, expected) =
            (by_kernel(&image, &params, &config, 32), by_loader(&image, &params, &config, 32));
        assert!(max_difference(&found, &expected) <= ROUNDING);
    }
}
