//! h of a ResNet-50 on JPEGs, from the file to the feature, against the official code (`reference/official_features.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::PathBuf};

use simclr::{
    RunConfig,
    data::{Dataset, Split, dataset::Channels, decode::Jpeg},
    eval::features::{FrozenEncoder, ReadOptions, features},
};
use tch::{Kind, Tensor};

/// Columns of h that the golden holds.
const EVERY: i64 = 8;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn goldens() -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(golden().join("official_features.safetensors")).unwrap().into_iter().collect()
}

fn jpegs(decoder: Jpeg) -> Dataset {
    Dataset::open(&golden().join("jpeg"), Split::Train, Channels::Count(3)).unwrap().decoded_by(decoder)
}

/// PyTorch's names of convolution and batch norm, in the order of the official layers' numbers.
fn layers() -> Vec<(String, String)> {
    let mut found = vec![("conv1".to_owned(), "bn1".to_owned())];
    for (group, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        for block in 0..blocks {
            let place = format!("layer{}.{block}.", group + 1);
            if block == 0 {
                found.push((format!("{place}downsample.0"), format!("{place}downsample.1")));
            }
            found.extend((1..=3).map(|at| (format!("{place}conv{at}"), format!("{place}bn{at}"))));
        }
    }
    found
}

/// `uniform` of the reference script.
fn uniform(k: u32, i: u32) -> f64 {
    let mut h = i.wrapping_mul(2_654_435_761).wrapping_add(k.wrapping_mul(2_246_822_519)).wrapping_add(1);
    for (shift, factor) in [(16, 2_146_121_005), (15, 2_221_713_035)] {
        h = (h ^ (h >> shift)).wrapping_mul(factor);
    }
    f64::from(h ^ (h >> 16)) / 4_294_967_296.0
}

/// `weights` of the reference script.
fn weights(k: u32, kind: &str, shape: &[i64]) -> Tensor {
    let (low, high) = match kind {
        "weight" if shape.len() == 4 => {
            let bound = (6.0 / shape[1..].iter().product::<i64>() as f64).sqrt();
            (-bound, bound)
        }
        "weight" => (0.5, 1.0),
        "running_var" => (0.5, 1.5),
        _ => (-0.2, 0.2),
    };
    let value = |i: i64| (low + (high - low) * uniform(k, i as u32)) as f32;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_slice(&values).view(shape)
}

/// The encoder of the reference script, and how it reads images: the official crop and resize.
fn encoder(size: usize) -> FrozenEncoder {
    let overrides = [
        "encoder.name='resnet50'".to_owned(),
        "encoder.padding='same'".into(),
        format!("train.image_size={size}"),
        "train.device='cpu'".into(),
        "transform.crop=0.875".into(),
        "transform.antialias=false".into(),
    ];
    let config = RunConfig::load(None, &overrides).unwrap();
    let frozen = FrozenEncoder::random_init(&config, 3, 0).unwrap();
    let named: BTreeMap<&str, &Tensor> = frozen.model().params.named().collect();
    let mut given = 0;
    for (at, (convolution, norm)) in layers().iter().enumerate() {
        let parameters = [
            (convolution, "weight"),
            (norm, "weight"),
            (norm, "bias"),
            (norm, "running_mean"),
            (norm, "running_var"),
        ];
        for (offset, (layer, kind)) in parameters.into_iter().enumerate() {
            let target = named[&format!("encoder.{layer}.{kind}")[..]];
            let value = weights((5 * at + offset) as u32, kind, &target.size());
            tch::no_grad(|| target.shallow_clone().copy_(&value));
            given += 1;
        }
    }
    assert_eq!(given, named.keys().filter(|name| name.starts_with("encoder.")).count());
    frozen
}

/// Largest difference to the golden over the largest value.
fn worst(h: &Tensor, golden: &Tensor) -> f64 {
    let columns = h.slice(1, 0, None, EVERY);
    assert_eq!(columns.size(), golden.size());
    let difference = (columns - golden).abs().max().double_value(&[]);
    difference / golden.abs().max().to_kind(Kind::Double).double_value(&[])
}

/// From the file to h, with TensorFlow's decoder, its accurate one and this project's own.
#[test]
fn features_of_jpegs_equal_the_official_pipelines() {
    let goldens = goldens();
    let decoders = [(Jpeg::LibjpegFast, "default"), (Jpeg::Libjpeg, "accurate"), (Jpeg::Zune, "own")];
    for (name, size) in [("imagenet_stem", 64), ("cifar_stem", 32)] {
        let frozen = encoder(size);
        let read = ReadOptions::of(&frozen, 20, 1);
        for (decoder, golden) in decoders {
            let set = jpegs(decoder);
            let all: Vec<usize> = (0..set.len()).collect();
            assert_eq!(all.len(), 20);
            let h = features(&frozen, &set, &all, &read, &mut |_, _| {}).unwrap().features.remove(0);
            let off = |how: &str| worst(&h, &goldens[&format!("{name}.{how}")]);
            assert!(off(golden) < 1e-4, "{name}, {decoder:?}: {}", off(golden));
            // The decoders differ by less than this, and by enough that the right one is seen.
            let other = if golden == "default" { "accurate" } else { "default" };
            assert!(
                (5e-4..6e-3).contains(&off(other)),
                "{name}, {decoder:?} against {other}: {}",
                off(other)
            );
        }
    }
}

#[test]
fn jpegs_decode_within_levels_of_tensorflow() {
    let (goldens, set, exact) = (goldens(), jpegs(Jpeg::Zune), jpegs(Jpeg::Libjpeg));
    let mut differences = Vec::new();
    for index in 0..set.len() {
        let expected = Vec::<u8>::try_from(&goldens[&format!("pixels.{index:02}")]).unwrap();
        let every = |set: &Dataset| set.decode(index).unwrap().data.iter().copied().step_by(97).collect();
        let (found, equal): (Vec<u8>, Vec<u8>) = (every(&set), every(&exact));
        assert_eq!(equal, expected, "image {index}");
        assert_eq!(found.len(), expected.len());
        differences.extend(found.iter().zip(&expected).map(|(a, b)| f64::from(a.abs_diff(*b))));
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let worst = differences.iter().copied().fold(0.0, f64::max);
    assert!(mean < 0.25 && worst <= 4.0, "{worst} levels at most, {mean} on average");
}
