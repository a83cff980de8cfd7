//! Initial weights of other programs against torchvision, timm and torch.save (reference/initial_weights.py).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "fixtures/hashed.rs"]
mod hashed;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde_json::Value;
use simclr::{
    RunConfig,
    device::Precision,
    encoder::Mode,
    model::Model,
    weights::{Fitted, Source, read},
};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn config(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    RunConfig::load(None, &overrides).unwrap()
}

fn model(config: &RunConfig, channels: i64) -> Model {
    let shape = (channels, config.train.image_size as i64);
    Model::new(&config.encoder, &config.head, shape, 1, Device::Cpu, Precision::F32).unwrap()
}

/// A file with hashed weights of the encoder of `config`, as torchvision and timm save them, with `more`.
fn write(file: &Path, config: &RunConfig, prefix: &str, more: &[(&str, Tensor)]) {
    let model = model(config, 3);
    hashed::assign(&model.params);
    let encoder = model.params.named().filter(|(name, _)| name.starts_with("encoder."));
    let tensors = encoder.map(|(name, tensor)| (name.replacen("encoder.", prefix, 1), tensor.contiguous()));
    let more = more.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone()));
    Tensor::write_safetensors(&tensors.chain(more).collect::<Vec<_>>(), file).unwrap();
}

/// The model that the keys of `source` describe, with `overrides`, and what was loaded into it.
fn loaded(source: &Source, channels: i64, overrides: &[&str]) -> (Model, RunConfig, Fitted) {
    let (keys, _) = source.keys(channels as usize);
    let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let all: Vec<&str> = keys.iter().map(String::as_str).chain(overrides.iter().copied()).collect();
    let config = config(&all);
    let model = model(&config, channels);
    let fitted = source.load_into(&model).unwrap();
    (model, config, fitted)
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn features_equal_those_of_torchvision_and_timm() {
    tch::set_num_threads(2);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let expected: HashMap<String, Tensor> =
        Tensor::read_safetensors(golden("initial_weights.safetensors")).unwrap().into_iter().collect();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for (name, prefix, size, golden) in [
        ("resnet18", "", 64, "resnet18"),
        ("resnet50", "module.encoder_q.", 64, "resnet50"),
        ("vit-small", "backbone.", 64, "vit-small"),
        ("vit-small", "", 96, "vit-small 96 px"),
    ] {
        let stored = config(&[&format!("encoder.name={name}"), "train.image_size=64"]);
        let more = [("fc.weight", zeros(&[2, 2])), ("module.encoder_k.conv1.weight", zeros(&[64, 3, 7, 7]))];
        write(&file, &stored, prefix, &more);
        let source = Source::open(&file).unwrap();
        let (model, config, fitted) = loaded(&source, 3, &[&format!("train.image_size={size}")]);
        assert_eq!(config.encoder.name.as_str(), name);
        let images = hashed::images(2, size);
        let h = model.encoder.forward(&images, &Mode::Eval, Precision::F32).unwrap();
        let expected = &expected[golden];
        let found = difference(&h, expected);
        assert!(expected.std(true).double_value(&[]) > 0.1 && found < 1e-4, "{golden}: {found}");
        assert_eq!(fitted.left_out, ["fc.weight", "module.encoder_k.conv1.weight"]);
        assert!(fitted.fresh.iter().all(|name| name.starts_with("head.")), "{fitted}");
        assert_eq!(fitted.notes.len(), usize::from(size == 96), "{fitted}");
    }
}

#[test]
fn files_of_torch_save_hold_the_tensors_that_pytorch_saved() {
    let expected = Tensor::read_safetensors(golden("torch/tensors.safetensors")).unwrap();
    assert_eq!(expected.len(), 12);
    for name in ["zip.pth", "sequence.pth"] {
        let found = read(&golden("torch").join(name)).unwrap();
        assert_eq!(found.names().count(), expected.len(), "{name}");
        for (key, tensor) in &expected {
            let stored = found.get(key).unwrap_or_else(|| panic!("{name}: no {key}"));
            assert_eq!((stored.kind(), stored.size()), (tensor.kind(), tensor.size()), "{key}");
            assert!(stored.equal(tensor), "{name}: {key}");
        }
    }
}

#[test]
fn objects_and_calls_are_refused_by_name() {
    for (name, what) in [("namespace.pth", "`argparse.Namespace`"), ("system.pth", "`posix.system`")] {
        let error = read(&golden("torch").join(name)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let script = read(&golden("script.pt")).unwrap_err().to_string();
    assert!(script.contains("TorchScript") && script.contains("encoder.file"), "{script}");
}

/// A pickle (protocol 2) of `opcodes`.
fn pickle(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x02", opcodes, b"."].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A file of PyTorch before 1.6 with the object that `contents` make, and one storage without elements if there is a tensor.
fn legacy_file(contents: &[u8], has_tensor: bool) -> Vec<u8> {
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let keys = if has_tensor { [b"]", &text("0")[..], b"a"].concat() } else { b"]".to_vec() };
    let storage = if has_tensor { &[0; 8][..] } else { &[] };
    let pickles = [pickle(magic), pickle(b"M\xe9\x03"), pickle(b"}"), pickle(contents), pickle(&keys)];
    [&pickles.concat()[..], storage].concat()
}

/// Names are no longer than a few times the file: a long key is refused, and one that many values refer to.
#[test]
fn small_files_of_long_names_are_refused() {
    let path = Path::new("names.pth");
    let holding = |key: &str, value: &[u8]| legacy_file(&[b"}", &text(key)[..], value, b"s"].concat(), false);
    let small = holding("key", b"}");
    assert_eq!(simclr::weights::parse(path, &small).unwrap().names().count(), 0);
    let error = simclr::weights::parse(path, &holding(&"k".repeat(2000), b"}")).unwrap_err().to_string();
    assert!(error.contains("a key of 2000 bytes, expected at most 1024"), "{error}");
    let many = [b"](", &[b'}'; 20_000][..], b"e"].concat();
    let error = simclr::weights::parse(path, &holding(&"k".repeat(1000), &many)).unwrap_err().to_string();
    assert!(error.contains("names are far longer than the file"), "{error}");
}

/// A tensor of the shape [0, 2^62, 2^62], the strides of which no i64 holds.
#[test]
fn empty_tensors_with_large_dimensions_are_refused() {
    let large = [&b"\x8a\x08"[..], &(1i64 << 62).to_le_bytes()].concat();
    let storage = [
        b"((",
        &text("storage")[..],
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x00tQK\x00(K\x00",
    ];
    let tensor = [
        &b"ctorch._utils\n_rebuild_tensor_v2\n"[..],
        &storage.concat(),
        &large,
        &large,
        b"t(K\x01K\x01K\x01t\x89ccollections\nOrderedDict\n)RtR",
    ];
    let contents = [b"}", &text("w")[..], &tensor.concat(), b"s"].concat();
    let error = simclr::weights::parse(Path::new("empty.pth"), &legacy_file(&contents, true)).unwrap_err();
    assert!(error.to_string().contains("tensor `w` does not fit into its storage"), "{error}");
}

/// No prefix of a file and no changed byte makes the reader panic or take more memory than the file has bytes.
#[test]
fn damaged_files_are_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.pth");
    for name in ["zip.pth", "sequence.pth"] {
        let whole = fs_err::read(golden("torch").join(name)).unwrap();
        for length in (0..whole.len()).step_by(7) {
            fs_err::write(&file, &whole[..length]).unwrap();
            assert!(read(&file).is_err(), "{name}: {length} of {} bytes", whole.len());
        }
        for at in (0..whole.len()).step_by(3) {
            for flip in [0x01, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                fs_err::write(&file, &bytes).unwrap();
                let _ = read(&file);
            }
        }
    }
}

/// timm's `adapt_input_conv`: the sum for grey images, the channels in turn for others.
#[test]
fn the_first_convolution_fits_other_channel_counts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let narrow = ["encoder.name=resnet18", "encoder.width=0.125", "train.image_size=48"];
    write(&file, &config(&narrow), "", &[]);
    let source = Source::open(&file).unwrap();
    let kernel = |channels: i64| {
        let (model, config, fitted) = loaded(&source, channels, &["train.image_size=48"]);
        assert_eq!(fitted.notes.len(), usize::from(channels != 3), "{fitted}");
        let kernel = model.params.named().find(|(name, _)| *name == "encoder.conv1.weight").unwrap().1;
        (kernel.copy(), config.encoder.input_mean)
    };
    let (rgb, mean) = kernel(3);
    assert_eq!(mean, [0.485, 0.456, 0.406]);
    let (grey, mean) = kernel(1);
    assert!(difference(&grey, &rgb.sum_dim_intlist([1i64].as_slice(), true, Kind::Float)) < 1e-6);
    assert!((mean[0] - (0.485 + 0.456 + 0.406) / 3.0).abs() < 1e-12);
    let (bands, mean) = kernel(13);
    assert_eq!((mean.len(), mean[12]), (13, 0.485));
    for band in 0..13 {
        let expected = rgb.select(1, band % 3) * (3.0 / 13.0);
        assert!(difference(&bands.select(1, band), &expected) < 1e-6, "{band}");
    }
}

#[test]
fn weights_of_another_network_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    write(&file, &config(&["encoder.name=resnet18", "train.image_size=48"]), "", &[]);
    let source = Source::open(&file).unwrap();
    for (name, what) in [("resnet50", "layer1.0.conv1.weight"), ("conv-c3", "conv1.weight")] {
        let other = model(&config(&[&format!("encoder.name={name}"), "train.image_size=48"]), 3);
        let before: Vec<Tensor> = other.params.named().map(|(_, tensor)| tensor.copy()).collect();
        let error = source.load_into(&other).unwrap_err().to_string();
        assert!(error.contains("expected at least half") && error.contains(what), "{error}");
        let unchanged = other.params.named().zip(&before).all(|((_, tensor), before)| tensor.equal(before));
        assert!(unchanged, "{name}");
    }
    Tensor::write_safetensors(&[("x", Tensor::from(1.0f32))], &file).unwrap();
    let small = model(&config(&["encoder.name=conv-c3", "train.image_size=16"]), 3);
    assert!(Source::open(&file).unwrap().load_into(&small).is_err());
}

/// A folder of the Hugging Face hub: statistics of its config.json.
#[test]
fn statistics_are_those_next_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &config(&["encoder.name=resnet18", "encoder.width=0.125", "train.image_size=48"]), "", &[]);
    let stated = r#"{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
    fs_err::write(folder.path().join("config.json"), stated).unwrap();
    assert_eq!(simclr::weights::file_of(folder.path()).unwrap(), file);
    let (keys, source) = Source::open(&file).unwrap().keys(3);
    let value = |key: &str| keys.iter().find(|(found, _)| found == key).unwrap().1.clone();
    assert_eq!(value("encoder.input_std"), Value::from(vec![0.25; 3]));
    assert_eq!((value("encoder.width"), source), (Value::from(0.125), "config.json"));
    assert!(simclr::weights::file_of(&folder.path().join("..")).is_err());
}

