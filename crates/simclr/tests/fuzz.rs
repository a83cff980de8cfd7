//! Mutated configurations, checkpoints and weights of other programs: reading them ends with a value or an error, never with a panic.
//! `FUZZ=100000 cargo test --release --test fuzz` runs that many mutations for every target.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use simclr::{
    RunConfig,
    checkpoint::{Checkpoint, ForeignTensors},
    tch::Tensor,
    tensor_bundle::Bundle,
    weights,
};

#[path = "../../../fuzz/src/mutation.rs"]
mod mutation;

use mutation::{files, fuzz};

fn of_repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)
}

#[test]
fn configurations() {
    fuzz("config", &files(&of_repository("configs")), 3000, |bytes| {
        let Ok(config) = RunConfig::of_toml(&String::from_utf8_lossy(bytes)) else { return };
        if config.validate().is_ok() {
            let written = config.to_toml();
            let read = RunConfig::of_toml(&written).unwrap();
            assert_eq!(read.to_toml(), written);
        }
    });
}

#[test]
fn checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fuzz.safetensors");
    let whole = Checkpoint {
        tensors: [("a", &[2, 3][..]), ("b", &[]), ("c", &[0, 4])]
            .map(|(name, shape)| {
                (name.to_owned(), Tensor::zeros(shape, (simclr::tch::Kind::Float, simclr::tch::Device::Cpu)))
            })
            .into(),
        sections: BTreeMap::from([("state".to_owned(), serde_json::json!({"step": 3, "loss": [1.5, null]}))]),
        ..Checkpoint::default()
    };
    whole.save(&path).unwrap();
    fuzz("checkpoint", &[fs_err::read(&path).unwrap()], 3000, |bytes| {
        fs_err::write(&path, bytes).unwrap();
        let _ = Checkpoint::load(&path);
        // The same tensors without the checksum, which finds most mutations.
        let _ = ForeignTensors::parse(&path, bytes);
    });
}

#[test]
fn files_of_torch() {
    let seeds: Vec<_> = ["namespace", "sequence", "system", "zip"]
        .map(|name| of_repository("crates/simclr/tests/golden/torch").join(format!("{name}.pth")))
        .map(|file| fs_err::read(file).unwrap())
        .into();
    fuzz("torch", &seeds, 3000, |bytes| drop(weights::parse(Path::new("fuzz.pth"), bytes)));
}

#[test]
fn checkpoints_of_tensorflow() {
    let golden = of_repository("crates/simclr/tests/golden/official_checkpoint");
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("ckpt-1");
    fs_err::copy(golden.join("ckpt-1.data-00000-of-00001"), folder.path().join("ckpt-1.data-00000-of-00001"))
        .unwrap();
    fuzz("bundle", &[fs_err::read(golden.join("ckpt-1.index")).unwrap()], 1000, |bytes| {
        fs_err::write(folder.path().join("ckpt-1.index"), bytes).unwrap();
        let Ok(bundle) = Bundle::open(&prefix) else { return };
        let _ = bundle.object_graph();
        for name in bundle.names() {
            let _ = bundle.tensor(name);
        }
    });
}
