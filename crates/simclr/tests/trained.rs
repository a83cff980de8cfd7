//! Protocols that train: their rows, an unchanged frozen encoder, and resuming.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use simclr::{
    EvalError, RunConfig,
    checkpoint::Checkpoint,
    eval::{
        EvalConfig, evaluate,
        options::{Protocol, TrainedOptions},
        report::results::Results,
    },
    train::{Observer, RunFolder, Silent, StepReport},
};

mod fixtures;

/// A run and a labelled set, small enough to train on in a test.
fn setting(root: &Path) -> (RunFolder, PathBuf) {
    let (run, _) = fixtures::run(&root.join("run"), "conv-c3");
    let mut config = RunConfig::load(Some(&run.config_file()), &[]).unwrap();
    (config.train.batch, config.train.epochs) = (16, 8.0);
    (config.train.threads, config.data.threads) = (1, 1);
    config.optim = simclr::optim::OptimConfig {
        kind: simclr::optim::OptimKind::Adamw,
        lr: 3e-3,
        scaling: simclr::optim::Scaling::None,
        warmup_epochs: 1.0,
        ..config.optim
    };
    config.augment.crop_scale = [0.8, 1.0];
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    let data = root.join("data");
    fixtures::images(&data.join("train"), 30);
    fixtures::images(&data.join("test"), 10);
    (run, data)
}

fn config(protocols: &[Protocol], trained: TrainedOptions) -> EvalConfig {
    EvalConfig {
        protocols: protocols.to_vec(),
        label_fractions: vec![0.5, 1.0],
        draws: 2,
        batch: 16,
        threads: 1,
        trained: TrainedOptions { epochs: Some(6.0), batch: Some(8), finetune_draws: 2, ..trained },
        ..EvalConfig::default()
    }
}

/// All protocols on the evaluated set, with two seeds.
fn all_protocols() -> EvalConfig {
    let protocols = [Protocol::Finetune, Protocol::LinearSgd, Protocol::Supervised];
    config(&protocols, TrainedOptions { seeds: 2, ..TrainedOptions::default() })
}

/// Counts steps, and stops after `limit` of them.
struct Steps<'a> {
    done: usize,
    limit: usize,
    stop: &'a AtomicBool,
}

impl Observer for Steps<'_> {
    fn step(&mut self, _: &StepReport) {
        self.done += 1;
        self.stop.store(self.done >= self.limit, Ordering::Relaxed);
    }
}

/// Results and the number of training steps.
fn measure(
    run: &RunFolder,
    data: &Path,
    config: &EvalConfig,
    limit: usize,
) -> (Result<Results, EvalError>, usize) {
    let stop = AtomicBool::new(false);
    let mut steps = Steps { done: 0, limit, stop: &stop };
    let results = evaluate(run, data, config, &mut steps, &stop);
    (results, steps.done)
}

/// The only checkpoint of the training in a folder that starts with `protocol`.
fn checkpoint_of(run: &RunFolder, protocol: &str) -> Checkpoint {
    let folders = fs_err::read_dir(run.path().join("evaluation")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = folders.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(protocol));
    let folder = RunFolder::open(&found.next().unwrap_or_else(|| panic!("no run of {protocol}"))).unwrap();
    Checkpoint::load(&folder.checkpoint_files().unwrap()[0]).unwrap()
}

fn encoder_differs(a: &Checkpoint, b: &Checkpoint) -> bool {
    let encoder = a.tensors.iter().filter(|(name, _)| name.starts_with("encoder."));
    let mut compared = 0;
    let differing = encoder.filter(|(name, tensor)| {
        compared += 1;
        tensor.to_kind(tch::Kind::Float) != b.tensors[*name].to_kind(tch::Kind::Float)
    });
    let differs = differing.count() > 0;
    assert!(compared > 10, "weights and batch-norm statistics of three layers");
    differs
}

#[test]
fn every_protocol_has_a_row_and_frozen_encoders_are_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = setting(folder.path());
    let (results, steps) = measure(&run, &data, &all_protocols(), usize::MAX);
    let results = results.unwrap();
    let names: Vec<_> = results.rows[4..].iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["linear on crops (sgd)", "fine-tuned", "fine-tuned, fresh weights", "supervised"]);
    let tuned = results.row("fine-tuned").unwrap();
    let shape: Vec<_> = tuned.by_labels.iter().map(|cell| (cell.labels, cell.accuracies.len())).collect();
    assert_eq!(shape, [(30, 2), (60, 2)], "two draws, two seeds");
    let note = results.notes.iter().find(|note| note.contains("the same 2 draws")).unwrap();
    assert!(note.contains("fine-tuned") && note.contains("linear with all labels"), "{note}");
    // 42 small steps on features of a random encoder: the classifier has changed.
    let classifier = &checkpoint_of(&run, "linear-sgd").tensors["classifier.weight"];
    assert!(classifier.abs().max().double_value(&[]) > 1e-4);
    for row in &results.rows[5..] {
        // Brightness separates the two classes, which a trained encoder learns.
        let all = row.at(1.0).unwrap().mean;
        assert!(all >= 0.9, "{}: {all}", row.name);
    }
    assert!(
        results.protocol.trained.len() == 4 && results.table().contains("supervised: the run's own recipe")
    );

    let pretrained = Checkpoint::load(&run.checkpoint_files().unwrap()[0]).unwrap();
    assert!(!encoder_differs(&pretrained, &checkpoint_of(&run, "linear-sgd")), "frozen, batch norm included");
    assert!(encoder_differs(&pretrained, &checkpoint_of(&run, "fine-tuned-100pct")));

    assert!(steps > 100);
    let (again, steps) = measure(&run, &data, &all_protocols(), usize::MAX);
    assert_eq!((again.unwrap(), steps), (results, 0), "cached figures are used");
}

