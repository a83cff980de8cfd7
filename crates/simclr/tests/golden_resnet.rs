//! ResNets against torchvision's names and shapes (`reference/resnet.py`), and what the encoder's options change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::Value;
use simclr::{
    device::Precision,
    encoder::{Encoder, EncoderConfig, EncoderName, Mode, Shortcut, Stem},
    params::Params,
};
use simclr_shim::operations;
use tch::{Device, Kind, Tensor};

const RESNETS: [(&str, EncoderName); 5] = [
    ("resnet18", EncoderName::Resnet18),
    ("resnet34", EncoderName::Resnet34),
    ("resnet50", EncoderName::Resnet50),
    ("resnet101", EncoderName::Resnet101),
    ("resnet152", EncoderName::Resnet152),
];

fn build(config: &EncoderConfig, channels: i64, size: i64) -> (Encoder, Params) {
    let mut params = Params::new(Device::Cpu, 0);
    let encoder = Encoder::new(config, channels, size, &mut params).unwrap();
    (encoder, params)
}

fn shape(params: &Params, name: &str) -> Vec<i64> {
    params.named().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1.size()
}

fn names_and_shapes<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Vec<(String, Vec<i64>)> {
    let stripped = |name: &str| name.strip_prefix("encoder.").expect("below `encoder.`").to_owned();
    tensors.map(|(name, tensor)| (stripped(name), tensor.size())).collect()
}

#[test]
fn names_shapes_and_order_are_torchvisions() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torchvision_names.json");
    let golden: Value = serde_json::from_str(&fs_err::read_to_string(file).unwrap()).unwrap();
    for (name, encoder) in RESNETS {
        let (_, params) = build(&EncoderConfig { name: encoder, ..EncoderConfig::default() }, 3, 224);
        let expected = |what: &str| -> Vec<(String, Vec<i64>)> {
            serde_json::from_value(golden[name][what].clone()).unwrap()
        };
        let parameters = params.params().iter().map(|param| (param.name.as_str(), &param.tensor));
        assert_eq!(names_and_shapes(parameters), expected("parameters"), "{name}");
        let buffers = params.buffers().iter().map(|(name, buffer)| (name.as_str(), buffer));
        assert_eq!(names_and_shapes(buffers), expected("buffers"), "{name}");
    }
}

/// Paper 2002.05709, section 4.1: all widths are multiplied, the stem's too.
#[test]
fn the_width_multiplier_multiplies_every_layer() {
    for (name, width, features) in [
        (EncoderName::Resnet18, 0.25, 128),
        (EncoderName::Resnet18, 2.0, 1024),
        (EncoderName::Resnet50, 0.25, 512),
    ] {
        let (encoder, params) = build(&EncoderConfig { name, width, ..EncoderConfig::default() }, 3, 64);
        let base = (64.0 * width) as i64;
        assert_eq!(encoder.feature_dim(), features);
        assert_eq!(shape(&params, "encoder.conv1.weight"), [base, 3, 7, 7]);
        let inner = shape(&params, "encoder.layer4.0.conv2.weight");
        assert_eq!(inner, [8 * base, 8 * base, 3, 3]);
        let images = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
        let h = encoder.forward(&images, &Mode::train(), Precision::F32).unwrap();
        assert_eq!((h.size(), h.kind()), (vec![2, features], Kind::Float));
    }
}

/// google-research/simclr `resnet.py`: the small stem up to 32 px; a named stem wins over the size. One-channel images.
#[test]
fn the_stem_goes_by_size_unless_it_is_named() {
    for (stem, size, kernel) in
        [(Stem::Auto, 32, 3), (Stem::Auto, 33, 7), (Stem::Imagenet, 32, 7), (Stem::Cifar, 64, 3)]
    {
        let config =
            EncoderConfig { name: EncoderName::Resnet18, width: 0.125, stem, ..EncoderConfig::default() };
        let (encoder, params) = build(&config, 1, size);
        assert_eq!(shape(&params, "encoder.conv1.weight"), [8, 1, kernel, kernel], "{stem:?} {size}");
        let images = Tensor::rand([2, 1, size, size], (Kind::Float, Device::Cpu));
        let h = encoder.forward(&images, &Mode::train(), Precision::F32).unwrap();
        assert_eq!(h.size(), [2, 64], "{stem:?} {size}");
    }
}

/// The official ResNet-18 and -34 project in the first block of group 1, too: a 1x1 convolution and its batch norm, 4,224 parameters
/// in ResNet-18. Bottleneck nets are the same either way.
#[test]
fn the_projection_shortcut_of_basic_blocks_is_an_option() {
    let count = |name, shortcut| {
        let (encoder, params) = build(&EncoderConfig { name, shortcut, ..EncoderConfig::default() }, 3, 32);
        let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let h = encoder.forward(&images, &Mode::train(), Precision::F32).unwrap();
        assert_eq!(h.size(), [2, encoder.feature_dim()]);
        params.params().iter().map(|param| param.tensor.numel()).sum::<usize>()
    };
    for (name, more) in
        [(EncoderName::Resnet18, 4224), (EncoderName::Resnet34, 4224), (EncoderName::Resnet50, 0)]
    {
        let (identity, projection) = (count(name, Shortcut::Identity), count(name, Shortcut::Projection));
        assert_eq!(projection - identity, more, "{name:?}");
    }
}

/// The input of a block has two consumers. The batch norm that it comes from sums their gradients; the stem has no such batch norm.
#[test]
fn gradients_at_the_inputs_of_blocks_are_summed_by_batch_norm() {
    for name in [EncoderName::Resnet18, EncoderName::Resnet50] {
        let (encoder, _params) =
            build(&EncoderConfig { name, width: 0.125, ..EncoderConfig::default() }, 3, 32);
        let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let loss = encoder.forward(&images, &Mode::train(), Precision::F32).unwrap().sum(Kind::Float);
        let (_, backward) = operations(|| loss.backward()).unwrap();
        let sums = backward.iter().filter(|name| ["aten::add", "aten::add_"].contains(&&name[..]));
        assert_eq!(sums.count(), 1, "{name:?}");
    }
}

/// With gamma 0 at the end of each branch, a fresh block is its shortcut; the option can be switched off.
#[test]
fn zero_gamma_is_the_last_norm_of_each_branch_only() {
    let cases = [
        (EncoderName::Resnet18, "layer", "bn2"),
        (EncoderName::Resnet50, "layer", "bn3"),
        (EncoderName::ConvC7, "residual", "bn"),
    ];
    for (name, branch, last) in cases {
        for zero_gamma in [true, false] {
            let config = EncoderConfig { name, zero_gamma, width: 0.125, ..EncoderConfig::default() };
            let (_, params) = build(&config, 3, 32);
            for (name, tensor) in
                params.named().filter(|(name, tensor)| name.ends_with("weight") && tensor.dim() == 1)
            {
                let zero = zero_gamma && name.contains(&format!(".{branch}")) && name.contains(last);
                let expected = if zero { 0.0 } else { tensor.numel() as f64 };
                assert_eq!(
                    tensor.sum(Kind::Double).double_value(&[]),
                    expected,
                    "{name}, zero gamma {zero_gamma}"
                );
            }
        }
    }
}
