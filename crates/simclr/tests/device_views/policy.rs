//! AutoAugment. On images that are not resized, values are levels, and its operations are exact.

use proptest::prelude::*;
use simclr::{
    data::{
        AugmentConfig, Image, ViewParams,
        augment::{Jitter, MotionBlur, Operation, Policy, PolicyStep},
        rng::Key,
    },
    views::upload_deferred,
};
use tch::Device;

use crate::{
    REORDERING, by_both, by_kernel, by_kernels, by_loader,
    cases::{picture, plain},
    deferred, max_difference, noise, views_of,
};

use Operation::{
    AutoContrast, Brightness, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX,
    ShearY, Solarize, TranslateX, TranslateY,
};

const OPERATIONS: [Operation; 14] = [
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
];
const POLICIES: [Policy; 2] = [Policy::AutoaugmentImagenet, Policy::AutoaugmentCifar10];

/// Magnitudes of the policies, of both signs if it has one, and some that no policy has.
fn steps(operation: Operation, numbers: &[u8]) -> Vec<PolicyStep> {
    let others = match operation {
        Posterize => vec![0.0, 1.9, 3.0, 12.0],
        Solarize => vec![127.5, 300.0, -1.0],
        AutoContrast | Equalize | Invert => return vec![PolicyStep { operation, magnitude: 0.0 }],
        _ => vec![-1.0, 1.3],
    };
    let drawn = numbers.iter().map(|&number| operation.magnitude(number));
    let signs: &[f32] = if operation.is_signed() { &[1.0, -1.0] } else { &[1.0] };
    let signed = drawn.flat_map(|magnitude| signs.iter().map(move |sign| sign * magnitude));
    signed.chain(others).map(|magnitude| PolicyStep { operation, magnitude }).collect()
}

/// Few levels, so that autocontrast and equalize change many.
fn dark(side: usize, channels: usize) -> Image {
    let data = picture(side, side, channels).data.iter().map(|level| level / 4 + 20).collect();
    Image::new(side, side, channels, data)
}

/// Views of one side and channel count in one batch.
#[track_caller]
fn assert_exact(views: &[(&Image, ViewParams)], side: usize) {
    let config = AugmentConfig::nothing();
    for ((image, params), found) in views.iter().zip(by_kernels(views, &config, side)) {
        let expected = by_loader(image, params, &config, side);
        assert!(
            found == expected,
            "{side} px, {} channels: off by {} levels, {:?}",
            image.channels,
            max_difference(&found, &expected) * 255.0,
            params.policy
        );
    }
}

#[test]
pub(crate) fn operations_agree_with_the_cpu_to_the_level() {
    for (side, channels, numbers) in [
        (1, vec![1, 3, 4], vec![9]),
        (2, vec![3], vec![9]),
        (7, vec![1, 3, 4, 16], vec![0, 1, 5, 9]),
        (32, vec![1, 3, 4], vec![4, 9]),
        (224, vec![3], vec![8]),
    ] {
        for channels in channels {
            let images = [noise(side, side, channels, side as u64), dark(side, channels)];
            let steps = OPERATIONS.iter().flat_map(|&operation| steps(operation, &numbers));
            let views: Vec<_> = steps
                .enumerate()
                .flat_map(|(at, step)| {
                    let images = if side < 224 { &images[..] } else { &images[at % 2..=at % 2] };
                    images.iter().map(move |image| (image, ViewParams { policy: vec![step], ..plain(image) }))
                })
                .collect();
            assert_exact(&views, side);
        }
    }
}

/// Of the mean grey and of histograms, also where a level or a quotient lies at the edge of the next.
#[test]
pub(crate) fn uniform_and_two_level_views_agree_with_the_cpu() {
    let image = |low: u8, high: u8| {
        let data = (0..33 * 33 * 3).map(|at| if at % 7 == 0 { high } else { low }).collect();
        Image::new(33, 33, 3, data)
    };
    let images = [image(0, 0), image(255, 255), image(3, 3), image(0, 255), image(100, 101), image(7, 250)];
    let views: Vec<_> = images
        .iter()
        .flat_map(|image| {
            let steps = OPERATIONS.into_iter().flat_map(|operation| steps(operation, &[7]));
            steps.map(move |step| (image, ViewParams { policy: vec![step], ..plain(image) }))
        })
        .collect();
    assert_exact(&views, 33);
}

