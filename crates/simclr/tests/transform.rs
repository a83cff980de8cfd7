//! What the encoder sees of an image: declared by the run, applied by every command, changed by an option.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use simclr::{
    RunConfig,
    checkpoint::Checkpoint,
    data::augment::{EvalCrop, Interpolation, TransformChange},
    device::Precision,
    eval::{EvalConfig, evaluate, report::results::Results},
    export::{EmbedOptions, embed, export_encoder},
    model::Model,
    train::{RunFolder, Silent},
};
use tch::Device;

const SIDE: u32 = 64;

/// A run with fresh weights on images of 64 px.
fn run(folder: &Path) -> RunFolder {
    tch::set_num_threads(1);
    let overrides = ["encoder.name='conv-c3'", "train.image_size=64", "train.device='cpu'"];
    let config = RunConfig::load(None, &overrides.map(str::to_owned)).unwrap();
    let model = Model::new(&config.encoder, &config.head, (3, 64), 1, Device::Cpu, Precision::F32).unwrap();
    let run = RunFolder::create(folder).unwrap();
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    fs_err::write(run.plan_file(), r#"{"channels": 3, "total_steps": 0}"#).unwrap();
    let mut checkpoint = Checkpoint::default();
    let owned = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(owned);
    checkpoint.sections.insert("state".into(), serde_json::json!({"step": 0}));
    checkpoint.save(&run.checkpoint_file(0)).unwrap();
    run
}

/// Two classes of noise that differ in the outermost two columns on the left only: bright where there is a defect.
fn images(folder: &Path) -> PathBuf {
    for (class, defect) in [("fine", false), ("defect", true)] {
        fs_err::create_dir_all(folder.join(class)).unwrap();
        for number in 0..100u32 {
            let seed = 2 * number + u32::from(defect);
            let noise = |x: u32, y: u32| {
                let place = (seed * SIDE * SIDE + y * SIDE + x).wrapping_mul(2_654_435_761);
                ((place ^ (place >> 15)).wrapping_mul(2_246_822_519) >> 24) as u8 / 2
            };
            let pixel = |x: u32, y: u32| image::Rgb([if defect && x < 2 { 255 } else { noise(x, y) }; 3]);
            let picture = image::RgbImage::from_fn(SIDE, SIDE, pixel);
            picture.save(folder.join(class).join(format!("{number:03}.png"))).unwrap();
        }
    }
    folder.to_owned()
}

fn evaluated(run: &RunFolder, data: &Path, transform: TransformChange) -> Results {
    let options = EvalConfig { transform, draws: 1, ..EvalConfig::default() };
    evaluate(run, data, &options, &mut Silent, &AtomicBool::new(false)).unwrap()
}

fn official() -> TransformChange {
    TransformChange { crop: Some(EvalCrop::Share(0.875)), ..TransformChange::default() }
}

/// Accuracy with all labels of the rows that see images.
fn accuracies(results: &Results) -> Vec<f64> {
    let names = ["trained h", "random-init h", "raw pixels"];
    let row = |name| results.rows.iter().find(|row| row.name == name).unwrap();
    names.map(|name| row(name).by_labels.last().unwrap().mean).to_vec()
}

#[test]
fn a_defect_at_the_border_counts_unless_it_is_cut_away() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = (run(&folder.path().join("run")), images(&folder.path().join("data")));
    let whole = evaluated(&run, &data, TransformChange::default());
    assert!(accuracies(&whole).iter().all(|&share| share > 0.9), "{:?}", accuracies(&whole));
    assert!(whole.table().contains("input: whole image to 64 x 64 px, bicubic, antialiased\n"));
    // 40 images of two classes: chance is 0.5 +- 0.08.
    let cut = evaluated(&run, &data, official());
    assert!(accuracies(&cut).iter().all(|&share| share < 0.75), "{:?}", accuracies(&cut));
    assert!(cut.table().contains("input: central square of 87.5 % of the shorter side"));
    // What was kept of one transform is not taken for another.
    assert_eq!(accuracies(&evaluated(&run, &data, TransformChange::default())), accuracies(&whole));
    assert_eq!(accuracies(&evaluated(&run, &data, official())), accuracies(&cut));
}

#[test]
fn a_run_that_records_no_transform_keeps_the_official_crop_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = (run(&folder.path().join("run")), images(&folder.path().join("data")));
    let text = fs_err::read_to_string(run.config_file()).unwrap();
    let (before, after) = text.split_once("[transform]").unwrap();
    let after = after.split_once("\n[").map_or(String::new(), |(_, rest)| format!("[{rest}"));
    fs_err::write(run.config_file(), format!("{before}{after}")).unwrap();
    let results = evaluated(&run, &data, TransformChange::default());
    assert_eq!(results.run.transform.unwrap().crop, EvalCrop::Share(0.875));
    assert!(results.notes.iter().any(|note| note.contains("records no [transform]")), "{:?}", results.notes);
}

#[test]
fn embedding_follows_the_run_and_its_options_and_export_names_the_transform() {
    let folder = tempfile::tempdir().unwrap();
    let (run, data) = (run(&folder.path().join("run")), images(&folder.path().join("data")));
    let table = |transform: TransformChange| {
        let out = folder.path().join("h.npy");
        let options = EmbedOptions { transform, threads: 1, ..EmbedOptions::default() };
        let written = embed(&run, &data, &out, &options, &mut |_, _| {}).unwrap();
        (written.transform, fs_err::read(&out).unwrap())
    };
    let (whole, h) = table(TransformChange::default());
    assert_eq!((whole.size, whole.channels, whole.crop), (64, 3, EvalCrop::Whole));
    let bilinear = TransformChange { interpolation: Some(Interpolation::Bilinear), ..official() };
    for change in [official(), bilinear] {
        let (transform, other) = table(change);
        assert_eq!(transform.crop, EvalCrop::Share(0.875));
        assert!(other.len() == h.len() && other != h);
    }
    let wrong = TransformChange { crop: Some(EvalCrop::Share(1.5)), ..TransformChange::default() };
    let options = EmbedOptions { transform: wrong, ..EmbedOptions::default() };
    let error = embed(&run, &data, &folder.path().join("x.npy"), &options, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("transform.crop = 1.5"), "{error}");
    let exported = export_encoder(&run, &folder.path().join("e.safetensors")).unwrap();
    let expected = r#"{"size":64,"channels":3,"crop":"whole","interpolation":"bicubic","antialias":true,"jpeg":"zune","range":"full"}"#;
    let found: serde_json::Value = serde_json::from_str(&exported.metadata["simclr.transform"]).unwrap();
    assert_eq!(found, serde_json::from_str::<serde_json::Value>(expected).unwrap());
}

#[test]
fn the_papers_recipes_declare_the_official_crop() {
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    for name in ["imagenet_resnet50_paper_v1.toml", "imagenet_resnet50_v2.toml"] {
        let config = RunConfig::load(Some(&configs.join(name)), &[]).unwrap();
        let transform = config.transform;
        assert_eq!((transform.crop, transform.antialias), (EvalCrop::Share(0.875), false), "{name}");
        assert!(!config.augment.antialias, "{name}");
    }
    // CIFAR's images are seen whole (`data.py` `get_preprocess_fn`).
    let config = RunConfig::load(Some(&configs.join("cifar10_resnet18.toml")), &[]).unwrap();
    assert_eq!(config.transform.crop, EvalCrop::Whole);
}
