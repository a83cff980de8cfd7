//! Runs of the methods with a momentum encoder and a queue: resume, evaluation by the trained encoder, refused configurations.

use std::sync::atomic::AtomicBool;

use simclr::train::{Outcome, RunFolder};

use crate::{config, finish, image_folder, newest, run, same_tensors};

/// Batches of 16 and 32 keys divide no queue of 50, so the pointer wraps in the middle of a batch.
const METHODS: [&[&str]; 7] = [
    &["task.objective=moco"],
    &["task.objective=moco", "moco.symmetric=true", "train.batch_norm_groups=4"],
    &["task.objective=moco", "train.batch_norm_groups=4"],
    &["task.objective=moco", "train.chunk=4", "train.batch_norm=chunk-shuffled"],
    &["task.objective=simclr-momentum", "train.chunk=8"],
    MOCO_V3,
    &["task.objective=moco-v3", "moco.predictor_hidden=16", "train.chunk=8"],
];
const MOCO_V3: &[&str] =
    &["task.objective=moco-v3", "moco.predictor_hidden=16", "moco.momentum_schedule=cosine"];

#[test]
fn resumed_run_equals_uninterrupted_run_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    for (at, set) in METHODS.into_iter().enumerate() {
        let config = config(&[set, &["moco.queue=50", "moco.momentum=0.9"]].concat());
        let whole = RunFolder::create(&temp.path().join(format!("whole-{at}"))).unwrap();
        let reports = finish(&config, &data, &whole);
        let resumed = RunFolder::create(&temp.path().join(format!("resumed-{at}"))).unwrap();
        let stop = AtomicBool::new(false);
        assert_eq!(run(&config, &data, &resumed, Some(4), &stop).0.unwrap(), Outcome::Stopped);
        let before = newest(&resumed);
        let rest = finish(&config, &data, &resumed);
        assert_eq!((reports.len(), rest[0].step), (12, 5));
        let after = newest(&resumed);
        same_tensors(&newest(&whole), &after);
        for (a, b) in reports[5..].iter().zip(&rest) {
            assert_eq!((a.loss, a.lr, a.accuracy), (b.loss, b.lr, b.accuracy), "{set:?}");
        }
        let queue =
            ["moco.queue", "moco.pointer"].into_iter().filter(|name| after.tensors.contains_key(*name));
        assert_eq!(queue.clone().count(), if set[0].ends_with("v3") { 0 } else { 2 });
        for name in queue.chain(["momentum.encoder.conv1.weight", "momentum.encoder.bn1.running_var"]) {
            assert_ne!(before.tensors[name], after.tensors[name], "{name} changes with the steps");
        }
    }
}

#[test]
fn the_momentum_encoder_starts_from_the_initial_weights_of_the_run() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let first = RunFolder::create(&temp.path().join("first")).unwrap();
    finish(&config(&["train.epochs=1", "train.seed=3"]), &data, &first);
    let start = first.checkpoint_files().unwrap().pop().unwrap();
    let from = format!("task.init_from={}", start.display());
    let second = RunFolder::create(&temp.path().join("second")).unwrap();
    let set = ["task.objective=moco", "moco.queue=50", "moco.momentum=1", "train.epochs=1", &from];
    finish(&config(&set), &data, &second);
    let (before, after) = (newest(&first), newest(&second));
    for name in ["encoder.conv1.weight", "head.0.weight"] {
        assert_eq!(before.tensors[name], after.tensors[&format!("momentum.{name}")], "{name}");
        assert_ne!(before.tensors[name], after.tensors[name], "{name}");
    }
}

#[test]
fn reports_compare_with_the_loss_at_chance() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    for (set, chance) in [
        (&["task.objective=moco"][..], 51f64.ln()),
        (&["task.objective=moco", "moco.symmetric=true"], 2.0 * 51f64.ln()),
        (&["task.objective=simclr-momentum"], 81f64.ln()),
        (&["task.objective=moco-v3", "loss.temperature=0.5"], 2.0 * 16f64.ln()),
    ] {
        let folder = RunFolder::create(&temp.path().join(format!("{}", set.len() as f64 + chance))).unwrap();
        let stop = AtomicBool::new(false);
        let config = config(&[set, &["moco.queue=50", "train.epochs=2"]].concat());
        assert_eq!(config.chance_decides(), set[0].ends_with("v3"), "a queue holds random keys at first");
        let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        assert!((recorder.reports[0].chance_loss - chance).abs() < 1e-9, "{set:?}");
        let text = |name: &str| recorder.facts.iter().find(|(found, _)| found == name).unwrap().1.clone();
        let keys = if set[0].ends_with("v3") { "16 keys" } else { "50 " };
        assert!(text("loss").contains(keys), "{}", text("loss"));
        let metrics = fs_err::read_to_string(folder.metrics_file()).unwrap();
        let health: Vec<serde_json::Value> =
            metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let health = health.iter().rfind(|value| value["health"].is_object()).unwrap()["health"].clone();
        let number = |key: &str| health[key].as_f64().unwrap();
        assert!((0.0..=4.0).contains(&number("alignment")) && number("uniformity") <= 0.0, "{health}");
        let scale = if set.len() > 1 { 2.0 } else { 1.0 };
        assert!((number("chance_loss") - chance / scale).abs() < 1e-9, "{health}");
    }
}
