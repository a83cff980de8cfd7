//! Whole runs on small synthetic image sets, through the public interface.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod initial;
mod momentum;
mod non_finite;
mod progress;
mod read_loss;
mod resume;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use simclr::{
    RunConfig, TrainError,
    checkpoint::Checkpoint,
    data::{RangeChoice, ValueRange},
    train::{Observer, Outcome, RunFolder, StepReport, pretrain},
};
use tch::{Kind, Tensor};

/// 16x16 bitmaps of four classes with stripes in different directions and random colours.
fn image_folder(root: &Path, count: usize, labelled: bool) -> PathBuf {
    let data = root.join("images");
    for index in 0..count {
        let class = index % 4;
        let folder = if labelled { data.join(format!("class-{class}")) } else { data.clone() };
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::write(folder.join(format!("{index:04}.bmp")), bitmap(index, class)).unwrap();
    }
    data
}

fn bitmap(index: usize, class: usize) -> Vec<u8> {
    const SIDE: usize = 16;
    let color = |salt: usize| (((index + 1) * (salt + 3) * 2_654_435_761) >> 7) as u8;
    let mut bytes = b"BM".to_vec();
    bytes.extend((54 + 3 * SIDE as u32 * SIDE as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for value in [54u32, 40, SIDE as u32, SIDE as u32] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let along = [x, y, x + y, x + SIDE - y][class];
            let on = usize::from((along + index) % 8 < 4);
            bytes.extend((0..3).map(|channel| color(channel + 3 * on)));
        }
    }
    bytes
}

fn config(more: &[&str]) -> RunConfig {
    let base = [
        "encoder.name=conv-c3",
        "encoder.width=0.25",
        "head.hidden=16",
        "head.out=16",
        "train.image_size=16",
        "train.batch=16",
        "train.epochs=3",
        "train.threads=1",
        "data.threads=2",
        "train.precision=f32",
        "optim.kind=adamw",
        "optim.lr=3e-3",
        "optim.scaling=none",
        "optim.warmup_epochs=0",
        "loss.temperature=1",
        "augment.color=0.5",
        "augment.blur=0",
        "train.health_every=5",
        "train.knn_every=1",
    ];
    let overrides: Vec<_> = base.iter().chain(more).map(|&text| text.to_owned()).collect();
    RunConfig::load(None, &overrides).unwrap()
}

/// Records the events of a run, and may stop it after a step.
#[derive(Default)]
struct Recorder<'a> {
    reports: Vec<StepReport>,
    messages: Vec<String>,
    facts: Vec<(String, String)>,
    stop: Option<(u64, &'a AtomicBool)>,
}

impl Observer for Recorder<'_> {
    fn start(&mut self, facts: &[(String, String)]) {
        self.facts = facts.to_vec();
    }
    fn step(&mut self, report: &StepReport) {
        self.reports.push(report.clone());
        if let Some((_, stop)) = self.stop.filter(|(step, _)| report.step == *step) {
            stop.store(true, Ordering::Relaxed);
        }
    }
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
}

fn run<'a>(
    config: &RunConfig,
    data: &Path,
    folder: &RunFolder,
    stop_at: Option<u64>,
    stop: &'a AtomicBool,
) -> (Result<Outcome, TrainError>, Recorder<'a>) {
    let mut recorder = Recorder { stop: stop_at.map(|step| (step, stop)), ..Recorder::default() };
    let outcome = pretrain(config, data, folder, &mut recorder, stop);
    (outcome, recorder)
}

fn finish(config: &RunConfig, data: &Path, folder: &RunFolder) -> Vec<StepReport> {
    let stop = AtomicBool::new(false);
    let (outcome, recorder) = run(config, data, folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    recorder.reports
}

fn newest(folder: &RunFolder) -> Checkpoint {
    folder.newest_checkpoint().unwrap().0.unwrap()
}

fn same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &a.tensors {
        let bits = |t: &Tensor| Vec::<u8>::try_from(t.contiguous().view(-1).view_dtype(Kind::Uint8)).unwrap();
        assert_eq!(bits(tensor), bits(&b.tensors[name]), "{name}");
    }
}

#[test]
fn online_knn_is_due_at_fractions_of_epochs() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 64, true);
    for (every, steps) in [("0.5", &[1, 3, 5, 7][..]), ("1", &[3, 7]), ("1.5", &[5])] {
        let folder = RunFolder::create(&temp.path().join(every)).unwrap();
        finish(&config(&["train.epochs=2", &format!("train.knn_every={every}")]), &data, &folder);
        let lines = fs_err::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let found: Vec<u64> = lines
            .filter(|line| line.get("online_knn").is_some())
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert_eq!(found, steps, "every {every} epochs of 4 steps");
    }
}

