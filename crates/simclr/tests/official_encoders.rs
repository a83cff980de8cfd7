//! ResNet-D, selective kernels and depths against the official TF2 code (`reference/official_encoders.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::PathBuf};

use simclr::{
    data::rng::Key,
    device::Precision,
    encoder::{Encoder, EncoderConfig, EncoderName, Mode, Padding, ResnetD, Shortcut},
    params::Params,
};
use tch::{Device, Kind, Tensor};

#[path = "fixtures/hashed.rs"]
mod hashed;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// The network of the official code for `depth` and its flag `sk_ratio`, which leaves basic blocks without selective kernels.
fn official(depth: u32, sk: bool) -> EncoderConfig {
    let name = match depth {
        18 => EncoderName::Resnet18,
        34 => EncoderName::Resnet34,
        50 => EncoderName::Resnet50,
        101 => EncoderName::Resnet101,
        152 => EncoderName::Resnet152,
        _ => EncoderName::Resnet200,
    };
    EncoderConfig {
        name,
        padding: Padding::Same,
        shortcut: Shortcut::Projection,
        sk_ratio: if sk && depth >= 50 { 0.0625 } else { 0.0 },
        resnet_d: if sk { ResnetD::Official } else { ResnetD::Off },
        ..EncoderConfig::default()
    }
}

fn build(config: &EncoderConfig, size: i64) -> (Encoder, Params) {
    let mut params = Params::new(Device::Cpu, 0);
    let encoder = Encoder::new(config, 3, size, &mut params).unwrap();
    (encoder, params)
}

fn small(config: EncoderConfig) -> EncoderConfig {
    EncoderConfig { width: 1.0 / 16.0, ..config }
}

/// Largest difference over the largest value.
fn worst(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

#[test]
fn h_equals_that_of_the_official_code() {
    let golden: BTreeMap<String, Tensor> =
        Tensor::read_safetensors(golden("official_encoders.safetensors")).unwrap().into_iter().collect();
    for (name, depth, sk, size) in [
        ("r18", 18, false, 75),
        ("r18-d", 18, true, 75),
        ("r18-d-cifar", 18, true, 32),
        ("r50", 50, false, 75),
        ("r50-sk", 50, true, 75),
        ("r50-sk-cifar", 50, true, 32),
    ] {
        let (encoder, params) = build(&small(official(depth, sk)), size);
        hashed::assign(&params);
        let images = hashed::images(8, size);
        for (mode, what) in [(Mode::Eval, "eval"), (Mode::train(), "train")] {
            let h = encoder.forward(&images, &mode, Precision::F32).unwrap();
            let off = worst(&h, &golden[&format!("{name}.{what}")]);
            assert!(off < 1e-4, "{name}, {what}: {off:e}");
        }
    }
}

/// Trainable parameters from the shapes of the convolutions; each has a batch norm, except the layer that selects.
fn formula(depth: u32, base: i64, sk: bool) -> i64 {
    let conv = |input: i64, output: i64, side: i64| input * output * side * side + 2 * output;
    let streams = |width: i64| {
        let middle = (width / 16).max(32);
        conv(width, 2 * width, 3) + conv(width, middle, 1) + middle * 2 * width
    };
    let half = base / 2;
    let stem =
        if sk { conv(3, half, 3) + conv(half, half, 3) + conv(half, base, 3) } else { conv(3, base, 7) };
    let blocks = match depth {
        18 => [2, 2, 2, 2],
        34 | 50 => [3, 4, 6, 3],
        101 => [3, 4, 23, 3],
        152 => [3, 8, 36, 3],
        _ => [3, 24, 36, 3],
    };
    let (mut count, mut input) = (stem, base);
    for (group, blocks) in blocks.into_iter().enumerate() {
        let width = base << group;
        let output = if depth < 50 { width } else { 4 * width };
        count += conv(input, output, 1);
        for _ in 0..blocks {
            count += match (depth < 50, sk) {
                (true, _) => conv(input, width, 3) + conv(width, width, 3),
                (false, true) => conv(input, width, 1) + streams(width) + conv(width, output, 1),
                (false, false) => conv(input, width, 1) + conv(width, width, 3) + conv(width, output, 1),
            };
            input = output;
        }
    }
    count
}

fn trainable(params: &Params) -> i64 {
    params.params().iter().map(|param| param.tensor.numel() as i64).sum()
}

/// The networks built here are those of the formula at small widths, and the formula gives the official counts at widths 1 to 3.
#[test]
fn parameter_counts_are_the_official_ones() {
    for depth in [18, 34, 50, 101, 152, 200] {
        for (width, sk) in [(4, false), (8, true), (16, false), (16, true)] {
            let config = EncoderConfig { width: f64::from(width) / 64.0, ..official(depth, sk) };
            let expected = formula(depth, i64::from(width), sk);
            assert_eq!(trainable(&build(&config, 64).1), expected, "{depth} {width} {sk}");
        }
    }
    let text = fs_err::read_to_string(golden("official_counts.json")).unwrap();
    let counts: BTreeMap<String, i64> = serde_json::from_str(&text).unwrap();
    assert_eq!(counts.len(), 36);
    for (key, count) in counts {
        let parts: Vec<&str> = key.split(' ').collect();
        let (depth, width) = (parts[0].parse().unwrap(), parts[1].parse::<i64>().unwrap());
        assert_eq!(formula(depth, 64 * width, parts[2] == "sk"), count, "{key}");
    }
}

/// Millions of values with the running statistics, as in the table of google-research/simclr's README.
#[test]
fn the_table_of_simclr_v2_has_these_sizes() {
    for (depth, sk, millions) in [(50, false, 24), (50, true, 35), (101, false, 43), (101, true, 65)] {
        let (_, params) = build(&official(depth, sk), 224);
        let statistics: i64 = params.buffers().iter().map(|(_, buffer)| buffer.numel() as i64).sum();
        let count = trainable(&params) + statistics;
        assert_eq!((count + 500_000) / 1_000_000, millions, "{depth} {sk}: {count}");
    }
}

/// In a basic block the first convolution, which has the stride, becomes the selective one; the shortcut sees the block's input.
#[test]
fn basic_blocks_have_selective_kernels() {
    let config = EncoderConfig {
        name: EncoderName::Resnet18,
        sk_ratio: 0.5,
        width: 2.0,
        zero_gamma: false,
        resnet_d: ResnetD::Off,
        ..EncoderConfig::default()
    };
    let (encoder, params) = build(&config, 32);
    let shape = |name: &str| {
        let name = format!("encoder.layer2.0.{name}.weight");
        params.named().find(|(found, _)| **found == name).map(|(_, tensor)| tensor.size())
    };
    assert_eq!(shape("conv1.conv"), Some(vec![512, 128, 3, 3]));
    assert_eq!(shape("conv1.reduce"), Some(vec![128, 256, 1, 1]));
    assert_eq!(shape("conv1.select"), Some(vec![512, 128, 1, 1]));
    assert_eq!(shape("conv2"), Some(vec![256, 256, 3, 3]));
    assert_eq!(shape("bn1"), None);
    let h = encoder.forward(&hashed::images(4, 32), &Mode::train(), Precision::F32).unwrap();
    h.sum(Kind::Float).backward();
    let without = |param: &&simclr::params::Param| param.tensor.grad().abs().max().double_value(&[]) == 0.0;
    assert_eq!(
        params.params().iter().filter(without).map(|param| &param.name[..]).collect::<Vec<_>>(),
        [""; 0]
    );
}

/// Equal selection logits average the streams, very different ones take one of them: the block of one convolution follows.
#[test]
fn selection_mixes_the_streams() {
    let config = small(official(50, true));
    let (encoder, params) = build(&config, 64);
    hashed::assign(&params);
    let find = |name: &str| params.named().find(|(found, _)| *found == name).unwrap().1.shallow_clone();
    let place = "encoder.layer1.0.conv2";
    let images = hashed::images(2, 64);
    let h = || encoder.forward(&images, &Mode::Eval, Precision::F32).unwrap();
    // With equal weights of both streams the selection has no effect.
    let _guard = tch::no_grad_guard();
    for name in ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"] {
        let tensor = find(&format!("{place}.{name}"));
        let half = tensor.size()[0] / 2;
        tensor.narrow(0, half, half).copy_(&tensor.narrow(0, 0, half));
    }
    let equal = h();
    let mut select = find(&format!("{place}.select.weight"));
    let draws = Key::weights(0, 0).stream().normals(select.numel());
    select.copy_(&(Tensor::from_slice(&draws).view_as(&select) * 20.0));
    assert!(worst(&h(), &equal) < 1e-5);
    let kernel = find(&format!("{place}.conv.weight"));
    let _ = kernel.narrow(0, 0, kernel.size()[0] / 2).neg_();
    let difference = worst(&h(), &equal);
    assert!(difference > 1e-3, "unequal streams are selected from: {difference}");
}

