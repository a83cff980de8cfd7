//! Exports for timm and as ONNX. `reference/check_exports.py` compares them with timm and onnxruntime.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

#[path = "fixtures/hashed.rs"]
mod hashed;

use std::path::Path;

use serde_json::Value;
use simclr::{
    RunConfig,
    checkpoint::Checkpoint,
    device::Precision,
    eval::features::load_encoder,
    export::{export_onnx, export_timm},
    model::Model,
    train::RunFolder,
};
use tch::{Device, Kind, Tensor};

/// A run of zero steps with hashed weights on images of `channels` channels.
fn run(folder: &Path, channels: i64, overrides: &[&str]) -> RunFolder {
    let overrides: Vec<String> =
        ["train.device=cpu", "head.out=8"].iter().chain(overrides).map(|text| (*text).to_owned()).collect();
    let config = RunConfig::load(None, &overrides).unwrap();
    let shape = (channels, config.train.image_size as i64);
    let model = Model::new(&config.encoder, &config.head, shape, 0, Device::Cpu, Precision::F32).unwrap();
    hashed::assign(&model.params);
    let run = RunFolder::create(folder).unwrap();
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    let plan = serde_json::json!({"channels": channels, "total_steps": 9, "images": 120, "data_fingerprint": "abc123"});
    fs_err::write(run.plan_file(), plan.to_string()).unwrap();
    let mut checkpoint = Checkpoint::default();
    let named = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(named);
    checkpoint.sections.insert("state".into(), serde_json::json!({"step": 9}));
    checkpoint.save(&run.checkpoint_file(9)).unwrap();
    run
}

const STATISTICS: [&str; 2] =
    ["encoder.input_mean=[0.485,0.456,0.406]", "encoder.input_std=[0.229,0.224,0.225]"];

#[test]
fn the_folder_of_timm_states_architecture_and_input() {
    let folder = tempfile::tempdir().unwrap();
    let set =
        [&["encoder.name=resnet18", "train.image_size=64", "transform.crop=0.875"][..], &STATISTICS].concat();
    let trained = run(&folder.path().join("run"), 3, &set);
    let out = folder.path().join("timm");
    let exported = export_timm(&trained, &out, Some("mit")).unwrap();
    assert_eq!((exported.tensors, exported.difference), (120, 0.0));
    let config: Value = serde_json::from_slice(&fs_err::read(out.join("config.json")).unwrap()).unwrap();
    let input = &config["pretrained_cfg"];
    assert_eq!((&config["architecture"], &config["num_features"]), (&"resnet18".into(), &512.into()));
    assert_eq!(input["mean"], serde_json::json!([0.485, 0.456, 0.406]));
    assert_eq!((&input["crop_pct"], &input["crop_mode"]), (&0.875.into(), &"center".into()));
    assert_eq!(input["input_size"], serde_json::json!([3, 64, 64]));
    let card = fs_err::read_to_string(out.join("README.md")).unwrap();
    for part in ["license: mit", "fingerprint abc123", "resnet18", "local-dir", "[encoder]", "120"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    // Again; but no other card or configuration is replaced.
    export_timm(&trained, &out, None).unwrap();
    fs_err::write(out.join("README.md"), "# notes\n").unwrap();
    assert!(export_timm(&trained, &out, None).is_err());

    let vit = ["encoder.name=vit-tiny", "encoder.width=0.5", "train.image_size=32", "encoder.patch=8"];
    let out = folder.path().join("vit-timm");
    export_timm(&run(&folder.path().join("vit"), 13, &vit), &out, None).unwrap();
    let config: Value = serde_json::from_slice(&fs_err::read(out.join("config.json")).unwrap()).unwrap();
    let arguments = serde_json::json!({"in_chans": 13, "img_size": 32, "patch_size": 8, "embed_dim": 96});
    assert_eq!(config["model_args"], arguments);
    assert_eq!(config["pretrained_cfg"]["crop_mode"], "squash");
}

#[test]
fn networks_that_timm_lacks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (at, (set, what)) in [
        (&["encoder.name=conv-c3", "train.image_size=16"][..], "conv-c3"),
        (&["encoder.name=resnet18", "train.image_size=32"], "CIFAR stem"),
        (&["encoder.name=resnet18", "train.image_size=40", "encoder.width=0.25"], "encoder.width"),
        (&["encoder.name=resnet18", "train.image_size=40", "encoder.padding=same"], "encoder.padding"),
        (&["encoder.name=resnet18", "train.image_size=40", "transform.antialias=false"], "antialias"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("timm-{at}"));
        let error = export_timm(&run(&folder.path().join(at.to_string()), 3, set), &out, None).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(!out.exists());
    }
}