#[test]
fn a_stopped_evaluation_resumes_to_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&[Protocol::Finetune], TrainedOptions::default());
    let (run, data) = setting(&folder.path().join("whole"));
    let whole = measure(&run, &data, &config, usize::MAX).0.unwrap();
    let (run, data) = setting(&folder.path().join("cut"));
    let mut cuts = 0;
    let mut resumed = loop {
        match measure(&run, &data, &config, 17).0 {
            Err(EvalError::Stopped) => cuts += 1,
            done => break done.unwrap(),
        }
    };
    assert!(cuts > 3, "{cuts}");
    resumed.data.path.clone_from(&whole.data.path);
    assert_eq!(resumed, whole);
    let left = fs_err::read_dir(run.path().join("evaluation")).unwrap();
    let tried = left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("-try-"));
    assert_eq!(tried.count(), 0, "compared models are deleted");
}

#[test]
fn the_linear_classifier_on_crops_is_swept_with_lars() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = setting(folder.path());
    let swept = TrainedOptions {
        // 1e-60 underflows in f32, so that nothing is learned; the smallest step from 0 would already separate the classes.
        linear_rates: vec![1e-60, 1.0],
        linear_decays: vec![0.0, 1e-4],
        linear_optim: simclr::optim::OptimKind::Lars,
        ..TrainedOptions::default()
    };
    let (results, steps) = measure(&run, &data, &config(&[Protocol::LinearSgd], swept), usize::MAX);
    let results = results.unwrap();
    let cell = &results.row("linear on crops (lars)").unwrap().by_labels[0];
    assert!(cell.fits[0].starts_with("learning rate 1"), "a rate of 0 learns nothing: {:?}", cell.fits);
    // Four candidates on 48 images and the chosen one on 60, six epochs each of eight images a step.
    assert_eq!(steps, 4 * 36 + 42);
    let words = &results.protocol.trained[0].1;
    assert!(words.contains("compared on a fifth"), "{words}");
}

/// 17 labels of each of two classes are as many as there are images of both, but not all: one class has 3 only.
#[test]
fn many_labels_per_class_of_an_imbalanced_set_are_a_column_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = setting(folder.path());
    for number in 3..30 {
        fs_err::remove_file(data.join(format!("train/low/{number:03}.png"))).unwrap();
    }
    let trained = TrainedOptions { finetune_rates: vec![0.05], ..TrainedOptions::default() };
    let config = EvalConfig {
        label_fractions: vec![1.0],
        labels_per_class: vec![17],
        ..config(&[Protocol::Finetune], trained)
    };
    let results = measure(&run, &data, &config, usize::MAX).0.unwrap();
    for row in ["trained h", "fine-tuned", "fine-tuned, fresh weights"] {
        let cells = results.row(row).unwrap().by_labels.iter();
        let cells: Vec<_> = cells.map(|cell| (cell.shots, cell.labels, cell.accuracies.len())).collect();
        assert_eq!(cells, [(Some(17), 20, 2), (None, 33, 1)], "{row}");
    }
    let subset = fs_err::read_to_string(run.path().join("evaluation/labels/17-per-class-0.txt")).unwrap();
    assert_eq!(subset.lines().count(), 20);
}

#[test]
fn labels_may_be_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = setting(folder.path());
    let list = folder.path().join("half.txt");
    let names = (0..14).flat_map(|n| ["light", "low"].map(|class| format!("train/{class}/{n:03}.png\n")));
    fs_err::write(&list, names.collect::<String>()).unwrap();
    let trained =
        TrainedOptions { finetune_rates: vec![0.05], head_layers: vec![1], ..TrainedOptions::default() };
    let config = config(&[Protocol::Finetune], trained);
    let with_list = EvalConfig { label_lists: vec![list.clone()], ..config };
    let go_on = AtomicBool::new(false);
    let results = evaluate(&run, &data, &with_list, &mut Silent, &go_on).unwrap();
    for row in ["trained h", "fine-tuned from head layer 1", "fine-tuned, fresh weights"] {
        let cell = &results.row(row).unwrap().by_labels[0];
        assert_eq!((cell.labels, cell.accuracies.len()), (28, 1), "{row}: the list replaces two draws");
    }
    let written = fs_err::read_to_string(run.path().join("evaluation/labels/50pct-0.txt")).unwrap();
    assert_eq!(written.lines().count(), 28);
    let kept = checkpoint_of(&run, "fine-tuned-from-head-layer-1-100pct");
    let kept =
        kept.tensors.keys().filter(|name| name.starts_with("head.0") || name.starts_with("classifier"));
    assert_eq!(kept.count(), 3, "the head's first kernel, and the classifier's weight and bias");

    fs_err::write(&list, "train/light/999.png\n").unwrap();
    let error = evaluate(&run, &data, &with_list, &mut Silent, &go_on).unwrap_err();
    assert!(error.to_string().contains("999.png"), "{error}");
}
