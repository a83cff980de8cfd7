//! A figure belongs to the weights, images and options at hand: what an evaluation takes from an earlier one, what it keeps,
//! and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::SystemTime,
};

use simclr::{
    EvalError, RunConfig,
    eval::{
        EvalConfig, evaluate,
        features::import::{check_imported, import},
        report::{compare::Comparison, results::Results},
    },
    train::{Observer, RunFolder, Silent},
};
use tch::Tensor;

mod fixtures;

fn options() -> EvalConfig {
    EvalConfig { label_fractions: vec![1.0], draws: 1, batch: 16, threads: 1, ..EvalConfig::default() }
}

fn run_evaluation(run: &RunFolder, data: &Path, options: &EvalConfig) -> Result<Results, EvalError> {
    evaluate(run, data, options, &mut Silent, &AtomicBool::new(false))
}

fn pixels_knn(results: &Results) -> f64 {
    results.row("raw pixels").unwrap().knn.as_ref().unwrap().mean
}

#[derive(Default)]
struct Messages(Vec<String>);

impl Observer for Messages {
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

/// 16x16 grey noise, bright in the upper or in the lower half.
fn grey(number: usize, top: bool) -> Vec<u8> {
    let noise = |at: usize| (((at * 31 + number * 101).wrapping_mul(2_654_435_761) >> 24) & 127) as u8;
    (0..256).map(|at| noise(at) + if (at < 128) == top { 120 } else { 0 }).collect()
}

/// An uncompressed image of `pixels`: files of one size whatever they show.
fn bitmap(path: &Path, pixels: &[u8]) {
    let mut bytes = b"BM".to_vec();
    bytes.extend((54u32 + 768).to_le_bytes());
    bytes.extend([0; 4]);
    [54u32, 40, 16, 16].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    // Rows from the bottom, as bitmaps have them.
    for row in pixels.chunks_exact(16).rev() {
        bytes.extend(row.iter().flat_map(|&value| [value; 3]));
    }
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, bytes).unwrap();
}

/// A training part of 20 and a test part of 5 images in each of two classes. `swapped`: the images of the test classes have
/// changed places, under the same names and sizes.
fn folder(data: &Path, swapped: bool) {
    for (part, count, offset) in [("train", 20, 0), ("test", 5, 500)] {
        for (class, top) in [("light", true), ("low", false)] {
            for number in 0..count {
                let shows = if part == "test" { top != swapped } else { top };
                bitmap(
                    &data.join(part).join(class).join(format!("{number}.bmp")),
                    &grey(number + offset, shows),
                );
            }
        }
    }
}

/// The same as IDX files.
fn idx(data: &Path, swapped: bool) {
    fs_err::create_dir_all(data).unwrap();
    let file = |name: &str, shape: &[u32], bytes: Vec<u8>| {
        let header =
            [0, 0, 8, shape.len() as u8].into_iter().chain(shape.iter().flat_map(|n| n.to_be_bytes()));
        fs_err::write(data.join(name), header.chain(bytes).collect::<Vec<_>>()).unwrap();
    };
    for (part, count, offset) in [("train", 40, 0), ("t10k", 10, 500)] {
        let swapped = swapped && part == "t10k";
        let image = |number: usize| grey(number + offset, number.is_multiple_of(2) != swapped);
        let labels = (0..count).map(|number| (number % 2) as u8).collect();
        let name = |kind: &str| format!("{part}-{kind}-ubyte");
        file(&name("images-idx3"), &[count as u32, 16, 16], (0..count).flat_map(image).collect());
        file(&name("labels-idx1"), &[count as u32], labels);
    }
}

fn figures(run: &RunFolder) -> Vec<(PathBuf, SystemTime)> {
    let files = fs_err::read_dir(run.path().join("evaluation/figures")).unwrap();
    let mut found: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
        .into_iter()
        .map(|path| (path.clone(), fs_err::metadata(&path).unwrap().modified().unwrap()))
        .collect()
}

#[test]
fn changed_images_with_the_same_names_and_sizes_are_evaluated_again() {
    for write in [folder, idx] {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("set");
        let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
        write(&data, false);
        let before = run_evaluation(&run, &data, &options()).unwrap();
        assert_eq!(pixels_knn(&before), 1.0);
        write(&data, true);
        let mut messages = Messages::default();
        let after = evaluate(&run, &data, &options(), &mut messages, &AtomicBool::new(false)).unwrap();
        assert_eq!(pixels_knn(&after), 0.0, "the figures are of the images of now");
        assert!(messages.0.iter().any(|text| text.starts_with("10 of 10 images (")), "{:?}", messages.0);
        assert_eq!(after.data.test_fingerprint, before.data.test_fingerprint);
        assert_ne!(after.data.test_content, before.data.test_content);
        assert_eq!(after.data.train_content, before.data.train_content);
        write(&data, false);
        assert_eq!(pixels_knn(&run_evaluation(&run, &data, &options()).unwrap()), 1.0);
    }
}

