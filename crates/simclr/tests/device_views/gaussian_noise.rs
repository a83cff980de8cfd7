//! Gaussian noise: the kernel draws the numbers of the CPU's stream.

use simclr::data::{
    AugmentConfig, Image, ViewParams,
    augment::{Cutout, NoiseSeed},
};

use crate::{
    REORDERING, by_both, by_kernel,
    cases::{picture, plain},
    max_difference,
};

fn seed(sigma_millionths: u32, seed: u64) -> Option<NoiseSeed> {
    Some(NoiseSeed { sigma_millionths, seed })
}

/// Up to a whole block of 4096 draws and beyond, an odd number of values, seeds of both halves.
#[test]
pub(crate) fn noise_agrees_with_the_cpu() {
    for (side, channels, number) in [
        (1, 1, 1),
        (1, 3, u64::MAX),
        (7, 1, 2),
        (7, 4, 3 << 32),
        (32, 3, 0x1234_5678_9abc_def0),
        (37, 3, 4),
        (64, 1, 5),
        (224, 3, 6),
    ] {
        let gray = Image::new(side, side, channels, vec![128; side * side * channels]);
        for (image, sigma) in [(gray, 100_000), (picture(side, side, channels), 1_000_000)] {
            let params = ViewParams { noise: seed(sigma, number), ..plain(&image) };
            let (found, expected) = by_both(&image, &params, &AugmentConfig::nothing(), side);
            let worst = max_difference(&found, &expected);
            assert!(worst <= REORDERING, "{side} px, {channels} channels: off by {worst}");
        }
    }
}

#[test]
pub(crate) fn noise_follows_sobel_and_solarization_and_precedes_cutout() {
    let image = picture(40, 40, 3);
    let noisy = ViewParams { noise: seed(50_000, 9), ..plain(&image) };
    let cut = Some(Cutout { x: 0.4, y: 0.7 });
    for (what, params) in [
        ("solarized", ViewParams { solarize: Some(0.5), cutout: cut, ..noisy.clone() }),
        ("blurred", ViewParams { blur: Some(1.0), cutout: cut, ..noisy.clone() }),
        ("edges", ViewParams { sobel: true, cutout: cut, ..noisy.clone() }),
        ("equalized", ViewParams { equalize: true, cutout: cut, ..noisy.clone() }),
    ] {
        let (found, expected) = by_both(&image, &params, &AugmentConfig::nothing(), 40);
        let worst = max_difference(&found, &expected);
        assert!(worst <= REORDERING, "{what}: off by {worst}");
    }
}

#[test]
fn noise_of_deviation_zero_changes_nothing() {
    let image = picture(20, 20, 3);
    let config = AugmentConfig::nothing();
    let silent = ViewParams { noise: seed(0, 7), ..plain(&image) };
    assert_eq!(by_kernel(&image, &silent, &config, 20), by_kernel(&image, &plain(&image), &config, 20));
}