/// After one step from 0 the running mean is the momentum times the mean of the batch, whole or in chunks.
#[test]
fn running_statistics_use_the_configured_momentum() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 16, true);
    let running_mean = |name: &str, more: &[&str]| {
        let folder = RunFolder::create(&temp.path().join(name)).unwrap();
        finish(&config(&[&["train.epochs=1", "train.knn_every=0"], more].concat()), &data, &folder);
        let checkpoint = newest(&folder);
        let mut means = checkpoint.tensors.iter().filter(|(name, _)| name.ends_with("running_mean"));
        means.next().unwrap().1.to_kind(Kind::Double)
    };
    let mean = running_mean("one", &["train.batch_norm_momentum=1"]);
    assert!(mean.abs().max().double_value(&[]) > 1e-3);
    for (name, more, weight) in [
        ("default", &[][..], 0.1),
        ("slow", &["train.batch_norm_momentum=0.02"], 0.02),
        ("chunks", &["train.batch_norm_momentum=0.02", "train.chunk=4"], 0.02),
    ] {
        let error = (running_mean(name, more) / weight - &mean).abs().max().double_value(&[]);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

#[test]
fn loader_threads_do_not_change_the_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folders = ["data.threads=1", "data.threads=4"].map(|threads| {
        let folder = RunFolder::create(&temp.path().join(threads)).unwrap();
        finish(&config(&[threads, "train.epochs=1"]), &data, &folder);
        folder
    });
    same_tensors(&newest(&folders[0]), &newest(&folders[1]));
}

#[test]
fn one_batch_is_overfitted_starting_at_chance() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 32, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let config =
        config(&["train.batch=32", "train.epochs=150", "optim.lr=1e-2", "augment.crop_scale=[0.5, 1.0]"]);
    let reports = finish(&config, &data, &folder);
    let (first, last) = (&reports[0], &reports[reports.len() - 1]);
    assert!(
        (first.loss / 63f64.ln() - 1.0).abs() < 0.05,
        "at tau = 1 a fresh model is near ln(2N - 1): {}",
        first.loss
    );
    assert!((first.chance_loss - 63f64.ln()).abs() < 1e-12);
    assert!(last.loss < first.loss - 0.3, "{} to {}", first.loss, last.loss);
    assert!(last.accuracy > 2.0 * first.accuracy.max(1.0 / 16.0), "{first:?} {last:?}");
}

