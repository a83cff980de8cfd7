//! `train.read_loss`: records are written a step later, with the same values.

use std::sync::atomic::AtomicBool;

use serde_json::Value;
use simclr::{
    TrainError,
    train::{Outcome, RunFolder},
};

use crate::{config, finish, image_folder, newest, run, same_tensors};

/// The lines of `metrics.jsonl` without measured times.
fn metrics(folder: &RunFolder) -> Vec<Value> {
    let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let object = value.as_object_mut().unwrap();
        for measured in ["time", "images_per_second", "data_wait"] {
            object.remove(measured);
        }
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn a_loss_read_a_step_later_changes_no_record_and_no_weight() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    // Steps with online kNN, every 4, and with health, every 5, are waited for; the others are deferred.
    let [each, next] = ["each-step", "next-step"].map(|when| {
        let folder = RunFolder::create(&temp.path().join(when)).unwrap();
        let read = format!("train.read_loss={when}");
        assert_eq!(finish(&config(&[&read]), &data, &folder).len(), 12);
        folder
    });
    same_tensors(&newest(&each), &newest(&next));
    let lines = metrics(&each);
    assert_eq!(lines.len(), 12 + 3 + 3, "steps, health and online kNN");
    assert!(lines == metrics(&next));
}

/// The observer stops the run at the report of step 5. That comes after step 6 has been launched, so the run stops one step later than
/// with `each-step`; resumed, it ends as the uninterrupted run.
#[test]
fn a_stopped_run_with_late_reports_resumes_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    let late = config(&["train.read_loss=next-step"]);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    finish(&late, &data, &whole);
    for (when, steps_done) in [("each-step", 6), ("next-step", 7)] {
        let folder = RunFolder::create(&temp.path().join(when)).unwrap();
        let read = config(&[&format!("train.read_loss={when}")]);
        let stop = AtomicBool::new(false);
        let (outcome, recorder) = run(&read, &data, &folder, Some(5), &stop);
        assert_eq!(outcome.unwrap(), Outcome::Stopped);
        assert_eq!(newest(&folder).sections["state"]["step"], steps_done, "{when}");
        assert_eq!(recorder.reports.len(), steps_done, "every step up to the checkpoint is reported");
        finish(&read, &data, &folder);
        same_tensors(&newest(&whole), &newest(&folder));
        assert!(metrics(&whole) == metrics(&folder), "{when}");
    }
}

#[test]
fn a_non_finite_loss_read_late_names_its_own_step_and_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let [each, next] = ["each-step", "next-step"].map(|when| {
        let folder = RunFolder::create(&temp.path().join(when)).unwrap();
        let read = format!("train.read_loss={when}");
        let diverges =
            ["optim.kind=sgd", "optim.lr=1e38", "optim.schedule=constant", "head.norm=none", &read];
        let stop = AtomicBool::new(false);
        let (outcome, recorder) = run(&config(&diverges), &data, &folder, None, &stop);
        let TrainError::NonFinite { what, step, dump, .. } = outcome.unwrap_err() else {
            panic!("expected NonFinite")
        };
        assert_eq!((what, recorder.reports.len() as u64), ("the loss", step), "{when}");
        assert_eq!(folder.checkpoint_files().unwrap().len(), 0, "non-finite weights are not saved");
        (step, fs_err::read_to_string(dump).unwrap())
    });
    assert_eq!(each, next);
}

/// A loader that fails leaves the records of all steps before it.
#[test]
fn a_failed_launch_records_the_step_before_it() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, false);
    let [each, next] = ["each-step", "next-step"].map(|when| {
        let folder = RunFolder::create(&temp.path().join(when)).unwrap();
        fs_err::write(data.join("0050.bmp"), b"BMnot a bitmap").unwrap();
        let read = format!("train.read_loss={when}");
        let broken = config(&[&read, "data.max_bad_share=0", "train.health_every=1000"]);
        let stop = AtomicBool::new(false);
        let (outcome, _) = run(&broken, &data, &folder, None, &stop);
        outcome.unwrap_err();
        metrics(&folder)
    });
    assert!(!each.is_empty(), "the bad image is not in the first batch");
    assert_eq!(each, next);
}