const SMALL: &str = "encoder.width=0.125";

#[test]
fn onnx_models_as_read_back_have_the_features_of_the_encoder() {
    tch::set_num_threads(2);
    let folder = tempfile::tempdir().unwrap();
    for (at, (channels, set)) in [
        (3, &["encoder.name=resnet18", "train.image_size=64", STATISTICS[0], STATISTICS[1]][..]),
        (13, &["encoder.name=resnet18", "train.image_size=32", "encoder.width=0.25"]),
        (
            3,
            &[
                "encoder.name=resnet18",
                "train.image_size=49",
                "encoder.padding=same",
                "encoder.shortcut=projection",
            ],
        ),
        (1, &["encoder.name=resnet50", "train.image_size=48", "encoder.width=0.25"]),
        (3, &["encoder.name=resnet18", "train.image_size=17", "encoder.sk_ratio=0.0625", SMALL]),
        (3, &["encoder.name=resnet50", "train.image_size=70", "encoder.sk_ratio=0.0625", SMALL]),
        (2, &["encoder.name=resnet50", "train.image_size=90", "encoder.resnet_d=timm", SMALL]),
        (2, &["encoder.name=resnet18", "train.image_size=64", "encoder.resnet_d=official", SMALL]),
        (1, &["encoder.name=conv-c3", "train.image_size=17"]),
        (13, &["encoder.name=conv-c4", "train.image_size=24"]),
        (3, &["encoder.name=conv-c7", "train.image_size=20", "encoder.zero_gamma=false"]),
        (
            3,
            &[
                "encoder.name=vit-tiny",
                "encoder.width=0.5",
                "train.image_size=32",
                "encoder.patch=8",
                STATISTICS[0],
            ],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let run = run(&folder.path().join(at.to_string()), channels, set);
        let out = folder.path().join(format!("{at}.onnx"));
        let encoder = load_encoder(&run).unwrap();
        let exported = export_onnx(&encoder, None, None, &out).unwrap();
        assert!(exported.difference < 1e-5, "{set:?}: {}", exported.difference);
        let bytes = fs_err::read(&out).unwrap();
        assert!(bytes.starts_with(b"\x08\x08\x12\x06simclr") && bytes.len() as u64 == exported.bytes);
        export_onnx(&encoder, None, None, &out).unwrap();
    }
}

#[test]
fn onnx_models_of_classifiers_are_larger_and_other_files_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let trained = run(&folder.path().join("run"), 3, &["encoder.name=conv-c3", "train.image_size=16"]);
    let encoder = load_encoder(&trained).unwrap();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (weight, bias) = (zeros(&[7, 128]), zeros(&[7]));
    let [plain, with] = ["plain.onnx", "with.onnx"].map(|name| folder.path().join(name));
    let size = |out: &Path, classifier| export_onnx(&encoder, classifier, None, out).unwrap().bytes;
    let more = size(&with, Some((&weight, &bias))) - size(&plain, None);
    assert!((7 * 129 * 4..7 * 129 * 4 + 400).contains(&more), "{more}");
    fs_err::write(&plain, "notes").unwrap();
    assert!(export_onnx(&encoder, None, None, &plain).is_err());
}
