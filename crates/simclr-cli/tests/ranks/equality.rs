//! Losses, gradients and weights of several processes against those of one.

use std::{collections::BTreeMap, path::Path};

use crate::{
    ONE_STEP, furthest, losses, norm,
    support::{LAUNCHERS, image_folder},
    tensors, trained, trained_by, turn,
};

#[test]
fn gradients_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    // An odd batch: parts of 5, 5, 5 and 6 images.
    let settings = [ONE_STEP, &["--batch", "21"]].concat();
    trained(0, &data, &run("plain"), &settings);
    let plain = tensors(&run("plain"));
    assert!(norm(&plain["optim.first.encoder.conv1.weight"]) > 1e-3, "there is a gradient");
    for (&launcher, processes) in LAUNCHERS.iter().flat_map(|by| [1, 2, 4].map(|count| (by, count))) {
        let name = format!("{launcher:?}-{processes}");
        trained_by(launcher, processes, &data, &run(&name), &settings);
        let found = tensors(&run(&name));
        let (distance, tensor) = furthest(&found, &plain, "");
        assert!(distance <= 1e-5, "{processes} processes: {tensor} is {distance:e} away");
        let (loss, expected) = (losses(&run(&name))[0], losses(&run("plain"))[0]);
        assert!(
            (loss / expected - 1.0).abs() <= 1e-5,
            "{processes} processes: loss {loss}, expected {expected}"
        );
    }
}

/// Each of two processes holds a chunk of 10, so batch norm per chunk equals that of one process with chunks of 10.
#[test]
fn chunks_and_processes_split_a_batch_alike() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    let with = |processes: usize, norm: &str, chunk: &str| {
        let name = format!("{processes}-{norm}-{chunk}");
        let norm = format!("train.batch_norm={norm}");
        let chunk = format!("train.chunk={chunk}");
        let settings = [ONE_STEP, &["--batch", "20", "--set", &norm, "--set", &chunk]].concat();
        trained(processes, &data, &run(&name), &settings);
        tensors(&run(&name))
    };
    let check = |found: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Vec<f64>>, what: &str| {
        let (distance, tensor) = furthest(found, expected, "optim.first.");
        assert!(distance <= 1e-5, "{what}: {tensor} is {distance:e} away");
    };
    let plain = with(0, "global", "0");
    check(&with(2, "global", "5"), &plain, "two processes in two chunks each");
    for norm in ["chunk", "chunk-shuffled"] {
        let chunked = with(0, norm, "10");
        check(&with(2, norm, "0"), &chunked, norm);
        assert!(furthest(&chunked, &plain, "optim.first.").0 > 1e-2, "{norm} is not global");
    }
    check(&with(2, "chunk-shuffled", "5"), &with(0, "chunk-shuffled", "5"), "four chunks on two processes");
}

/// Losses, gradients, momentum encoder and queue: several steps on 2 and 4 processes with SyncBN, and shuffle BN over two processes
/// against two chunks.
#[test]
fn queues_and_momentum_encoders_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    for (at, method) in [
        &["task.objective=moco"][..],
        &["task.objective=moco", "moco.symmetric=true"],
        &["task.objective=simclr-momentum"],
        // Without batch norm, before which gradients of shifts are 0 up to rounding.
        &["task.objective=moco-v3", "moco.predictor_hidden=16", "head.norm=none"],
    ]
    .into_iter()
    .enumerate()
    {
        let sets = method.iter().chain(&["moco.queue=50", "moco.momentum=0.9"]);
        let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
        let run = |processes: usize, more: &[&str]| {
            let folder = temp.path().join(format!("{at}-{processes}-{}", more.concat()));
            trained(processes, &data, &folder, &[ONE_STEP, &["--batch", "20"], &sets, more].concat());
            (tensors(&folder), losses(&folder))
        };
        let check = |found: (BTreeMap<String, Vec<f64>>, Vec<f64>),
                     expected: &(BTreeMap<String, Vec<f64>>, Vec<f64>),
                     prefix: &str| {
            let (distance, tensor) = furthest(&found.0, &expected.0, prefix);
            assert!(distance <= 1e-5, "{method:?}: {tensor} is {distance:e} away");
            found
                .1
                .iter()
                .zip(&expected.1)
                .for_each(|(a, b)| assert!((a / b - 1.0).abs() <= 1e-5, "{method:?}: {a} {b}"));
        };
        let plain = run(0, &[]);
        let queues = !method[0].ends_with("v3");
        assert!(plain.0.get("moco.pointer").map_or(!queues, |pointer| queues && *pointer != [0.0]));
        assert!(norm(&plain.0["optim.first.encoder.conv1.weight"]) > 1e-4);
        for processes in [2, 4] {
            check(run(processes, &[]), &plain, "");
        }
        let shuffled = ["--set", "train.batch_norm=chunk-shuffled", "--set"];
        let by_chunk = run(0, &[&shuffled[..], &["train.chunk=10"]].concat());
        check(run(2, &[&shuffled[..], &["train.chunk=0"]].concat()), &by_chunk, "optim.first.");
        check(
            run(2, &[&shuffled[..], &["train.chunk=5"]].concat()),
            &run(0, &[&shuffled[..], &["train.chunk=5"]].concat()),
            if queues { "moco." } else { "optim.first." },
        );
    }
}

