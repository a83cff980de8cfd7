//! Fine-tuning, distillation and self-training as runs: accuracies, resuming, refused teachers.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use simclr::{
    EvalError, RunConfig,
    checkpoint::Checkpoint,
    config::Written,
    data::dataset::Labels,
    eval::{
        options::FinetuneRecipe,
        semi_supervised::{
            ClassifierResult, DistillOptions, FinetuneOptions, LabelledData, SelfTraining, Steps, self_train,
        },
    },
    optim::{OptimConfig, OptimKind, Scaling},
    train::{Observer, RunFolder, Silent, StepReport},
};

mod fixtures;

const FINETUNE: FinetuneOptions = FinetuneOptions {
    recipe: FinetuneRecipe::V1,
    head_layers: 1,
    epochs: Some(12.0),
    batch: Some(8),
    lr: Some(1.0),
    from_scratch: false,
    device: None,
    threads: None,
};

fn data(path: &Path) -> LabelledData<'_> {
    LabelledData { path, labels: Labels::Auto, fraction: 0.5, seed: 0, hold_out_seed: 0 }
}

/// Runs `work` on the images of `path`.
fn steps<T>(path: &Path, work: impl FnOnce(&mut Steps<'_>) -> T) -> T {
    work(&mut Steps { data: data(path), observer: &mut Silent, stop: &AtomicBool::new(false) })
}

/// 30 training and 10 test images of each of two classes.
fn images(folder: &Path) {
    fixtures::images(&folder.join("train"), 30);
    fixtures::images(&folder.join("test"), 10);
}

fn recipe(run: &RunFolder) -> RunConfig {
    let mut config = RunConfig::load(Some(&run.config_file()), &[]).unwrap();
    (config.train.batch, config.train.epochs) = (16, 8.0);
    (config.train.threads, config.data.threads) = (1, 1);
    config.optim = OptimConfig {
        kind: OptimKind::Adamw,
        lr: 3e-3,
        scaling: Scaling::None,
        warmup_epochs: 1.0,
        ..config.optim
    };
    config.augment.crop_scale = [0.8, 1.0];
    config
}

fn check(result: &ClassifierResult, labels: usize) {
    assert!(result.accuracy > 0.85, "{result:?}");
    assert_eq!((result.images, result.labels), (20, labels));
    let written = fs_err::read_to_string(result.run.join("classifier.json")).unwrap();
    assert!(written.contains("accuracy"), "{written}");
}

#[test]
fn a_teacher_is_fine_tuned_and_distilled_into_a_smaller_network() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c4");
    fs_err::write(run.config_file(), recipe(&run).to_toml()).unwrap();
    let path = folder.path().join("data");
    images(&path);
    let teacher =
        steps(&path, |steps| steps.finetune(&run, &FINETUNE, &folder.path().join("teacher"))).unwrap();
    check(&teacher, 30);
    let listed = fs_err::read_to_string(teacher.run.join("images.txt")).unwrap();
    assert_eq!(listed.lines().filter(|name| name.contains("light")).count(), 15, "class-balanced");

    let teacher = RunFolder::open(&teacher.run).unwrap();
    let teacher_config = RunConfig::load(Some(&teacher.config_file()), &[]).unwrap();
    let mut options = DistillOptions::of(&teacher_config, &recipe(&run));
    options.config.encoder.name = simclr::encoder::EncoderName::ConvC3;
    let student = |name: &str, options: &DistillOptions| {
        steps(&path, |steps| steps.distill(&teacher, options, &folder.path().join(name)))
    };
    check(&student("student", &options).unwrap(), 0);
    // A part of the labels, named in the run folder.
    options.label_weight = 0.5;
    check(&student("with labels", &options).unwrap(), 30);
    let listed = fs_err::read_to_string(folder.path().join("with labels/labelled.txt")).unwrap();
    assert_eq!(listed.lines().count(), 30);
    options.config.train.image_size = 32;
    let error = student("other size", &options).unwrap_err().to_string();
    assert!(error.contains("distill.teacher") && error.contains("16 px"), "{error}");
}

/// Without a test part, the images that are held out depend on their own seed, not on that of the labels.
#[test]
fn subsets_and_hold_outs_have_seeds_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let path = folder.path().join("data");
    fixtures::images(&path, 20);
    let options = FinetuneOptions { epochs: Some(1.0), ..FINETUNE };
    let trained_on = |seed, hold_out_seed| {
        let data = LabelledData { fraction: 1.0, seed, hold_out_seed, ..data(&path) };
        let stop = AtomicBool::new(false);
        let out = folder.path().join(format!("{seed}-{hold_out_seed}"));
        let tuned =
            Steps { data, observer: &mut Silent, stop: &stop }.finetune(&run, &options, &out).unwrap();
        fs_err::read_to_string(tuned.run.join("images.txt")).unwrap()
    };
    let images = trained_on(0, 0);
    assert_eq!(images.lines().count(), 32, "a fifth is held out");
    assert_eq!(trained_on(1, 0), images);
    assert_ne!(trained_on(1, 1), images);
}

#[test]
fn a_run_without_classifier_is_no_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let path = folder.path().join("data");
    images(&path);
    let config = recipe(&run);
    let options = DistillOptions::of(&config, &config);
    let student = steps(&path, |steps| steps.distill(&run, &options, &folder.path().join("student")));
    let error = student.unwrap_err().to_string();
    assert!(error.contains("expected a run with a classifier"), "{error}");
}

/// Sets the stop flag after `limit` steps.
struct StopAfter<'a> {
    limit: usize,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn step(&mut self, _: &StepReport) {
        self.limit -= 1;
        self.stop.store(self.limit == 0, Ordering::Relaxed);
    }
}

fn newest(folder: &Path) -> Checkpoint {
    RunFolder::open(folder).unwrap().newest_checkpoint().unwrap().0.unwrap()
}

/// Stopped in each of the steps and resumed, self-training ends with the weights of an uninterrupted one.
#[test]
fn self_training_resumes_in_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let path = folder.path().join("data");
    images(&path);
    let mut pretraining = recipe(&run);
    pretraining.train.epochs = 2.0;
    let options = SelfTraining {
        pretraining: (pretraining, Written::EVERYTHING),
        finetuning: FinetuneOptions { epochs: Some(2.0), ..FINETUNE },
        student: None,
        epochs: Some(2.0),
        temperature: 0.5,
        label_weight: 0.25,
    };
    let [once, again] = ["once", "again"].map(|name| folder.path().join(name));
    let expected = steps(&path, |steps| self_train(steps, &options, &once)).unwrap();
    let mut stops = 0;
    let found = loop {
        let stop = AtomicBool::new(false);
        let mut observer = StopAfter { limit: 4, stop: &stop };
        let mut steps = Steps { data: data(&path), observer: &mut observer, stop: &stop };
        match self_train(&mut steps, &options, &again) {
            Ok(found) => break found,
            Err(EvalError::Stopped) => stops += 1,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(stops >= 4, "{stops}");
    assert_eq!(found.student.accuracy, expected.student.accuracy);
    for name in ["1-pretrained", "2-fine-tuned", "3-distilled", "control-supervised"] {
        let (found, expected) = (newest(&again.join(name)), newest(&once.join(name)));
        assert!(expected.tensors.len() > 10);
        for (tensor, value) in &expected.tensors {
            assert_eq!(&found.tensors[tensor], value, "{name}: {tensor}");
        }
    }
}
