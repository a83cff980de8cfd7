//! What changes with the progress of a run: sides of the views, learning rate; and its length under a time budget.

use std::sync::atomic::AtomicBool;

use simclr::{
    RunConfig,
    train::{Outcome, RunFolder},
};

use crate::{config, finish, image_folder, newest, run, same_tensors};

const LEVERS: [&str; 6] = [
    "train.view_sizes=[[0.0,12],[0.5,16],[0.8,20]]",
    "optim.kind=muon",
    "optim.momentum=0.95",
    "optim.nesterov=true",
    "optim.schedule=stable-decay",
    "optim.decay_share=0.5",
];

#[test]
fn resumed_run_equals_uninterrupted_run_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, true);
    let config = config(&LEVERS);
    let whole = RunFolder::create(&temp.path().join("whole")).unwrap();
    let stop = AtomicBool::new(false);
    let (outcome, recorder) = run(&config, &data, &whole, None, &stop);
    assert_eq!((outcome.unwrap(), recorder.reports.len()), (Outcome::Finished, 12));
    let sizes = recorder.facts.iter().find(|(name, _)| name == "views").unwrap();
    assert_eq!(sizes.1, "12 px from step 0, 16 px from step 6, 20 px from step 10");
    let rates: Vec<f64> = recorder.reports.iter().map(|report| report.lr / 3e-3).collect();
    let expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0 / 6.0, 4.0 / 6.0, 0.5, 2.0 / 6.0, 1.0 / 6.0];
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");

    // Within a size and at the steps around its change.
    for stop_after in [3, 5, 6] {
        let resumed = RunFolder::create(&temp.path().join(format!("resumed-{stop_after}"))).unwrap();
        let stop = AtomicBool::new(false);
        assert_eq!(run(&config, &data, &resumed, Some(stop_after), &stop).0.unwrap(), Outcome::Stopped);
        finish(&config, &data, &resumed);
        same_tensors(&newest(&whole), &newest(&resumed));
    }
}

#[test]
fn the_side_of_the_views_changes_the_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 40, false);
    let weights = |name: &str, more: &[&str]| {
        let folder = RunFolder::create(&temp.path().join(name)).unwrap();
        finish(&config(more), &data, &folder);
        newest(&folder)
    };
    let constant = weights("constant", &[]);
    same_tensors(&constant, &weights("same", &["train.view_sizes=[[0.0,16]]"]));
    let changed = weights("changed", &["train.view_sizes=[[0.5,12]]"]);
    let name = "encoder.conv1.weight";
    assert_ne!(constant.tensor(name, &[8, 3, 3, 3]).unwrap(), changed.tensor(name, &[8, 3, 3, 3]).unwrap());
}

/// The number of steps is measured once and stored, so that a repeat with the stored configuration is the same run.
#[test]
fn a_time_budget_becomes_a_stored_number_of_epochs() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(temp.path(), 70, false);
    let budgeted = RunFolder::create(&temp.path().join("budgeted")).unwrap();
    let stop = AtomicBool::new(false);
    let config = config(&["train.minutes=0.12", "train.view_sizes=[[0.0,12]]"]);
    let (outcome, recorder) = run(&config, &data, &budgeted, None, &stop);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(recorder.facts.iter().any(|(name, text)| name == "time" && text.contains("ms at 12 px")));
    let stored = RunConfig::load(Some(&budgeted.config_file()), &[]).unwrap();
    assert_eq!(stored.train.minutes, 0.0);
    assert_ne!(stored.train.epochs, config.train.epochs);
    assert_eq!(recorder.reports.len() as f64, (4.0 * stored.train.epochs).round(), "4 steps an epoch");

    let repeated = RunFolder::create(&temp.path().join("repeated")).unwrap();
    finish(&stored, &data, &repeated);
    same_tensors(&newest(&budgeted), &newest(&repeated));
}