/// 2 and 4 processes, and chunks, give the losses of a run by hand and its tensors that start with `prefix`.
fn agrees_on_processes_and_in_chunks(temp: &Path, data: &Path, settings: &[&str], prefix: &str, within: f64) {
    let run = |name: &str| temp.join(name);
    let with = |processes: usize, more: &[&str]| {
        let name = format!("{processes}-{}", more.concat());
        trained(processes, data, &run(&name), &[settings, more].concat());
        (tensors(&run(&name)), losses(&run(&name)))
    };
    let plain = with(0, &[]);
    let chunks = ["--set", "train.chunk=5"];
    for (processes, more) in [(2, &[][..]), (4, &[]), (0, &chunks), (2, &chunks)] {
        let found = with(processes, more);
        let (distance, tensor) = furthest(&found.0, &plain.0, prefix);
        assert!(distance <= within, "{processes} processes, {more:?}: {tensor} is {distance:e} away");
        let losses = found.1.iter().zip(&plain.1);
        losses.for_each(|(a, b)| assert!((a / b - 1.0).abs() <= 1e-5, "{processes}, {more:?}: {a} {b}"));
    }
}

/// A step of distillation from a classifier.
#[test]
fn distillation_matches_that_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let teacher = temp.path().join("teacher");
    trained(0, &data, &teacher, &["--set", "task.objective=supervised", "--batch", "20"]);
    let teacher = format!("distill.teacher={}", teacher.display());
    let method = ["--batch", "20", "--set", "task.objective=distillation", "--set", &teacher];
    agrees_on_processes_and_in_chunks(
        temp.path(),
        &data,
        &[ONE_STEP, &method].concat(),
        "optim.first.",
        1e-5,
    );
}

/// A step of Muon at each of two sides of the views.
#[test]
fn muon_and_sides_of_the_views_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let sets = ["optim.kind=muon", "train.view_sizes=[[0.0,12],[0.5,16]]"].map(|set| ["--set", set]).concat();
    let settings = [&["--batch", "20", "--epochs", "1"], &sets[..]].concat();
    agrees_on_processes_and_in_chunks(temp.path(), &data, &settings, "encoder.", 1e-4);
}

/// The ranks measure steps together, which does not change the run that follows.
#[test]
fn a_time_budget_becomes_epochs_for_all_ranks() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let [planned, repeated] = ["planned", "repeated"].map(|name| temp.path().join(name));
    trained(2, &data, &planned, &["--batch", "20", "--set", "train.minutes=0.1"]);
    let config = simclr::RunConfig::load(Some(&planned.join("config.toml")), &[]).unwrap().train;
    assert_eq!(config.minutes, 0.0);
    let steps = losses(&planned).len() as f64;
    assert!(
        (2.0 * config.epochs - steps).abs() < 1.0 && steps >= 2.0,
        "{steps} steps, {} epochs",
        config.epochs
    );
    trained(2, &data, &repeated, &["--batch", "20", "--epochs", &config.epochs.to_string()]);
    assert_eq!(losses(&planned), losses(&repeated));
}

#[test]
fn twenty_steps_agree_for_any_number_of_processes() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    let settings = ["--epochs", "10"];
    trained(0, &data, &run("plain"), &settings);
    let plain = tensors(&run("plain"));
    let check = |name: &str| {
        assert_eq!(losses(&run(name)).len(), 20);
        let found = tensors(&run(name));
        let (distance, tensor) = furthest(&found, &plain, "encoder.");
        assert!(distance <= 1e-3, "{name}: {tensor} is {distance:e} away after 20 steps");
        let (loss, expected) = (losses(&run(name))[19], losses(&run("plain"))[19]);
        assert!((loss / expected - 1.0).abs() <= 1e-3, "{name}: loss {loss}, expected {expected}");
    };
    for processes in [2, 4] {
        let name = format!("ranks-{processes}");
        trained(processes, &data, &run(&name), &settings);
        check(&name);
    }
}

/// Encoder and head have more gradients than a bucket holds.
#[test]
fn gradients_reduced_after_the_backward_pass_give_the_same_weights_to_the_bit() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let weights = |name: &str, overlap: &str| {
        let run = temp.path().join(name);
        trained(2, &data, &run, &["--epochs", "2", "--set", "head.hidden=16384", "head.out=128", overlap]);
        tensors(&run)
    };
    let during = weights("during", "dist.overlap=true");
    assert!(during.values().map(Vec::len).sum::<usize>() > 1024 * 1024, "two buckets");
    assert_eq!(weights("after", "dist.overlap=false"), during);
}
