//! A run and a labelled folder to results: which rows and cells there are, and that they say what they rest on.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use simclr::{
    EvalError,
    eval::{
        protocol::{EvalOptions, evaluate},
        results::Results,
    },
    train::{Observer, Silent},
};

use std::sync::atomic::AtomicBool;

mod fixtures;

/// Keeps what is said.
#[derive(Default)]
struct Stages(Vec<String>);

impl Observer for Stages {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn options() -> EvalOptions {
    EvalOptions { shares: vec![0.1, 1.0], draws: 3, batch: 16, threads: 1, ..EvalOptions::default() }
}

#[test]
fn every_row_is_measured_and_the_file_holds_what_the_table_shows() {
    let _generator = fixtures::generator();
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data.join("train"), 30);
    fixtures::images(&data.join("test"), 10);
    fs_err::write(data.join("train/low/999.png"), b"not an image").unwrap();
    let mut stages = Stages::default();
    let results = evaluate(&run, &data, &options(), &mut stages, &AtomicBool::new(false)).unwrap();
    let names: Vec<_> = results.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["trained h", "random-init h", "raw pixels", "chance"]);
    let raw = results.row("raw pixels").unwrap();
    assert_eq!(
        (raw.dimensions, raw.knn.as_ref().unwrap().mean, raw.by_labels[1].mean),
        (768, 1.0, 1.0),
        "the classes are told by pixels"
    );
    assert_eq!(
        (raw.by_labels[0].labels, raw.by_labels[0].accuracies.len(), raw.by_labels[0].lambdas.len()),
        (6, 3, 3)
    );
    assert_eq!((raw.by_labels[1].labels, raw.by_labels[1].accuracies.len()), (60, 1));
    assert_eq!(results.row("chance").unwrap().knn.as_ref().unwrap().mean, 0.5);
    assert_eq!((results.data.train_images, results.data.test_images, results.data.bad.len()), (60, 20, 1));
    assert_eq!((results.run.step, results.protocol.knn_k), (7, 20));
    assert!(results.notes.iter().any(|note| note.contains("step 7 of 9")), "{:?}", results.notes);
    let stored: Results = serde_json::from_slice(&fs_err::read(run.results_file()).unwrap()).unwrap();
    assert_eq!(stored, results);
    let table = results.table();
    assert!(
        table.contains("10 % of labels (6)") && table.contains("100.0") && table.contains("note: "),
        "{table}"
    );
    assert!(stages.0.iter().any(|stage| stage.contains("linear")));
}

#[test]
fn the_same_seed_gives_the_same_results_and_a_missing_test_split_is_held_out() {
    let _generator = fixtures::generator();
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 30);
    let measure = || evaluate(&run, &data, &options(), &mut Silent, &AtomicBool::new(false)).unwrap();
    let results = measure();
    assert_eq!((results.data.train_images, results.data.test_images), (48, 12));
    assert_eq!(results.data.test_fingerprint, None);
    assert!(results.notes.iter().any(|note| note.contains("no test split")));
    assert_eq!(results, measure());
}

#[test]
fn images_without_labels_are_refused() {
    let _generator = fixtures::generator();
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 10);
    let go_on = AtomicBool::new(false);
    let error = evaluate(&run, &data.join("low"), &options(), &mut Silent, &go_on).unwrap_err();
    assert!(matches!(error, EvalError::Labels { .. }), "{error}");
    let wrong = EvalOptions { shares: vec![0.0], ..options() };
    let error = evaluate(&run, &data, &wrong, &mut Silent, &go_on).unwrap_err();
    assert!(error.to_string().contains("shares"), "{error}");
    let error = evaluate(&run, &data, &options(), &mut Silent, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, EvalError::Stopped), "{error}");
    assert!(!run.results_file().exists());
}