#[test]
fn copied_images_keep_their_figures() {
    for write in [folder, idx] {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("set");
        let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
        write(&data, false);
        let (before, known) = (run_evaluation(&run, &data, &options()).unwrap(), figures(&run));
        fs_err::remove_dir_all(&data).unwrap();
        write(&data, false);
        assert_eq!(run_evaluation(&run, &data, &options()).unwrap(), before);
        assert_eq!(figures(&run), known, "nothing is computed again");
    }
}

/// All results that a run keeps.
fn history(run: &RunFolder) -> Vec<Results> {
    let files = fs_err::read_dir(run.results_history()).unwrap();
    let read = |path: PathBuf| serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    files.map(|entry| read(entry.unwrap().path())).collect()
}

#[test]
fn each_set_and_configuration_has_separate_results() {
    let root = tempfile::tempdir().unwrap();
    let (one, other) = (root.path().join("one"), root.path().join("other"));
    folder(&one, false);
    fixtures::images(&other, 15);
    let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
    let on_one = run_evaluation(&run, &one, &options()).unwrap();
    let on_other = run_evaluation(&run, &other, &options()).unwrap();
    let with_k = run_evaluation(&run, &one, &EvalConfig { knn_k: 3, ..options() }).unwrap();
    assert_eq!(run_evaluation(&run, &one, &options()).unwrap(), on_one);
    let kept = history(&run);
    assert!(kept.len() == 3 && [&on_one, &on_other, &with_k].iter().all(|results| kept.contains(results)));
    assert_eq!((&on_one.options["knn_k"], &with_k.options["knn_k"]), (&0.into(), &3.into()));
    let newest: Results = serde_json::from_slice(&fs_err::read(run.results_file()).unwrap()).unwrap();
    assert_eq!(newest, on_one);
}

#[test]
fn results_of_earlier_versions_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("set");
    folder(&data, false);
    let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
    fs_err::write(run.results_file(), b"{\"schema\": 1}").unwrap();
    run_evaluation(&run, &data, &options()).unwrap();
    let files = fs_err::read_dir(run.results_history()).unwrap();
    let texts: Vec<_> = files.map(|entry| fs_err::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert!(texts.len() == 2 && texts.iter().any(|text| text == "{\"schema\": 1}"), "{texts:?}");
}

#[test]
fn runs_on_different_images_or_with_different_options_are_not_compared() {
    let root = tempfile::tempdir().unwrap();
    let (one, other) = (root.path().join("one"), root.path().join("other"));
    folder(&one, false);
    fixtures::images(&other, 15);
    let runs = ["a", "b"].map(|name| fixtures::run(&root.path().join(name), "conv-c3").0);
    let refused = |parts: &[&str]| {
        let error = Comparison::read(&runs).unwrap_err();
        assert!(matches!(error, EvalError::Mixed { .. }), "{error}");
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(error.hint().unwrap().contains("--data"), "{:?}", error.hint());
    };
    run_evaluation(&runs[0], &one, &options()).unwrap();
    let on_other = run_evaluation(&runs[1], &other, &options()).unwrap();
    refused(&["the images", "/one`", "/other`", &on_other.data.train_fingerprint]);
    assert!(Comparison::read_on(&runs, "one").unwrap_err().to_string().contains("no results on `one`"));
    run_evaluation(&runs[1], &one, &EvalConfig { knn_k: 3, ..options() }).unwrap();
    refused(&["knn_k: 20 and 3"]);
    // Of several results on a set, those that can be compared are.
    run_evaluation(&runs[0], &one, &EvalConfig { knn_k: 3, ..options() }).unwrap();
    run_evaluation(&runs[0], &other, &options()).unwrap();
    run_evaluation(&runs[1], &other, &options()).unwrap();
    for data in ["one", one.to_str().unwrap()] {
        let table = Comparison::read_on(&runs, data).unwrap().table();
        assert_eq!(table.lines().filter(|line| line.contains("   trained h   ")).count(), 2, "{table}");
    }
    let fingerprint = &on_other.data.train_fingerprint[..8];
    assert!(Comparison::read_on(&runs, fingerprint).is_ok() && Comparison::read(&runs).is_ok());
    // The same names and sizes, other pixels.
    run_evaluation(&runs[0], &one, &options()).unwrap();
    folder(&one, true);
    run_evaluation(&runs[1], &one, &options()).unwrap();
    refused(&["changed under the same names and sizes"]);
}

