//! Mutated augmentation parameters and configurations, by the kernels. `FUZZ=100000 cargo test --release --test device_views fuzz` runs
//! that many mutations of each.

use std::path::Path;

use simclr::{
    RunConfig,
    data::{AugmentConfig, Image, ViewParams, rng::Key},
    views::upload_deferred,
};
use tch::Device;

use crate::{
    CPU_RESIZE_ROUNDING, by_loader, deferred,
    mutation::{files, fuzz},
    noise, views_of,
};

/// `[augment]` with every operator and every key.
fn corpus() -> Vec<Vec<u8>> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/augment"))
}

fn is_within_bounds(view: &[f32]) -> bool {
    view.iter().all(|value| (0.0..=1.0).contains(value))
}

/// Of the mean difference of a view with thresholds.
const AMPLIFIED: f32 = 8.0 / 255.0;

/// Width, height and channels of the image, side of the view.
type Sizes = [usize; 4];

/// The kernels index memory by the parameters: what does not fit its image is refused.
#[test]
fn parameters() {
    let sizes: [Sizes; 4] = [[32, 32, 3, 32], [1, 64, 1, 9], [51, 4, 4, 40], [21, 21, 16, 1]];
    let seeds = corpus().into_iter().zip(sizes).flat_map(|(text, sizes)| {
        let config = RunConfig::of_toml(str::from_utf8(&text).unwrap()).unwrap().augment;
        config.of_views().map(|config| {
            let params = config.draw(Key { seed: 1, epoch: 0, image: 0, view: 0 }, sizes[0], sizes[1]);
            serde_json::to_vec(&(sizes, params)).unwrap()
        })
    });
    fuzz("parameters", &seeds.collect::<Vec<_>>(), 3000, |input| {
        let Ok((sizes, params)) = serde_json::from_slice::<(Sizes, ViewParams)>(input) else { return };
        if sizes.iter().any(|&size| !(1..=64).contains(&size)) {
            return;
        }
        let [width, height, channels, side] = sizes;
        let image = noise(width, height, channels, 5);
        let deferred = deferred(&[(&image, params)], &AugmentConfig::nothing(), side);
        if upload_deferred(&deferred, Device::Cpu).is_ok() {
            assert!(is_within_bounds(&views_of(&deferred)));
        }
    });
}

/// What a valid configuration draws is accepted for images of any size, and the loader computes the same view.
#[test]
fn configurations() {
    fuzz("augment", &corpus(), 1000, |input| {
        let Ok(config) = RunConfig::of_toml(&String::from_utf8_lossy(input)) else { return };
        if config.augment.validate().is_err() {
            return;
        }
        let seed = input.iter().fold(0u64, |hash, &byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let mut stream = Key { seed, epoch: 0, image: 0, view: 2 }.stream();
        let [width, height, channels, side] = [64, 64, 5, 40].map(|most| 1 + stream.below(most));
        let image: Image = noise(width, height, channels, seed);
        for (view, config) in (0..).zip(config.augment.of_views()) {
            let params = config.draw(Key { seed, epoch: 0, image: 0, view }, image.width, image.height);
            let found = views_of(&deferred(&[(&image, params.clone())], &config, side));
            assert!(is_within_bounds(&found), "{params:?}");
            let expected = by_loader(&image, &params, &config, side);
            let sum: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
            // Thresholds, histograms and edges amplify the rounding of the resize.
            let amplifies =
                !params.policy.is_empty() || params.equalize || params.sobel || params.solarize.is_some();
            let most = if amplifies { AMPLIFIED } else { CPU_RESIZE_ROUNDING };
            let mean = sum / found.len() as f32;
            assert!(mean <= most, "off by {} levels on average: {params:?}", mean * 255.0);
        }
    });
}
