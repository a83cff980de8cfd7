//! Whole runs on small synthetic image sets, through the public interface.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use simclr::{
    CheckpointError, RunConfig, TrainError,
    checkpoint::Checkpoint,
    data::{RangeChoice, ValueRange},
    train::{Observer, Outcome, RunFolder, StepReport, pretrain},
};
use tch::{Kind, Tensor};

/// 16x16 bitmaps whose four classes differ in the direction of a stripe, their colours in nothing but chance.
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

/// Remembers the run, and may stop it after a step.
#[derive(Default)]
struct Witness<'a> {
    reports: Vec<StepReport>,
    messages: Vec<String>,
    facts: Vec<(String, String)>,
    stop: Option<(u64, &'a AtomicBool)>,
}

impl Observer for Witness<'_> {
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
) -> (Result<Outcome, TrainError>, Witness<'a>) {
    let mut witness = Witness { stop: stop_at.map(|step| (step, stop)), ..Witness::default() };
    let outcome = pretrain(config, data, folder, &mut witness, stop);
    (outcome, witness)
}

fn finish(config: &RunConfig, data: &Path, folder: &RunFolder) -> Vec<StepReport> {
    let stop = AtomicBool::new(false);
    let (outcome, witness) = run(config, data, folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    witness.reports
}

fn newest(folder: &RunFolder) -> Checkpoint {
    folder.newest_checkpoint().unwrap().0.unwrap().1
}

fn same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &a.tensors {
        let bits = |t: &Tensor| Vec::<u8>::try_from(t.contiguous().view(-1).view_dtype(Kind::Uint8)).unwrap();
        assert_eq!(bits(tensor), bits(&b.tensors[name]), "{name}");
    }
}

