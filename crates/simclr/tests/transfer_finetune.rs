//! Fine-tuning on transfer sets: images of each training, accuracy, resuming, and an unchanged run.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use simclr::{
    EvalError, RunConfig,
    eval::{
        EvalConfig, evaluate,
        options::{Metric, Protocol, TransferFinetune, TransferSet},
        report::results::{Results, Tuned},
    },
    train::{Observer, RunFolder, StepReport},
};

mod fixtures;

struct Setting {
    run: RunFolder,
    data: PathBuf,
    options: EvalConfig,
}

/// A run, and two transfer sets: `own` with a validation part, `copies` without, one of its images in both class folders.
fn setting(root: &Path) -> Setting {
    let (run, _) = fixtures::run(&root.join("run"), "conv-c3");
    let mut config = RunConfig::load(Some(&run.config_file()), &[]).unwrap();
    (config.train.threads, config.data.threads) = (1, 1);
    config.augment.crop_scale = [0.8, 1.0];
    // A configuration for pairs in chunks must work with labels, too.
    (config.train.chunk, config.train.batch_norm) = (8, simclr::encoder::BatchNormScope::ChunkShuffled);
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    let own = root.join("own");
    for (part, count) in [("train", 24), ("val", 8), ("test", 10)] {
        fixtures::images(&own.join(part), count);
    }
    let copies = root.join("copies");
    fixtures::images(&copies, 20);
    fs_err::copy(copies.join("low/000.png"), copies.join("light/both.png")).unwrap();
    fs_err::rename(copies.join("low/000.png"), copies.join("low/both.png")).unwrap();
    let transfer = [(own, Metric::Top1), (copies, Metric::Map11)];
    let options = EvalConfig {
        label_fractions: vec![1.0],
        batch: 16,
        threads: 1,
        transfer: transfer.map(|(path, metric)| TransferSet { path, metric }).to_vec(),
        protocols: vec![Protocol::TransferFinetune],
        transfer_finetune: TransferFinetune {
            batch: 16,
            steps: 30,
            // A rate of 1e-60 underflows in f32, so that nothing is learned; 1e-3 over it is a decay of 1e57, which diverges.
            rates: vec![1e-60, 0.05],
            decays: vec![0.0, 1e-3],
            fresh_steps: Some(40),
            fresh_rates: vec![0.05],
            fresh_decays: vec![1e-3],
        },
        ..EvalConfig::default()
    };
    let data = root.join("data");
    fixtures::images(&data, 20);
    Setting { run, data, options }
}

/// On both sets: three candidates, one that diverges at its second step, and the chosen one from the run's weights; a single
/// pair from fresh ones.
const STEPS: usize = 2 * (3 * 30 + 1 + 30 + 40);

/// Counts steps, collects messages, and stops after `limit` steps.
struct Recorder<'a> {
    done: usize,
    limit: usize,
    messages: Vec<String>,
    stop: &'a AtomicBool,
}

impl Observer for Recorder<'_> {
    fn step(&mut self, _: &StepReport) {
        self.done += 1;
        self.stop.store(self.done >= self.limit, Ordering::Relaxed);
    }
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
}

fn measure(setting: &Setting, limit: usize) -> (Result<Results, EvalError>, usize, Vec<String>) {
    let stop = AtomicBool::new(false);
    let mut recorder = Recorder { done: 0, limit, messages: Vec::new(), stop: &stop };
    let results = evaluate(&setting.run, &setting.data, &setting.options, &mut recorder, &stop);
    (results, recorder.done, recorder.messages)
}

/// Folders of trainings below the evaluated run.
fn trainings(run: &RunFolder) -> Vec<PathBuf> {
    let folders = fs_err::read_dir(run.path().join("evaluation")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.join("config.toml").exists()).collect();
    folders.sort();
    folders
}

fn both(results: &Results, set: usize) -> [&Tuned; 2] {
    let row = &results.transfer[set];
    [row.finetuned.as_ref().unwrap(), row.fresh.as_ref().unwrap()]
}