/// With flips and quarter turns before them.
#[test]
pub(crate) fn drawn_policies_agree_with_the_cpu_to_the_level() {
    for policy in POLICIES {
        let config =
            AugmentConfig { policy, flip: 0.5, vertical_flip: 0.5, rotate: 0.5, ..AugmentConfig::nothing() };
        let images: Vec<Image> =
            (0..120).map(|at| if at % 2 == 0 { noise(24, 24, 3, at) } else { dark(24, 3) }).collect();
        let draw = |(image, number): (_, u64)| {
            (image, config.draw(Key { seed: 2, epoch: 0, image: number, view: 0 }, 24, 24))
        };
        let views: Vec<_> = images.iter().zip(0..).map(draw).collect();
        let steps = |count| views.iter().filter(|(_, params)| params.policy.len() == count).count();
        assert!((0..=2).all(|count| steps(count) > 10), "{:?}", [steps(0), steps(1), steps(2)]);
        assert_exact(&views, 24);
    }
}

#[test]
fn views_without_operations_keep_their_bits_in_a_batch_with_some() {
    let base = AugmentConfig { crop_scale: [0.3, 1.0], solarize: 0.3, ..AugmentConfig::default() };
    let learned =
        AugmentConfig { policy: Policy::AutoaugmentImagenet, noise: 0.5, motion_blur: 0.3, ..base.clone() };
    let images: Vec<Image> = (0..12).map(|seed| noise(30, 26, 3, seed)).collect();
    let draw = |(image, number): (_, u64)| {
        let config = if number % 2 == 0 { &base } else { &learned };
        (image, config.draw(Key { seed: 8, epoch: 0, image: number, view: 0 }, 30, 26))
    };
    let views: Vec<_> = images.iter().zip(0..).map(draw).collect();
    assert!(views.iter().any(|(_, params)| !params.policy.is_empty() && params.noise.is_some()));
    let batch = by_kernels(&views, &base, 24);
    for (at, (image, params)) in views.iter().enumerate() {
        assert_eq!(by_kernel(image, params, &base, 24), batch[at], "view {at}");
        if at % 2 == 0 {
            let mut alone = deferred(&[(image, params.clone())], &base, 24);
            (alone.method.policies, alone.method.filters, alone.method.noise) = (false, false, false);
            assert_eq!(views_of(&alone), batch[at], "view {at} without the kernels");
        }
    }
}

/// The error of a view with parameters changed by `change`.
fn refusal(change: impl Fn(&mut ViewParams)) -> Option<String> {
    let image = picture(8, 8, 3);
    let mut params = plain(&image);
    change(&mut params);
    let deferred = deferred(&[(&image, params)], &AugmentConfig::nothing(), 8);
    upload_deferred(&deferred, Device::Cpu).err().map(|error| error.to_string())
}

#[test]
fn operations_that_no_policy_has_are_refused() {
    let step = |magnitude| PolicyStep { operation: Color, magnitude };
    assert_eq!(refusal(|params| params.policy = vec![step(0.1); 2]), None);
    for policy in [vec![step(0.1); 3], vec![step(f32::NAN)], vec![step(f32::INFINITY)]] {
        let error = refusal(|params| params.policy.clone_from(&policy)).unwrap();
        assert!(error.contains("augmentation parameters out of range"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Before jitter, grayscale, blurs, Sobel, noise and cutout.
    #[test]
    fn policies_with_other_operators_agree(side in 8usize..40, channels in prop::sample::select(vec![1usize, 3, 4]),
                                           imagenet in any::<bool>(), antialias in any::<bool>(), seed in any::<u64>()) {
        let image = noise(side, side, channels, seed);
        let config = AugmentConfig {
            policy: POLICIES[usize::from(imagenet)], antialias, crop: false, rotate: 0.5, motion_blur: 0.3, sobel: 0.2,
            noise: 0.5, cutout: 0.3, ..AugmentConfig::default()
        };
        let params = config.draw(Key { seed, epoch: 0, image: 1, view: 0 }, side, side);
        let (found, expected) = by_both(&image, &params, &config, side);
        let worst = max_difference(&found, &expected);
        prop_assert!(worst <= 4.0 * REORDERING, "off by {worst}: {params:?}");
    }
}

/// Between flips and the colour jitter, of three channels.
#[test]
pub(crate) fn a_view_of_many_operators_agrees_with_the_cpu() {
    let image = noise(48, 48, 3, 3);
    let steps = vec![
        PolicyStep { operation: Equalize, magnitude: 0.0 },
        PolicyStep { operation: Rotate, magnitude: -30.0 },
    ];
    let params = ViewParams {
        flip: true,
        quarter_turns: 3,
        policy: steps,
        jitter: vec![
            Jitter::Hue(0.1),
            Jitter::Contrast(0.6),
            Jitter::Brightness(0.8),
            Jitter::Saturation(1.5),
        ],
        blur: Some(1.2),
        motion_blur: Some(MotionBlur { length: 6.0, degrees: 30.0 }),
        ..plain(&image)
    };
    let (found, expected) = by_both(&image, &params, &AugmentConfig::nothing(), 48);
    let worst = max_difference(&found, &expected);
    assert!(worst <= REORDERING, "off by {worst}");
}
