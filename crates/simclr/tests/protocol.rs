//! Results of the frozen protocols: rows, cells, caching and notes.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use simclr::{
    EvalError,
    eval::{
        EvalConfig, evaluate,
        features::{ReadOptions, features, label_tensor, load_encoder},
        layer::Layer,
        report::results::Results,
    },
    knn::{accuracy, knn_predict},
    train::{Observer, Silent},
};

use std::sync::atomic::AtomicBool;

mod fixtures;

/// Collects messages.
#[derive(Default)]
struct Messages(Vec<String>);

impl Observer for Messages {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn options() -> EvalConfig {
    EvalConfig { label_fractions: vec![0.1, 1.0], draws: 3, batch: 16, threads: 1, ..EvalConfig::default() }
}

#[test]
fn every_row_is_in_results_json_and_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data.join("train"), 30);
    fixtures::images(&data.join("test"), 10);
    fs_err::write(data.join("train/low/999.png"), b"not an image").unwrap();
    let mut messages = Messages::default();
    let results = evaluate(&run, &data, &options(), &mut messages, &AtomicBool::new(false)).unwrap();
    let names: Vec<_> = results.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["trained h", "random-init h", "raw pixels", "chance"]);
    let raw = results.row("raw pixels").unwrap();
    assert_eq!(
        (raw.dimensions, raw.knn.as_ref().unwrap().mean, raw.by_labels[1].mean),
        (768, 1.0, 1.0),
        "pixels separate the classes"
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
    assert!(messages.0.iter().any(|text| text.contains("linear")));
}

#[test]
fn results_are_reproducible_and_a_missing_test_split_is_held_out() {
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
fn missing_labels_and_wrong_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 10);
    let go_on = AtomicBool::new(false);
    let error = evaluate(&run, &data.join("low"), &options(), &mut Silent, &go_on).unwrap_err();
    assert!(matches!(error, EvalError::Labels { .. }), "{error}");
    let wrong = EvalConfig { label_fractions: vec![0.0], ..options() };
    let error = evaluate(&run, &data, &wrong, &mut Silent, &go_on).unwrap_err();
    assert!(error.to_string().contains("shares"), "{error}");
    let error = evaluate(&run, &data, &options(), &mut Silent, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, EvalError::Stopped), "{error}");
    assert!(!run.results_file().exists());
}

/// Counts feature extractions.
#[derive(Default)]
struct Work(usize);

impl Observer for Work {
    fn progress(&mut self, what: &str, _: usize, _: usize) {
        self.0 += usize::from(what.starts_with("features"));
    }
}

/// Cached figures are neither read nor computed again, whatever a repeated evaluation adds; `fresh` discards them.
#[test]
fn a_repeated_evaluation_uses_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 30);
    fs_err::write(data.join("low/999.png"), b"not an image").unwrap();
    let go_on = AtomicBool::new(false);
    let measure = |options: &EvalConfig| {
        let mut work = Work::default();
        let results = evaluate(&run, &data, options, &mut work, &go_on).unwrap();
        (results, work.0)
    };
    let (first, read) = measure(&options());
    assert!(read > 0);
    assert!(!run.path().join("evaluation/features").exists(), "all figures are cached");
    assert_eq!(measure(&options()), (first.clone(), 0));
    let (more, read) = measure(&EvalConfig { label_fractions: vec![0.1, 0.5, 1.0], ..options() });
    assert!(read > 0, "another fraction needs features");
    assert_eq!(
        (&more.rows[0].by_labels[0], &more.rows[0].knn),
        (&first.rows[0].by_labels[0], &first.rows[0].knn)
    );
    let (again, read) = measure(&EvalConfig { fresh: true, ..options() });
    assert!(read > 0 && again == first);
}

