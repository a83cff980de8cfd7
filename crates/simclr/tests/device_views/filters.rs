//! Operators that read more than a pixel (motion blur, equalize, Sobel), and the vertical flip.

use proptest::prelude::*;
use simclr::data::{
    AugmentConfig, ViewParams,
    augment::{Cutout, MotionBlur},
    rng::Key,
};

use crate::{
    REORDERING, ROUNDING, assert_near, by_both, by_kernel, by_kernels,
    cases::{Case, broader_operators, goldens, picture, plain},
    max_difference, noise,
};

#[test]
pub(crate) fn operators_agree_with_goldens() {
    let goldens = goldens();
    for Case { name, image, params, config, size } in broader_operators() {
        assert_near(&name, &by_kernel(&image, &params, &config, size), &goldens, ROUNDING);
    }
}

/// Alone and in sequence with each other, solarization and cutout.
#[test]
pub(crate) fn motion_blurs_and_edges_agree_with_the_cpu() {
    let image = noise(33, 33, 3, 4);
    let motion = |length, degrees| Some(MotionBlur { length, degrees });
    let edges = ViewParams { sobel: true, ..plain(&image) };
    for (what, params) in [
        ("longest", ViewParams { motion_blur: motion(100.0, 111.0), ..plain(&image) }),
        ("along columns", ViewParams { motion_blur: motion(9.5, 90.0), ..plain(&image) }),
        ("edges of a motion blur", ViewParams { motion_blur: motion(4.2, 60.0), ..edges.clone() }),
        ("with a Gaussian", ViewParams { motion_blur: motion(7.0, 10.0), blur: Some(1.0), ..plain(&image) }),
        ("grey square", ViewParams { cutout: Some(Cutout { x: 0.4, y: 0.6 }), ..edges.clone() }),
        ("flips", ViewParams { flip: true, vertical_flip: true, quarter_turns: 1, ..edges }),
    ] {
        let (found, expected) = by_both(&image, &params, &AugmentConfig::nothing(), 33);
        let worst = max_difference(&found, &expected);
        assert!(worst <= REORDERING, "{what}: off by {worst}");
    }
}

/// On images that are not resized, values are levels; equalizing and what follows is exact.
#[test]
pub(crate) fn equalized_views_agree_with_the_cpu_to_the_bit() {
    for channels in [1, 2, 3, 5] {
        let image = picture(40, 40, channels);
        let equalized = ViewParams { equalize: true, vertical_flip: true, ..plain(&image) };
        let solarized = ViewParams { solarize: Some(0.5), ..equalized.clone() };
        for params in [equalized, solarized] {
            let (found, expected) = by_both(&image, &params, &AugmentConfig::nothing(), 40);
            assert!(found == expected, "{channels} channels: off by {}", max_difference(&found, &expected));
        }
    }
}

#[test]
fn views_with_and_without_filters_share_a_batch() {
    let config = AugmentConfig {
        motion_blur: 0.4,
        equalize: 0.4,
        sobel: 0.3,
        solarize: 0.4,
        cutout: 0.4,
        vertical_flip: 0.5,
        ..AugmentConfig::default()
    };
    let images: Vec<_> = (0..8).map(|seed| noise(30, 26, 3, seed)).collect();
    let draw = |image| config.draw(Key { seed: 8, epoch: 0, image, view: 0 }, 30, 26);
    let all: Vec<_> = images.iter().zip(0..).map(|(image, number)| (image, draw(number))).collect();
    let filtered = |params: &ViewParams| params.motion_blur.is_some() || params.equalize || params.sobel;
    assert!(
        all.iter().any(|(_, params)| filtered(params)) && all.iter().any(|(_, params)| !filtered(params))
    );
    let batch = by_kernels(&all, &config, 24);
    for (at, (image, params)) in all.iter().enumerate() {
        assert_eq!(by_kernel(image, params, &config, 24), batch[at], "view {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without equalizing and solarizing, of which the steps amplify rounding.
    #[test]
    fn filters_agree(size in 8usize..40, channels in prop::sample::select(vec![1usize, 2, 3, 5]), seed in any::<u64>()) {
        let image = noise(size, size, channels, seed);
        let config = AugmentConfig {
            crop: false, motion_blur: 0.7, motion_blur_length: [1.0, 30.0], sobel: 0.4, vertical_flip: 0.5, rotate: 0.5,
            cutout: 0.3, ..AugmentConfig::default()
        };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, size, size);
        let (found, expected) = by_both(&image, &params, &config, size);
        let worst = max_difference(&found, &expected);
        prop_assert!(worst <= 4.0 * REORDERING, "off by {worst}: {params:?}");
    }
}