#[test]
fn online_knn_runs_only_with_labels() {
    let temp = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let data = image_folder(&temp.path().join("l"), 60, true);
    let folder = RunFolder::create(&temp.path().join("with")).unwrap();
    let (outcome, recorder) = run(&config(&["train.epochs=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert_eq!(
        recorder.messages.iter().filter(|text| text.contains("online kNN")).count(),
        2,
        "{:?}",
        recorder.messages
    );
    let data = image_folder(&temp.path().join("u"), 60, false);
    let folder = RunFolder::create(&temp.path().join("without")).unwrap();
    let (outcome, recorder) = run(&config(&["train.epochs=1"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert!(!recorder.messages.iter().any(|text| text.contains("online kNN")));
}

#[test]
fn undecodable_images_are_listed_and_skipped() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 64, false);
    fs_err::write(data.join("0003.bmp"), b"BM, but no bitmap").unwrap();
    let stop = AtomicBool::new(false);
    let folder = RunFolder::create(&temp.path().join("a")).unwrap();
    let (outcome, recorder) =
        run(&config(&["data.max_bad_share=0.01", "train.epochs=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert_eq!(
        recorder.messages.iter().filter(|text| text.starts_with("skipped")).count(),
        1,
        "{:?}",
        recorder.messages
    );
    let list = fs_err::read_to_string(folder.bad_files()).unwrap();
    assert!(list.starts_with("0003.bmp\t") && list.lines().count() == 1, "{list}");
    let folder = RunFolder::create(&temp.path().join("b")).unwrap();
    let error = run(&config(&["data.max_bad_share=0"]), &data, &folder, None, &stop).0.unwrap_err();
    assert!(error.to_string().contains("1 of 64 images"), "{error}");
    let list = fs_err::read_to_string(folder.bad_files()).unwrap();
    assert!(list.starts_with("0003.bmp\t"), "the image that ended the run is listed, too: {list}");
}

#[test]
fn run_folder_has_configuration_plan_and_versions() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, true);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let config = config(&["train.epochs=1"]);
    finish(&config, &data, &folder);
    let mut read_back = RunConfig::load(Some(&folder.config_file()), &[]).unwrap();
    assert_eq!(read_back.data.path.take(), Some(data.canonicalize().unwrap()));
    assert_eq!(read_back.data.range, RangeChoice::Set(ValueRange::Full), "resolved");
    read_back.data.range = RangeChoice::Auto;
    assert_eq!(read_back, config);
    let plan: serde_json::Value =
        serde_json::from_str(&fs_err::read_to_string(folder.path().join("plan.json")).unwrap()).unwrap();
    assert_eq!(
        (&plan["steps_per_epoch"], &plan["images"], &plan["channels"]),
        (&2.into(), &40.into(), &3.into())
    );
    assert!(fs_err::read_to_string(folder.path().join("environment.json")).unwrap().contains("libtorch"));
    let events = fs_err::read_dir(folder.path())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents"));
    assert!(events);
    let path = folder.path().to_owned();
    assert!(matches!(RunFolder::create(&path), Err(TrainError::InUse { .. })));
    drop(folder);
    assert!(matches!(RunFolder::create(&path), Err(TrainError::RunExists { .. })));
}

fn metrics(folder: &RunFolder) -> Vec<serde_json::Value> {
    let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Learning rates of `metrics.jsonl` against the formula of linear scaling, warm-up and cosine; the facts at the start agree.
#[test]
fn recorded_learning_rates_follow_warm_up_and_cosine() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let more = ["optim.kind=lars", "optim.lr=1.6", "optim.scaling=linear", "optim.warmup_epochs=1"];
    let stop = AtomicBool::new(false);
    let config = config(&[&more[..], &["train.health_every=4"]].concat());
    let (outcome, recorder) = run(&config, &data, &folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    // 70 images in batches of 16: 4 steps an epoch, 12 in all; 1.6 x 16 / 256 = 0.1.
    let expected = |step: u32| match f64::from(step) {
        step if step < 4.0 => 0.1 * step / 4.0,
        step => 0.05 * (1.0 + (std::f64::consts::PI * (step - 4.0) / 8.0).cos()),
    };
    let steps: Vec<_> = metrics(&folder).into_iter().filter(|line| line["lr"].is_number()).collect();
    assert_eq!(steps.len(), 12);
    for (step, line) in (0..).zip(&steps) {
        let lr = line["lr"].as_f64().unwrap();
        assert!((lr - expected(step)).abs() < 1e-12, "step {step}: {lr}");
        assert_eq!(line["accuracy_of"], "contrastive", "accuracy of the pretext task");
        assert!(line["gradient_norm"].as_f64().unwrap() > 0.0);
        let ratios = &line["trust_ratio"];
        assert_eq!(ratios.is_array(), step % 4 == 3, "step {step}: {ratios}");
        if let Some([min, max]) = ratios.as_array().map(Vec::as_slice) {
            assert!(0.0 < min.as_f64().unwrap() && min.as_f64() <= max.as_f64(), "{ratios}");
        }
    }
    let fact = |name: &str| &recorder.facts.iter().find(|(found, _)| found == name).unwrap().1;
    let rate = fact("learning rate");
    assert_eq!(rate, "lars, 1.6 x 16 / 256 = 0.1 after 4 steps of warm-up, then cosine to 0");
    assert!(fact("recipe").starts_with("differs from SimCLR"), "{}", fact("recipe"));
}

/// The classifier's weight starts at zero, where LARS adaptation would keep its updates tiny; the official code trains it with
/// momentum SGD (tf2/model.py `build_optimizer`).
#[test]
fn supervised_run_with_lars_fits_its_training_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 64, true);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let more = [
        "task.objective=supervised",
        "optim.kind=lars",
        "optim.lr=8",
        "optim.scaling=linear",
        "train.epochs=40",
        "train.knn_every=0",
        "augment.crop=false",
        "augment.flip=0",
        "augment.color=0",
        "augment.gray=0",
    ];
    let reports = finish(&config(&more), &data, &folder);
    let last = &reports[reports.len() - 4..];
    let accuracy = last.iter().map(|report| report.accuracy).sum::<f64>() / 4.0;
    assert!(accuracy > 0.9, "training accuracy {accuracy} after 160 steps");
}