#[test]
fn every_set_is_learned_and_the_results_hold_the_hyper_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let setting = setting(folder.path());
    let checkpoint = setting.run.checkpoint_files().unwrap().remove(0);
    let before = fs_err::read(&checkpoint).unwrap();
    let (results, steps, messages) = measure(&setting, usize::MAX);
    let results = results.unwrap();
    assert_eq!(fs_err::read(&checkpoint).unwrap(), before, "the run's weights are only read");
    assert_eq!(steps, STEPS);
    assert!(
        messages.iter().any(|text| text.starts_with("training 12 of 12: transfer to copies, fresh")),
        "{messages:?}"
    );
    for (set, images) in [(0, 64), (1, 33)] {
        let [tuned, fresh] = both(&results, set);
        // Two classes that differ in brightness; chance is an accuracy or mean precision of a half.
        assert!(tuned.figure >= 0.9 && fresh.figure >= 0.9, "{set}: {} {}", tuned.figure, fresh.figure);
        assert_eq!((tuned.learning_rate, tuned.steps, tuned.batch, tuned.images), (0.05, 30, 16, images));
        assert!([0.0, 1e-3 / 0.05].contains(&tuned.weight_decay), "{}", tuned.weight_decay);
        assert_eq!((fresh.weight_decay, fresh.steps), (1e-3 / 0.05, 40));
        assert!(setting.run.path().join(&tuned.predictions).is_file());
    }
    let words = &results.protocol.trained;
    assert_eq!(words.len(), 2, "{words:?}");
    assert!(words[0].1.contains("30 steps of 16 images") && words[0].1.contains("0.05"), "{words:?}");
    let table = results.table();
    assert!(table.contains("fresh weights") && table.contains("learning rate 5.0e-2"), "{table}");

    let left = trainings(&setting.run);
    assert_eq!(left.len(), 4, "compared models are deleted: {left:?}");
    let own: Vec<_> = left.iter().filter(|path| path.to_string_lossy().contains("to-own")).collect();
    for path in own {
        let images = fs_err::read_to_string(path.join("images.txt")).unwrap();
        let of = |part: &str| images.lines().filter(|line| line.starts_with(part)).count();
        assert_eq!(
            (of("train/"), of("val/"), of("test/")),
            (48, 16, 0),
            "trained on both, and on no test image"
        );
        let config = RunConfig::load(Some(&path.join("config.toml")), &[]).unwrap();
        assert_eq!((config.train.batch_norm_momentum, config.optim.nesterov), (0.1, true));
        assert_eq!(config.augment.color, 0.0);
    }
    let (again, steps, _) = measure(&setting, usize::MAX);
    assert_eq!((again.unwrap(), steps), (results, 0), "cached figures are used");
}

#[test]
fn a_stopped_evaluation_resumes_to_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let whole = setting(&folder.path().join("whole"));
    let expected = measure(&whole, usize::MAX).0.unwrap();
    let cut = setting(&folder.path().join("cut"));
    let (mut cuts, mut steps) = (0, 0);
    let resumed = loop {
        let (result, done, _) = measure(&cut, 47);
        steps += done;
        match result {
            Err(EvalError::Stopped) => cuts += 1,
            done => break done.unwrap(),
        }
    };
    assert!(cuts > 3, "{cuts}");
    assert_eq!(steps, STEPS, "no step is repeated");
    for set in 0..2 {
        assert_eq!(both(&resumed, set), both(&expected, set));
    }
}

#[test]
fn small_sets_and_wrong_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut setting = setting(folder.path());
    let small = folder.path().join("small");
    fixtures::images(&small.join("train"), 2);
    fixtures::images(&small.join("test"), 2);
    setting.options.transfer = vec![TransferSet { path: small, metric: Metric::Top1 }];
    let error = measure(&setting, usize::MAX).0.unwrap_err();
    assert!(error.to_string().contains("too few images to hold some out for choosing"), "{error}");
    setting.options.transfer_finetune.rates = vec![0.0];
    let error = measure(&setting, usize::MAX).0.unwrap_err();
    assert!(error.to_string().contains("learning rates above 0"), "{error}");
}
