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
    assert_eq!((raw.knn_plain.as_ref().unwrap().mean, raw.by_labels[0].predictions.len()), (1.0, 3));
    assert!(raw.by_labels[0].predictions.iter().all(|file| run.path().join(file).is_file()));
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

/// Counts what is computed: a piece of images read, or a figure.
#[derive(Default)]
struct Work(usize);

impl Observer for Work {
    fn progress(&mut self, what: &str, _: usize, _: usize) {
        self.0 += usize::from(what.starts_with("features"));
    }
}

/// What is known is neither read nor computed again, whatever a repeated evaluation adds; `fresh` forgets it.
#[test]
fn a_repeated_evaluation_reads_nothing_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 30);
    fs_err::write(data.join("low/999.png"), b"not an image").unwrap();
    let go_on = AtomicBool::new(false);
    let measure = |options: &EvalOptions| {
        let mut work = Work::default();
        let results = evaluate(&run, &data, options, &mut work, &go_on).unwrap();
        (results, work.0)
    };
    let (first, read) = measure(&options());
    assert!(read > 0);
    assert!(!run.path().join("evaluation/features").exists(), "all that rests on the features is known");
    assert_eq!(measure(&options()), (first.clone(), 0));
    let (more, read) = measure(&EvalOptions { shares: vec![0.1, 0.5, 1.0], ..options() });
    assert!(read > 0, "another share needs features");
    assert_eq!(
        (&more.rows[0].by_labels[0], &more.rows[0].knn),
        (&first.rows[0].by_labels[0], &first.rows[0].knn)
    );
    let (again, read) = measure(&EvalOptions { fresh: true, ..options() });
    assert!(read > 0 && again == first);
}

/// Weights that changed under the same name are other features: nothing old is taken for them.
#[test]
fn figures_of_other_weights_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 30);
    let go_on = AtomicBool::new(false);
    evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap();
    let path = &run.checkpoint_files().unwrap()[0];
    let mut checkpoint = simclr::checkpoint::Checkpoint::load(path).unwrap();
    let (name, _) = model.params.named().find(|(name, _)| name.ends_with("running_mean")).unwrap();
    let shifted = &checkpoint.tensors[name] + 0.5;
    checkpoint.tensors.insert(name.to_owned(), shifted);
    checkpoint.save(path).unwrap();
    let mut work = Work::default();
    evaluate(&run, &data, &options(), &mut work, &go_on).unwrap();
    assert!(work.0 > 0);
}