/// After one step from 0 the running mean is the momentum times the batch's mean: with 1 it is that mean, whole or in chunks.
#[test]
fn batch_norm_weighs_a_batch_by_the_configured_momentum() {
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
        let apart = (running_mean(name, more) / weight - &mean).abs().max().double_value(&[]);
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

#[test]
fn stopped_and_resumed_equals_uninterrupted_byte_for_byte() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    let config = config(&[]);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    let reports = finish(&config, &data, &whole);
    assert_eq!(reports.len(), 12, "3 epochs of 70 / 16 = 4 steps");

    let parted = RunFolder::create(&temp.path().join("parted")).unwrap();
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &parted, Some(4), &stop).0.unwrap(), Outcome::Stopped);
    let rest = finish(&config, &data, &parted);
    assert_eq!(rest[0].step, 5);
    same_tensors(&newest(&whole), &newest(&parted));
    for (a, b) in reports[5..].iter().zip(&rest) {
        assert_eq!((a.loss, a.lr, a.accuracy), (b.loss, b.lr, b.accuracy));
    }
    let steps = |folder: &RunFolder| {
        let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
        let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines()
            .map(value)
            .filter_map(|v| Some((v["step"].as_u64()?, v["loss"].as_f64()?)))
            .collect::<Vec<_>>()
    };
    assert_eq!(steps(&whole), steps(&parted), "the record has every step once");
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
fn one_batch_is_overfitted_from_chance() {
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
fn labels_give_an_online_knn_and_none_is_fine_too() {
    let temp = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let data = image_folder(&temp.path().join("l"), 60, true);
    let folder = RunFolder::create(&temp.path().join("with")).unwrap();
    let (outcome, witness) = run(&config(&["train.epochs=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert_eq!(
        witness.messages.iter().filter(|text| text.contains("online kNN")).count(),
        2,
        "{:?}",
        witness.messages
    );
    let data = image_folder(&temp.path().join("u"), 60, false);
    let folder = RunFolder::create(&temp.path().join("without")).unwrap();
    let (outcome, witness) = run(&config(&["train.epochs=1"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert!(!witness.messages.iter().any(|text| text.contains("online kNN")));
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_all_damaged_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.checkpoint_minutes=0", "train.epochs=2"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    finish(&config, &data, &folder);
    let files = folder.checkpoint_files().unwrap();
    assert_eq!(files.len(), 2, "keep_checkpoints");
    let expected = newest(&folder);
    let bytes = fs_err::read(&files[1]).unwrap();
    fs_err::write(&files[1], &bytes[..bytes.len() / 2]).unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, witness) = run(&config, &data, &folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(witness.messages.iter().any(|text| text.starts_with("passed over")), "{:?}", witness.messages);
    same_tensors(&expected, &newest(&folder));
    for file in folder.checkpoint_files().unwrap() {
        fs_err::write(file, b"garbage").unwrap();
    }
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Damaged { .. })), "{error}");
}

#[test]
fn another_runs_checkpoint_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    finish(&config(&["train.epochs=1"]), &data, &folder);
    let stop = AtomicBool::new(false);
    let error = run(&config(&["train.epochs=1", "head.out=32", "train.seed=9"]), &data, &folder, None, &stop)
        .0
        .unwrap_err();
    assert!(error.to_string().contains("head.out was 16, is 32; train.seed was 0, is 9"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_the_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    let config = config(&["optim.kind=sgd", "optim.lr=1e38", "optim.schedule=constant", "head.norm=none"]);
    let (outcome, witness) = run(&config, &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, dump, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!(what, "the loss");
    assert_eq!(witness.reports.len() as u64, step, "steps before it were reported, this one was not");
    let names = fs_err::read_to_string(dump).unwrap();
    assert_eq!(names.lines().count(), 16);
    assert!(names.lines().all(|name| data.join(name).is_file()), "{names}");
    assert_eq!(folder.checkpoint_files().unwrap().len(), 0, "broken weights are not saved");
}

#[test]
fn a_gradient_that_is_no_number_stops_the_run_too() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    // Logits of 1e30 still have a finite loss; the squares of its gradient overflow. A power of two divides without
    // rounding, so that similarities this far up stay symmetric.
    let (outcome, witness) =
        run(&config(&["loss.temperature=7.888609052210118e-31"]), &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, value, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!((what, step, witness.reports.len()), ("the gradient's norm", 0, 0), "{value}");
}

/// One step of an absurd length from finite weights: the weights overflow after a loss and a gradient that were fine, and
/// the checkpoint that is due must not replace the good one.
#[test]
fn weights_that_overflow_are_not_saved() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let more = ["optim.kind=sgd", "optim.lr=1e300", "train.epochs=3", "train.checkpoint_minutes=0"];
    let config = config(&[&more[..], &["optim.warmup_epochs=1"]].concat());
    let stop = AtomicBool::new(false);
    let (outcome, witness) = run(&config, &data, &folder, None, &stop);
    let TrainError::NonFinite { what, step, dump, .. } = outcome.unwrap_err() else {
        panic!("expected NonFinite")
    };
    assert_eq!(
        (what, step, witness.reports.len()),
        ("a weight", 1, 2),
        "step 0 has lr 0, step 1 breaks the weights"
    );
    assert_eq!(fs_err::read_to_string(dump).unwrap().lines().count(), 16);
    assert_eq!(folder.checkpoint_files().unwrap(), [folder.checkpoint_file(1)]);
    assert_eq!(newest(&folder).sections["state"]["step"], 1);
}

#[test]
fn a_damaged_newest_checkpoint_does_not_push_out_a_good_one() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.checkpoint_minutes=0", "train.epochs=4", "train.keep_checkpoints=1"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &folder, Some(2), &stop).0.unwrap(), Outcome::Stopped);
    let killed = folder.checkpoints().join(".partial-abc");
    for path in [&folder.checkpoint_file(7), &killed] {
        fs_err::write(path, b"cut").unwrap();
    }
    let stop = AtomicBool::new(false);
    assert_eq!(run(&config, &data, &folder, Some(4), &stop).0.unwrap(), Outcome::Stopped);
    assert_eq!(newest(&folder).sections["state"]["step"], 5);
    assert!(!killed.exists(), "what a killed process left is gone");
    finish(&config, &data, &folder);
    assert_eq!(folder.checkpoint_files().unwrap(), [folder.checkpoint_file(8)]);
}

#[test]
fn other_images_are_another_run() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let config = config(&["train.epochs=2"]);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    run(&config, &data, &folder, Some(1), &stop).0.unwrap();
    fs_err::write(data.join("0040.bmp"), bitmap(40, 0)).unwrap();
    let before = fs_err::read(folder.checkpoint_file(2)).unwrap();
    let stop = AtomicBool::new(false);
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Mismatch { .. })), "{error}");
    assert!(error.to_string().contains("40 images") && error.to_string().contains("41 images"), "{error}");
    assert!(before == fs_err::read(folder.checkpoint_file(2)).unwrap());
    // The same images in another place are the same run.
    let moved = temp.path().join("moved");
    fs_err::remove_file(data.join("0040.bmp")).unwrap();
    fs_err::rename(&data, &moved).unwrap();
    finish(&config, &moved, &folder);
}