#[test]
fn import_refuses_a_folder_of_a_run_or_of_other_weights() {
    let root = tempfile::tempdir().unwrap();
    let (trained, model) = fixtures::run(&root.path().join("run"), "conv-c3");
    let names =
        model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)));
    let tensors: Vec<_> = names.map(|(name, tensor)| (name.to_owned(), tensor.contiguous())).collect();
    let zeros: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like().contiguous())).collect();
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| root.path().join(name));
    Tensor::write_safetensors(&tensors, &a).unwrap();
    Tensor::write_safetensors(&zeros, &b).unwrap();
    let overrides = ["encoder.name=conv-c3", "train.image_size=16", "train.device=cpu"].map(str::to_owned);
    let config = RunConfig::load(None, &overrides).unwrap();
    let folder = RunFolder::create(&root.path().join("new")).unwrap();
    import(&a, &config, 3, &folder).unwrap();
    check_imported(&a, &config, &folder).unwrap();
    // The path of the images is no option of the weights, the name of their file neither.
    let mut elsewhere = config.clone();
    elsewhere.data.path = Some("elsewhere".into());
    let copy = root.path().join("copy.safetensors");
    fs_err::copy(&a, &copy).unwrap();
    check_imported(&copy, &elsewhere, &folder).unwrap();
    let refused = |file: &Path, config: &RunConfig, folder: &RunFolder, parts: &[&str]| {
        let error = check_imported(file, config, folder).unwrap_err();
        assert!(matches!(error, EvalError::OtherWeights { .. }) && error.hint().is_some(), "{error}");
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
    };
    refused(&b, &config, &folder, &["`a.safetensors`", "`b.safetensors`"]);
    let mut larger = config.clone();
    larger.train.image_size = 32;
    refused(&a, &larger, &folder, &["train.image_size was 16, is 32"]);
    let mut normalized = config.clone();
    normalized.encoder.input_mean = vec![0.5; 3];
    refused(&a, &normalized, &folder, &["encoder.input_mean"]);
    refused(&a, &config, &trained, &["a run trained here, at step 7", "`a.safetensors`"]);
}

#[test]
fn a_test_part_without_labels_is_replaced_by_a_labelled_validation_part_or_refused() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("set");
    let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
    folder(&data, false);
    fs_err::rename(data.join("test"), data.join("val")).unwrap();
    for number in 0..4 {
        bitmap(&data.join("test").join(format!("{number}.bmp")), &grey(number, true));
    }
    let results = run_evaluation(&run, &data, &options()).unwrap();
    assert_eq!((results.data.test_images, pixels_knn(&results)), (10, 1.0));
    let note =
        "none of the 4 images of the test part has a label: evaluated on the validation part, 10 images";
    assert!(results.notes.iter().any(|text| text == note), "{:?}", results.notes);
    bitmap(&data.join("test/light/9.bmp"), &grey(9, true));
    let results = run_evaluation(&run, &data, &options()).unwrap();
    let noted = results.notes.iter().any(|note| note.starts_with("test part: 4 of 5 images have no label"));
    assert!(results.data.test_images == 1 && noted, "{:?}", results.notes);
    fs_err::remove_dir_all(data.join("test/light")).unwrap();
    fs_err::remove_dir_all(data.join("val")).unwrap();
    let error = run_evaluation(&run, &data, &options()).unwrap_err().to_string();
    assert!(error.contains("none of the 4 images of the test part has one"), "{error}");
}

#[test]
fn classes_missing_in_one_part_are_noted() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("set");
    let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
    folder(&data, false);
    for number in 0..3 {
        bitmap(&data.join("test/unknown").join(format!("{number}.bmp")), &grey(number, true));
        bitmap(&data.join("train/absent").join(format!("{number}.bmp")), &[0; 256]);
    }
    let results = run_evaluation(&run, &data, &options()).unwrap();
    let expected = [
        "1 of 4 classes have no training image, so that 3 of 13 test images count as wrong: `unknown` (3)",
        "1 of 4 classes have no test image, with so many training images: `absent` (3)",
    ];
    assert!(expected.iter().all(|note| results.notes.iter().any(|text| text == note)), "{:?}", results.notes);
    assert!((pixels_knn(&results) - 10.0 / 13.0).abs() < 1e-9);
    for class in ["light", "low"] {
        fs_err::remove_dir_all(data.join("test").join(class)).unwrap();
    }
    let error = run_evaluation(&run, &data, &options()).unwrap_err().to_string();
    assert!(error.contains("no class has both") && error.contains("`unknown` (3)"), "{error}");
}

#[test]
fn unicode_forms_of_a_class_name_are_equal() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("set");
    let (run, _) = fixtures::run(&root.path().join("run"), "conv-c3");
    folder(&data, false);
    fs_err::rename(data.join("train/light"), data.join("train/caf\u{e9}")).unwrap();
    fs_err::rename(data.join("test/light"), data.join("test/cafe\u{301}")).unwrap();
    let results = run_evaluation(&run, &data, &options()).unwrap();
    assert_eq!((results.data.classes, pixels_knn(&results)), (2, 1.0));
    assert!(results.notes.iter().any(|note| note.contains("two Unicode forms")), "{:?}", results.notes);
}