/// Lists of labels may be those that an earlier evaluation wrote: `fresh` neither deletes nor replaces them.
#[test]
fn listed_labels_survive_a_fresh_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 30);
    let go_on = AtomicBool::new(false);
    evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap();
    let draw = |number: usize| run.path().join(format!("evaluation/labels/10pct-{number}.txt"));
    let read = |number: usize| fs_err::read_to_string(draw(number)).unwrap();
    let before = [read(0), read(1)];
    let listed = |lists| EvalConfig { label_lists: lists, fresh: true, ..options() };
    let results = evaluate(&run, &data, &listed(vec![draw(1), draw(0)]), &mut Silent, &go_on).unwrap();
    assert_eq!(results.rows[0].by_labels[0].accuracies.len(), 2);
    assert_eq!([read(0), read(1)], before);
    assert!(!draw(2).exists(), "the rest is discarded");
    let wrong = folder.path().join("wrong.txt");
    fs_err::write(&wrong, "light/999.png\n").unwrap();
    let error = evaluate(&run, &data, &listed(vec![draw(0), wrong]), &mut Silent, &go_on).unwrap_err();
    assert!(error.to_string().contains("999.png"), "{error}");
    assert!(run.path().join("evaluation/figures").exists(), "nothing is deleted before lists are read");
}

#[test]
fn figures_of_other_weights_are_not_reused() {
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

/// h is independent of the other layers; the kNN figure of z equals one computed here from the head's output.
#[test]
fn every_layer_has_a_row_and_its_control() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data.join("train"), 30);
    fixtures::images(&data.join("test"), 10);
    let go_on = AtomicBool::new(false);
    let h = evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap();
    let layers = vec![Layer::Z, Layer::H, Layer::Head(1), Layer::Head(2)];
    let all = EvalConfig { layers, ..options() };
    let results = evaluate(&run, &data, &all, &mut Silent, &go_on).unwrap();
    let names: Vec<_> = results.rows.iter().map(|row| (row.name.as_str(), row.dimensions)).collect();
    let width = h.rows[0].dimensions;
    let expected = [("z", 128), ("h", width), ("head.1", width), ("head.2", 128)];
    for (at, (layer, width)) in expected.iter().enumerate() {
        assert_eq!(names[at], (&format!("trained {layer}")[..], *width));
        assert_eq!(names[4 + at], (&format!("random-init {layer}")[..], *width));
    }
    assert_eq!((names[8].0, names[9].0, names.len()), ("raw pixels", "chance", 10));
    let row = |name: &str| results.row(name).unwrap();
    assert_eq!(row("trained h"), h.row("trained h").unwrap());
    assert_eq!(row("random-init h"), h.row("random-init h").unwrap());
    assert_eq!(row("trained z").knn.as_ref().unwrap().mean, row("trained head.2").knn.as_ref().unwrap().mean);
    let frozen = load_encoder(&run).unwrap();
    let read = |part: &str| {
        let split = if part == "train" { simclr::data::Split::Train } else { simclr::data::Split::Test };
        let set =
            simclr::data::Dataset::open(&data, split, simclr::data::dataset::Channels::Count(3)).unwrap();
        let indices: Vec<usize> = (0..set.len()).collect();
        let h = features(&frozen, &set, &indices, &ReadOptions::of(&frozen, 16, 1), &mut |_, _| {}).unwrap();
        let labels: Vec<i64> = set.labels().unwrap().into_iter().map(i64::from).collect();
        let z =
            model.head.forward(&h.features[0], &simclr::encoder::Mode::Eval, simclr::device::Precision::F32);
        (z.unwrap().detach(), label_tensor(&labels, &indices))
    };
    let ((bank, labels), (queries, truth)) = (read("train"), read("test"));
    let by_hand = accuracy(&knn_predict(&bank, &labels, &queries, 2, 20, Some(0.1)), &truth);
    assert_eq!(row("trained z").knn.as_ref().unwrap().mean, by_hand);
}

#[test]
fn missing_layers_are_refused_with_the_range() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data, 10);
    let refused = |layers| {
        let wrong = EvalConfig { layers, ..options() };
        let error = evaluate(&run, &data, &wrong, &mut Silent, &AtomicBool::new(false)).unwrap_err();
        assert!(!run.results_file().exists());
        error.to_string()
    };
    let error = refused(vec![Layer::H, Layer::Head(3)]);
    assert!(error.contains("`head.3`: the head has 2 layers; expected head.1 to head.2"), "{error}");
    assert!(refused(vec![Layer::H, Layer::H]).contains("each of them once"));
    assert!(refused(Vec::new()).contains("at least one layer"));
}