#[test]
fn a_change_that_costs_the_last_bits_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let stop = AtomicBool::new(false);
    run(&config(&[]), &data, &folder, Some(1), &stop).0.unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, witness) = run(&config(&["train.threads=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert!(
        witness.messages.iter().any(|text| text.contains("threads changed from 1 to 2")),
        "{:?}",
        witness.messages
    );
}

/// LARS in bf16 on a set with an image that cannot be read, stopped in the middle of an epoch and at the end of one.
#[test]
fn resuming_is_exact_in_bf16_with_lars_and_bad_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    fs_err::write(data.join("class-1/0001.bmp"), b"BM, but no bitmap").unwrap();
    let config = config(&[
        "optim.kind=lars",
        "optim.lr=0.3",
        "optim.warmup_epochs=1",
        "train.precision=bf16",
        "data.max_bad_share=0.1",
    ]);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    finish(&config, &data, &whole);
    let parted = RunFolder::create(&temp.path().join("parted")).unwrap();
    for last in [1, 3, 8] {
        let stop = AtomicBool::new(false);
        assert_eq!(run(&config, &data, &parted, Some(last), &stop).0.unwrap(), Outcome::Stopped);
    }
    finish(&config, &data, &parted);
    same_tensors(&newest(&whole), &newest(&parted));
    assert_eq!(
        fs_err::read_to_string(parted.bad_files()).unwrap().lines().count(),
        1,
        "named once in four starts"
    );
    let events = fs_err::read_dir(parted.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 4, "each start has an event file of its own");
}

#[test]
fn images_that_cannot_be_read_are_named_and_skipped() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 64, false);
    fs_err::write(data.join("0003.bmp"), b"BM, but no bitmap").unwrap();
    let stop = AtomicBool::new(false);
    let folder = RunFolder::create(&temp.path().join("a")).unwrap();
    let (outcome, witness) =
        run(&config(&["data.max_bad_share=0.01", "train.epochs=2"]), &data, &folder, None, &stop);
    outcome.unwrap();
    assert_eq!(
        witness.messages.iter().filter(|text| text.starts_with("skipped")).count(),
        1,
        "{:?}",
        witness.messages
    );
    let list = fs_err::read_to_string(folder.bad_files()).unwrap();
    assert!(list.starts_with("0003.bmp\t") && list.lines().count() == 1, "{list}");
    let folder = RunFolder::create(&temp.path().join("b")).unwrap();
    let error = run(&config(&["data.max_bad_share=0"]), &data, &folder, None, &stop).0.unwrap_err();
    assert!(error.to_string().contains("1 of 64 images"), "{error}");
    let list = fs_err::read_to_string(folder.bad_files()).unwrap();
    assert!(list.starts_with("0003.bmp\t"), "the image that ended the run is listed too: {list}");
}

#[test]
fn the_run_folder_archives_configuration_plan_and_versions() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, true);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let config = config(&["train.epochs=1"]);
    finish(&config, &data, &folder);
    let mut read_back = RunConfig::load(Some(&folder.config_file()), &[]).unwrap();
    assert_eq!(read_back.data.path.take(), Some(data.canonicalize().unwrap()));
    assert_eq!(read_back.data.range, RangeChoice::Set(ValueRange::Full), "as it was found");
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
    assert!(matches!(RunFolder::create(&path), Err(TrainError::RunFolder { .. })));
}