/// timm's `resnet50d` has its names and pools only where the stride is 2.
#[test]
fn timms_variant_differs_from_the_official_one() {
    let features = |resnet_d, size: i64| {
        let (encoder, params) = build(&small(EncoderConfig { resnet_d, ..official(50, false) }), size);
        hashed::assign(&params);
        let names: Vec<String> = params.named().map(|(name, _)| name.to_owned()).collect();
        for name in ["conv1.0.weight", "conv1.4.running_var", "bn1.weight", "layer1.0.downsample.2.bias"] {
            assert!(names.contains(&format!("encoder.{name}")), "{name}");
        }
        encoder.forward(&hashed::images(2, size), &Mode::Eval, Precision::F32).unwrap()
    };
    assert!(worst(&features(ResnetD::Timm, 64), &features(ResnetD::Official, 64)) > 1e-3);
}

/// bf16 on channels-last tensors, stage by stage, stays near f32.
#[test]
fn bf16_follows_f32_stage_by_stage() {
    for config in [official(50, true), EncoderConfig { sk_ratio: 0.0625, ..official(18, true) }] {
        let (encoder, params) = build(&small(config), 64);
        hashed::assign(&params);
        let clone = encoder.shallow_clone().unwrap();
        let mut exact = hashed::images(8, 64);
        for index in 0..encoder.stages() {
            let x = clone.stage(index, &exact, &Mode::train(), Precision::Bf16).unwrap();
            exact = encoder.stage(index, &exact, &Mode::train(), Precision::F32).unwrap();
            assert_eq!(x.size(), exact.size());
            if index + 1 < encoder.stages() {
                assert_eq!(x.kind(), Kind::BFloat16);
                assert_eq!(x.stride()[1], 1, "stage {index} is channels-last");
            }
            let off = (&x - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
            assert!(off < 0.02, "stage {index}: {off}");
        }
    }
}