/// With 10 images of each class, 1 % and 10 % are both 1 label per class.
#[test]
fn columns_are_labels_per_class_on_request_or_if_fractions_coincide() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data.join("train"), 10);
    fixtures::images(&data.join("test"), 5);
    let go_on = AtomicBool::new(false);
    let default = EvalConfig { draws: 2, batch: 16, threads: 1, ..EvalConfig::default() };
    let results = evaluate(&run, &data, &default, &mut Silent, &go_on).unwrap();
    let columns = |results: &Results| {
        let cells = results.rows.iter().map(|row| {
            row.by_labels
                .iter()
                .map(|cell| (cell.shots, cell.labels, cell.accuracies.len()))
                .collect::<Vec<_>>()
        });
        cells.collect::<Vec<_>>()
    };
    let expected = [(Some(1), 2, 2), (Some(5), 10, 2), (None, 20, 1)];
    assert!(columns(&results)[..3].iter().all(|row| row == &expected), "{:?}", columns(&results));
    assert!(results.notes.iter().any(|note| note.contains("1 % and 10 % of the labels are all 1 per class")));
    assert!(results.table().contains("5 per class (10)"), "{}", results.table());
    assert!(run.path().join("evaluation/labels/5-per-class-1.txt").is_file());
    let requested = EvalConfig { label_fractions: vec![1.0], labels_per_class: vec![3], ..default.clone() };
    let results = evaluate(&run, &data, &requested, &mut Silent, &go_on).unwrap();
    assert_eq!(columns(&results)[0], [(Some(3), 6, 2), (None, 20, 1)]);
    let many = EvalConfig { labels_per_class: vec![10], ..requested };
    let error = evaluate(&run, &data, &many, &mut Silent, &go_on).unwrap_err().to_string();
    assert!(error.contains("10 labels per class: expected fewer than the 10 images"), "{error}");
}

/// With two classes the trained rows include the area under the ROC curve; a class without test images is noted.
#[test]
fn trained_rows_have_figures_by_class() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let data = folder.path().join("data");
    fixtures::images(&data.join("train"), 30);
    fixtures::images(&data.join("test"), 10);
    let go_on = AtomicBool::new(false);
    let results = evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap();
    let row = &results.rows[0];
    let names: Vec<_> = row.per_class.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["kNN", "linear"]);
    assert!(results.rows[1..].iter().all(|row| row.per_class.is_empty()));
    for ((_, found), mean) in
        row.per_class.iter().zip([row.knn.as_ref().unwrap().mean, row.at(1.0).unwrap().mean])
    {
        let matrix = found.confusion.as_ref().unwrap();
        assert_eq!(matrix.iter().flatten().sum::<u64>(), 20);
        assert!(((matrix[0][0] + matrix[1][1]) as f64 / 20.0 - mean).abs() < 1e-12);
        assert!((found.balanced_accuracy - mean).abs() < 1e-12, "classes are equally large");
        assert!(found.auroc.is_some_and(|area| (0.0..=1.0).contains(&area)));
        assert_eq!(found.classes.iter().map(|class| class.images).collect::<Vec<_>>(), [10, 10]);
    }
    let table = results.table();
    assert!(
        table.contains("linear on trained h, all labels: balanced accuracy") && table.contains("AUROC"),
        "{table}"
    );
    // The cached figures give the same results.
    assert_eq!(evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap(), results);
    let third = data.join("train/other");
    fs_err::create_dir_all(&third).unwrap();
    for number in 0..30 {
        let name = format!("{number:03}.png");
        fs_err::copy(data.join("train/low").join(&name), third.join(&name)).unwrap();
    }
    let results = evaluate(&run, &data, &options(), &mut Silent, &go_on).unwrap();
    let (_, found) = &results.rows[0].per_class[0];
    assert_eq!(
        (found.classes[2].name.as_str(), found.classes[2].images, found.classes[2].recall),
        ("other", 0, None)
    );
    assert_eq!(found.auroc, None, "three classes");
    let note = |note: &String| note == "classes without test images, which have no recall: `other`";
    assert!(results.notes.iter().any(note), "{:?}", results.notes);
}
