//! Checkpoints of google-research/simclr written by TensorFlow (`reference/official_checkpoints.py`): h and z after the import, and
//! damaged files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use simclr::{
    BundleError, ConfigError, EvalError,
    encoder::{EncoderName, Padding, ResnetD, Stem},
    eval::{
        features::{
            import::{check_imported, configure, import},
            load_encoder,
        },
        layer::Layer,
    },
    export::export_encoder,
    head::HeadKind,
    tensor_bundle::{self, Bundle},
    train::RunFolder,
};
use tch::Tensor;

#[path = "fixtures/hashed.rs"]
mod hashed;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/official_checkpoint")
}

/// Largest difference over the largest value.
fn worst(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

/// Differences of h and z of the imported checkpoint to those that TensorFlow computed; `prefix` of their names.
fn imported(checkpoint: &Path, outputs: &Path, prefix: &str) -> [f64; 2] {
    let outputs: BTreeMap<String, Tensor> =
        Tensor::read_safetensors(outputs.join("outputs.safetensors")).unwrap().into_iter().collect();
    let size = outputs["size"].int64_value(&[0]);
    let mut overrides = vec![format!("train.image_size={size}"), "train.device=\"cpu\"".to_owned()];
    overrides.extend((!prefix.is_empty()).then(|| "encoder.import_ema=true".to_owned()));
    let (config, note) = configure(checkpoint, &overrides).unwrap();
    assert!(note.unwrap().contains("encoder.name"));
    let root = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(root.path()).unwrap();
    import(checkpoint, &config, 3, &folder).unwrap();
    check_imported(checkpoint, &config, &folder).unwrap();
    let frozen = load_encoder(&folder).unwrap();
    let found = frozen.layers(&hashed::images(4, size), &[Layer::H, Layer::Z]).unwrap();
    let features = frozen.feature_dim();
    let h = worst(&found.narrow(1, 0, features), &outputs[&format!("{prefix}h")]);
    [h, worst(&found.narrow(1, features, found.size()[1] - features), &outputs[&format!("{prefix}z")])]
}

#[test]
fn h_and_z_equal_tensorflows() {
    for path in ["", "ckpt-1", "ckpt-1.index", "ckpt-1.data-00000-of-00001"] {
        let errors = imported(&golden().join(path), &golden(), "");
        assert!(errors.iter().all(|error| *error < 1e-4), "`{path}`: {errors:?}");
    }
}

/// `SIMCLR_OFFICIAL`: the folder that the reference script filled.
#[test]
#[ignore = "needs the checkpoints that reference/official_checkpoints.py writes with TensorFlow"]
fn h_and_z_of_all_variants_equal_tensorflows() {
    let root = PathBuf::from(std::env::var_os("SIMCLR_OFFICIAL").unwrap());
    let mut folders: Vec<PathBuf> =
        fs_err::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut worst: f64 = 0.0;
    for folder in folders {
        let saved = folder.join("saved_model/7");
        let is_tf1 = folder.join("model.ckpt-7.index").exists();
        let cases = [(folder.clone(), ""), if is_tf1 { (folder.clone(), "ema.") } else { (saved, "") }];
        for (checkpoint, prefix) in cases {
            let errors = imported(&checkpoint, &folder, prefix);
            println!("{} {prefix}: h {:.1e}, z {:.1e}", checkpoint.display(), errors[0], errors[1]);
            worst = errors.into_iter().fold(worst, f64::max);
        }
    }
    assert!(worst > 0.0 && worst < 1e-4, "{worst}");
}

#[test]
fn the_checkpoint_determines_the_architecture() {
    let size = ["train.image_size=64".to_owned()];
    let (config, _) = configure(&golden(), &size).unwrap();
    let encoder = &config.encoder;
    assert_eq!((encoder.name, encoder.width, encoder.sk_ratio), (EncoderName::Resnet50, 0.0625, 0.0625));
    assert_eq!(
        (encoder.stem, encoder.resnet_d, encoder.padding),
        (Stem::Imagenet, ResnetD::Official, Padding::Same)
    );
    assert_eq!((config.head.kind, config.head.layers, config.head.out), (HeadKind::Nonlinear, 2, 16));
    assert!(!config.transform.antialias && encoder.input_mean.is_empty());
    // What the shapes leave open follows the overrides.
    let (config, _) = configure(&golden(), &["encoder.padding=symmetric".to_owned()]).unwrap();
    assert_eq!(config.encoder.padding, Padding::Symmetric);
    for (text, key, value) in [
        ("encoder.name=resnet101", "encoder.name", "resnet101"),
        ("encoder.width=2", "encoder.width", "2"),
        ("encoder.sk_ratio=0", "encoder.sk_ratio", "0"),
        ("encoder.stem=cifar", "encoder.stem", "cifar"),
        ("head.layers=3", "head.layers", "3"),
        ("head.out=128", "head.out", "128"),
    ] {
        let error = configure(&golden(), &[text.to_owned()]).unwrap_err();
        let EvalError::Config(ConfigError::Value { key: found, value: got, expected }) = &error else {
            panic!("{error}")
        };
        assert_eq!(found, key);
        assert!(got.contains(value) && expected.contains("that of"), "{error}");
    }
    let error = configure(&golden(), &["encoder.import_ema=true".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("no moving averages") && error.hint().is_some(), "{error}");
}

/// The export is verified against the run when it is written; layers of the head are outputs of the import, others are not.
#[test]
fn an_import_is_a_run_with_a_head() {
    let root = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(&root.path().join("run")).unwrap();
    let overrides = ["train.image_size=64".to_owned(), "train.device=\"cpu\"".to_owned()];
    let (config, _) = configure(&golden(), &overrides).unwrap();
    import(&golden(), &config, 3, &folder).unwrap();
    let exported = export_encoder(&folder, &root.path().join("encoder.safetensors")).unwrap();
    assert_eq!(exported.metadata["simclr.sk_ratio"], "0.0625");
    assert_eq!(exported.metadata["simclr.resnet_d"], "official");
    let frozen = load_encoder(&folder).unwrap();
    let width = |layer| frozen.layer_dim(layer).ok();
    assert_eq!([Layer::H, Layer::Head(1), Layer::Z].map(width), [Some(128), Some(128), Some(16)]);
    assert_eq!(width(Layer::Head(3)), None);
    // Another head is another import.
    let mut other = config.clone();
    other.head.hidden = 64;
    assert!(matches!(check_imported(&golden(), &other, &folder), Err(EvalError::OtherWeights { .. })));
    // A model of other shapes takes no weights of it.
    let refused = RunFolder::create(&root.path().join("refused")).unwrap();
    let error = import(&golden(), &other, 3, &refused).unwrap_err();
    assert!(error.to_string().contains("shape [128, 128], expected [64, 128]"), "{error}");
}

#[test]
fn other_files_are_not_taken_for_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(tensor_bundle::find(folder.path()), None);
    assert_eq!(tensor_bundle::find(&folder.path().join("weights.safetensors")), None);
    let (config, note) = configure(&folder.path().join("weights.safetensors"), &[]).unwrap();
    assert_eq!((config, note), (simclr::RunConfig::load(None, &[]).unwrap(), None));
}

/// Reads the object graph and all tensors; gives their number.
fn read_all(folder: &Path) -> Result<usize, BundleError> {
    let bundle = Bundle::open(&folder.join("ckpt-1"))?;
    let graph = bundle.object_graph()?;
    let numbers = bundle.names().filter(|name| !name.starts_with("_CHECKPOINTABLE"));
    let tensors = numbers.map(|name| bundle.tensor(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(tensors.len() + graph.iter().count())
}

/// A copy of the fixture with one file changed.
fn changed(name: &str, change: impl Fn(&mut Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["ckpt-1.index", "ckpt-1.data-00000-of-00001"] {
        let mut bytes = fs_err::read(golden().join(file)).unwrap();
        if file == name {
            change(&mut bytes);
        }
        fs_err::write(folder.path().join(file), bytes).unwrap();
    }
    folder
}

#[test]
fn the_fixture_is_read_in_full() {
    let folder = changed("", |_| {});
    assert!(read_all(folder.path()).unwrap() > 300);
    let missing = Bundle::open(&golden().join("ckpt-1")).unwrap().tensor("model/none").unwrap_err();
    assert!(missing.to_string().contains("`model/none` is missing"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A flipped bit anywhere and a file cut anywhere are errors.
    #[test]
    fn damaged_indexes_are_refused(at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<bool>()) {
        let folder = changed("ckpt-1.index", |bytes| {
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1u8 << bit }
        });
        prop_assert!(read_all(folder.path()).is_err());
    }

    /// Bytes that pass for an index but are none: a valid footer behind anything.
    #[test]
    fn arbitrary_indexes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        bytes.extend(0xdb47_7524_8b80_fb57_u64.to_le_bytes());
        let folder = changed("ckpt-1.index", |file| *file = bytes.clone());
        prop_assert!(read_all(folder.path()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_values_are_refused(at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<bool>()) {
        let folder = changed("ckpt-1.data-00000-of-00001", |bytes| {
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1u8 << bit }
        });
        prop_assert!(read_all(folder.path()).is_err());
    }
}