/// Tensors as `save_pretrained` of Hugging Face's transformers names them (reference/transformers_weights.py).
#[test]
fn features_equal_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let golden: Value = serde_json::from_slice(&fs_err::read(golden("transformers.json")).unwrap()).unwrap();
    for (name, network) in golden.as_object().unwrap() {
        let tensors: Vec<(String, Vec<i64>)> = serde_json::from_value(network["tensors"].clone()).unwrap();
        let tensors: Vec<(String, Tensor)> =
            tensors.into_iter().map(|(name, shape)| (name.clone(), hashed::values(&name, &shape))).collect();
        Tensor::write_safetensors(&tensors, &file).unwrap();
        let source = Source::open(&file).unwrap();
        let (model, config, fitted) = loaded(&source, 3, &["train.image_size=32"]);
        assert_eq!(config.encoder.name.as_str(), name);
        assert!(fitted.fresh.iter().all(|name| name.starts_with("head.")), "{fitted}");
        assert!(fitted.left_out.iter().all(|name| name.starts_with("classifier.")), "{fitted}");
        let h = model.encoder.forward(&hashed::images(2, 32), &Mode::Eval, Precision::F32).unwrap();
        let expected: Vec<Vec<f32>> = serde_json::from_value(network["h"].clone()).unwrap();
        let expected = Tensor::from_slice(&expected.concat()).view([2, -1]);
        assert!(difference(&h, &expected) < 1e-4, "{name}: {}", difference(&h, &expected));
    }
}

/// A header of 640 bytes starts with 0x80 0x02, as a pickle does.
#[test]
fn safetensors_are_recognised_whatever_the_length_of_their_header() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let header =
        format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}{}", " ".repeat(640));
    let header = header[..640].to_owned();
    let bytes = [&640u64.to_le_bytes()[..], header.as_bytes(), &1.5f32.to_le_bytes()].concat();
    fs_err::write(&file, bytes).unwrap();
    assert_eq!(read(&file).unwrap().get("x").unwrap().double_value(&[0]), 1.5);
}