fn metrics(folder: &RunFolder) -> Vec<serde_json::Value> {
    let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Learning rates of `metrics.jsonl` against linear scaling, warm-up and cosine written out; the same numbers are printed at start.
#[test]
fn recorded_learning_rates_follow_warm_up_and_cosine_per_step() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, false);
    let folder = RunFolder::create(&temp.path().join("run")).unwrap();
    let more = ["optim.kind=lars", "optim.lr=1.6", "optim.scaling=linear", "optim.warmup_epochs=1"];
    let stop = AtomicBool::new(false);
    let config = config(&[&more[..], &["train.health_every=4"]].concat());
    let (outcome, witness) = run(&config, &data, &folder, None, &stop);
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
        assert_eq!(line["accuracy_of"], "contrastive", "the pretext task's accuracy is not a classifier's");
        assert!(line["gradient_norm"].as_f64().unwrap() > 0.0);
        let ratios = &line["trust_ratio"];
        assert_eq!(ratios.is_array(), step % 4 == 3, "step {step}: {ratios}");
        if let Some([least, most]) = ratios.as_array().map(Vec::as_slice) {
            assert!(0.0 < least.as_f64().unwrap() && least.as_f64() <= most.as_f64(), "{ratios}");
        }
    }
    let fact = |name: &str| &witness.facts.iter().find(|(found, _)| found == name).unwrap().1;
    let rate = fact("learning rate");
    assert_eq!(rate, "lars, 1.6 x 16 / 256 = 0.1 after 4 steps of warm-up, then cosine to 0");
    assert!(fact("recipe").starts_with("differs from SimCLR"), "{}", fact("recipe"));
}

/// Under LARS the classifier's weight starts at zero. Adapted, it would grow by a share of itself at a time and fit nothing; the
/// official code trains it by momentum SGD (tf2/model.py `build_optimizer`).
#[test]
fn a_supervised_run_under_lars_fits_its_training_images() {
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

#[test]
fn a_run_is_not_resumed_on_images_that_have_changed() {
    let root = tempfile::tempdir().unwrap();
    let data = image_folder(root.path(), 40, true);
    let folder = RunFolder::create(&root.path().join("run")).unwrap();
    let (config, stop) = (config(&[]), AtomicBool::new(false));
    finish(&config, &data, &folder);
    let image = data.join("class-1/0005.bmp");
    // As a copy of the folder leaves it.
    fs_err::write(&image, bitmap(5, 1)).unwrap();
    finish(&config, &data, &folder);
    let mut changed = bitmap(5, 1);
    *changed.last_mut().unwrap() ^= 1;
    fs_err::write(&image, &changed).unwrap();
    let before = fs_err::read(folder.images_file()).unwrap();
    let error = run(&config, &data, &folder, None, &stop).0.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Images { .. })), "{error}");
    let (text, hint) = (error.to_string(), error.hint().unwrap());
    assert!(text.contains("1 of 40 images (`class-1/0005.bmp`)"), "{text}");
    assert!(hint.contains("put the images back"), "{hint}");
    assert!(before == fs_err::read(folder.images_file()).unwrap(), "the record of the run's images is kept");
    fs_err::write(&image, bitmap(5, 1)).unwrap();
    finish(&config, &data, &folder);
}

#[test]
fn a_run_without_a_record_of_its_images_is_resumed_with_a_note() {
    let root = tempfile::tempdir().unwrap();
    let data = image_folder(root.path(), 40, true);
    let folder = RunFolder::create(&root.path().join("run")).unwrap();
    let (config, stop) = (config(&[]), AtomicBool::new(false));
    finish(&config, &data, &folder);
    fs_err::remove_file(folder.images_file()).unwrap();
    let (outcome, witness) = run(&config, &data, &folder, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(witness.messages.iter().any(|text| text.starts_with("not checked")), "{:?}", witness.messages);
}
