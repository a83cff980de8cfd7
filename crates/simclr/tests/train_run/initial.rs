//! Runs that start from weights: of another run, of an export.

use std::sync::atomic::AtomicBool;

use simclr::{
    config::Written,
    dist::ProcessGroup,
    export::export_encoder,
    train::{Outcome, RunFolder, fit},
};

use crate::{Recorder, config, finish, image_folder, newest};

/// Options of a run that starts at `init`; nothing of the network is written.
fn start(init: &std::path::Path, more: &[&str]) -> (simclr::RunConfig, Written) {
    let init = format!("task.init_from={}", init.display());
    let base = ["train.batch=16", "train.epochs=1", "train.threads=1", "train.device=cpu", "train.chunk=0"];
    let overrides = base.iter().copied().chain([&init[..]]).chain(more.iter().copied());
    let overrides: Vec<String> = overrides.map(str::to_owned).collect();
    simclr::RunConfig::load_written(None, &overrides).unwrap()
}

#[test]
fn a_run_starts_from_encoder_and_head_of_another() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let first = RunFolder::create(&temp.path().join("first")).unwrap();
    finish(&config(&[]), &data, &first);
    let exported = temp.path().join("encoder.safetensors");
    export_encoder(&first, &exported).unwrap();
    let before = newest(&first);
    for (name, init, more, fresh) in [
        ("run", first.path(), &["optim.lr=0", "augment.blur=0"][..], "0 fresh"),
        ("export", exported.as_path(), &["optim.lr=0"], "9 fresh: head.0.weight"),
        ("head", first.path(), &["optim.lr=0", "head.out=8"], "9 fresh: head.0.weight"),
    ] {
        let folder = RunFolder::create(&temp.path().join(name)).unwrap();
        let (config, written) = start(init, more);
        let mut recorder = Recorder::default();
        let stop = AtomicBool::new(false);
        let group = ProcessGroup::alone();
        let outcome = fit(&group, (&config, &written), &data, &folder, &mut recorder, &stop);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        let facts = |name: &str| recorder.facts.iter().find(|(found, _)| found == name).unwrap().1.clone();
        assert!(facts("initial weights").contains(fresh), "{name}: {}", facts("initial weights"));
        assert!(facts("taken over").contains("encoder.name = \"conv-c3\""), "{}", facts("taken over"));
        let after = newest(&folder);
        // The learning rate is 0, so weights are the initial ones.
        assert_eq!(before.tensors["encoder.conv2.weight"], after.tensors["encoder.conv2.weight"], "{name}");
        let same_head = before.tensors["head.0.weight"] == after.tensors["head.0.weight"];
        assert_eq!(same_head, name == "run");
        // A finished run needs the file no more.
        let (config, _) =
            simclr::RunConfig::load_run(&folder.config_file(), &["train.epochs=2".into()]).unwrap();
        assert_eq!(config.train.image_size, 16);
    }
}

#[test]
fn a_resumed_run_does_not_need_its_initial_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let first = RunFolder::create(&temp.path().join("first")).unwrap();
    finish(&config(&["train.epochs=1"]), &data, &first);
    let exported = temp.path().join("encoder.safetensors");
    export_encoder(&first, &exported).unwrap();
    let init = format!("task.init_from={}", exported.display());
    let config = config(&[&init]);
    let folder = RunFolder::create(&temp.path().join("second")).unwrap();
    let stop = AtomicBool::new(false);
    assert_eq!(crate::run(&config, &data, &folder, Some(2), &stop).0.unwrap(), Outcome::Stopped);
    fs_err::remove_file(&exported).unwrap();
    let rest = finish(&config, &data, &folder);
    assert_eq!(rest[0].step, 3);
}
