//! Classifiers for use: against PyTorch (reference/initial_weights.py), the choice between linear and fine-tuned, predictions.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

mod fixtures;
#[path = "fixtures/hashed.rs"]
mod hashed;

use std::{path::Path, sync::atomic::AtomicBool};

use parquet::{
    file::reader::SerializedFileReader,
    record::{ListAccessor, RowAccessor},
};
use safetensors::SafeTensors;
use simclr::{
    RunConfig,
    checkpoint::Checkpoint,
    data::{Split, augment::TransformChange, dataset::Labels},
    device::Precision,
    eval::{
        classify::{Classifier, ClassifierReport, ClassifyOptions, classify},
        features::load_encoder,
        options::FinetuneRecipe,
        semi_supervised::FinetuneOptions,
    },
    export::{PredictOptions, export_encoder, load_classifier, predict, write_classifier},
    model::Model,
    train::{RunFolder, Silent},
};
use tch::{Device, Kind, Tensor};

/// A run of zero steps with hashed weights.
fn hashed_run(folder: &Path) -> RunFolder {
    let overrides = [
        "encoder.name=resnet18",
        "train.image_size=64",
        "train.device=cpu",
        "encoder.input_mean=[0.485,0.456,0.406]",
        "encoder.input_std=[0.229,0.224,0.225]",
    ];
    let config = RunConfig::load(None, &overrides.map(str::to_owned)).unwrap();
    let model = Model::new(&config.encoder, &config.head, (3, 64), 0, Device::Cpu, Precision::F32).unwrap();
    hashed::assign(&model.params);
    let run = RunFolder::create(folder).unwrap();
    fs_err::write(run.config_file(), config.to_toml()).unwrap();
    fs_err::write(run.plan_file(), r#"{"channels": 3, "total_steps": 9}"#).unwrap();
    let mut checkpoint = Checkpoint::default();
    let named = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(named);
    checkpoint.sections.insert("state".into(), serde_json::json!({"step": 9}));
    checkpoint.save(&run.checkpoint_file(9)).unwrap();
    run
}

#[test]
fn probabilities_equal_those_of_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let run = hashed_run(&folder.path().join("run"));
    let hashed = |name: &str, shape: &[i64]| hashed::values(name, shape) * 3.0;
    let classifier = Classifier {
        encoder: load_encoder(&run).unwrap(),
        weight: hashed("classifier.weight", &[5, 512]),
        bias: hashed("classifier.bias", &[5]),
        classes: ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec(),
    };
    let file = folder.path().join("classifier.safetensors");
    let written = write_classifier(&classifier, None, &run, &file).unwrap();
    assert_eq!((written.tensors, written.difference), (122, 0.0));
    let found = load_classifier(&file, None).unwrap();
    assert_eq!(found.classes, classifier.classes);
    let probabilities = found.logits(&hashed::images(4, 64)).unwrap().softmax(1, Kind::Float);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/classifier.safetensors");
    let expected = Tensor::read_safetensors(golden).unwrap().remove(0).1;
    assert_eq!(probabilities.argmax(1, false), expected.argmax(1, false));
    let difference = (&probabilities - &expected).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");
    // An encoder does not replace a classifier, nor the other way round.
    let refused = export_encoder(&run, &file).unwrap_err().to_string();
    assert!(refused.contains("classifier.safetensors"), "{refused}");
    let encoder = folder.path().join("encoder.safetensors");
    export_encoder(&run, &encoder).unwrap();
    assert!(write_classifier(&classifier, None, &run, &encoder).is_err());
    assert!(load_classifier(&encoder, None).unwrap_err().to_string().contains("not a classifier"));
}

/// The configuration in the metadata of a file is checked like any other, and no module that it names is loaded.
#[test]
fn a_configuration_in_a_file_runs_no_module() {
    let folder = tempfile::tempdir().unwrap();
    let run = hashed_run(&folder.path().join("run"));
    let classifier = Classifier {
        encoder: load_encoder(&run).unwrap(),
        weight: Tensor::zeros([2, 512], (Kind::Float, Device::Cpu)),
        bias: Tensor::zeros([2], (Kind::Float, Device::Cpu)),
        classes: ["a", "b"].map(str::to_owned).to_vec(),
    };
    let file = folder.path().join("classifier.safetensors");
    write_classifier(&classifier, None, &run, &file).unwrap();
    let whole = fs_err::read(&file).unwrap();
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/script.pt");
    for (section, key, value, words) in [
        ("encoder", "file", module.into(), "script.pt`, which would run code with your rights"),
        ("train", "image_size", serde_json::json!(0), "train.image_size = 0: expected 8 to 2048 pixels"),
    ] {
        let (_, header) = SafeTensors::read_metadata(&whole).unwrap();
        let mut metadata = header.metadata().clone().unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&metadata["simclr.config"]).unwrap();
        config[section][key] = value;
        metadata.insert("simclr.config".into(), config.to_string());
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        fs_err::write(&file, safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap()).unwrap();
        let error = load_classifier(&file, None).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

fn options(linear: bool, finetune: bool) -> ClassifyOptions {
    let finetuning = FinetuneOptions {
        recipe: FinetuneRecipe::V1,
        head_layers: 0,
        epochs: Some(10.0),
        batch: Some(8),
        lr: Some(0.5),
        from_scratch: false,
        device: None,
        threads: Some(1),
    };
    ClassifyOptions {
        labels: Labels::Auto,
        hold_out: 0.25,
        seed: 0,
        linear,
        finetune: finetune.then_some(finetuning),
        read: (16, 1),
        device: None,
        transform: TransformChange::default(),
    }
}

fn made(run: &RunFolder, data: &Path, options: &ClassifyOptions) -> (Classifier, ClassifierReport) {
    classify(run, data, options, &mut Silent, &AtomicBool::new(false)).unwrap()
}

#[test]
fn the_better_classifier_is_chosen_and_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    fixtures::images(&data.join("train"), 24);
    fixtures::images(&data.join("test"), 10);
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let (classifier, report) = made(&run, &data, &options(true, true));
    assert_eq!(report.candidates.len(), 2);
    assert_eq!((report.train_images, report.hold_out_images, report.test.images), (36, 12, 20));
    let best = report.candidates.iter().map(|found| found.accuracy).fold(0.0, f64::max);
    let chosen = report.candidates.iter().find(|found| found.name == report.chosen).unwrap();
    assert!(chosen.accuracy == best && best > 0.9, "{report:?}");
    assert!(report.test.accuracy > 0.9 && report.test.calibration.ece <= 0.5, "{report:?}");
    let text = report.text();
    for part in ["light", "low", "true \\ predicted", "ECE", "chosen"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let file = folder.path().join("classifier.safetensors");
    write_classifier(&classifier, Some(&report), &run, &file).unwrap();
    drop(classifier);
    fs_err::rename(run.path(), folder.path().join("elsewhere")).unwrap();

    let classifier = load_classifier(&file, None).unwrap();
    let out = folder.path().join("p.parquet");
    let options = PredictOptions { split: Some(Split::Test), labels: Labels::Auto, batch: 7, threads: 1 };
    let predicted = predict(&classifier, &data, &out, &options, &mut |_, _| {}).unwrap();
    assert_eq!((predicted.images, predicted.bad.len()), (20, 0));
    let tested = predicted.tested.unwrap();
    assert_eq!(tested.per_class, report.test.per_class);
    assert!((tested.nll - report.test.nll).abs() < 1e-6, "{} {}", tested.nll, report.test.nll);
    let lines = out.with_extension("csv");
    assert_eq!(
        predict(&classifier, &data, &lines, &options, &mut |_, _| {}).unwrap().tested.unwrap(),
        tested
    );
    let mut lines_read = csv::Reader::from_path(&lines).unwrap();
    let header = ["path", "part", "class", "probability", "probability:light", "probability:low"];
    assert_eq!(lines_read.headers().unwrap(), &header[..]);
    let mut lines_read = lines_read.records();
    let mut right = 0;
    for row in SerializedFileReader::new(fs_err::File::open(&out).unwrap().into_parts().0).unwrap() {
        let row = row.unwrap();
        let line = lines_read.next().unwrap().unwrap();
        let number = |column: usize| line[column].parse::<f32>().unwrap();
        let (path, class) = (row.get_string(0).unwrap(), row.get_string(2).unwrap());
        let p = row.get_list(4).unwrap();
        let p = [p.get_float(0).unwrap(), p.get_float(1).unwrap()];
        assert!((p[0] + p[1] - 1.0).abs() < 1e-6 && row.get_float(3).unwrap() == p[0].max(p[1]));
        assert_eq!(class, if p[0] > p[1] { "light" } else { "low" });
        assert_eq!([&line[0], &line[1], &line[2]], [path, row.get_string(1).unwrap(), class]);
        assert_eq!([number(3), number(4), number(5)], [row.get_float(3).unwrap(), p[0], p[1]]);
        right += usize::from(path.contains(&format!("{class}/")));
    }
    assert!(lines_read.next().is_none());
    assert_eq!(right as f64 / 20.0, tested.accuracy);
    // Again: only an earlier table is replaced.
    for out in [out, lines] {
        predict(&classifier, &data, &out, &options, &mut |_, _| {}).unwrap();
        for other in ["notes", "path,part,class,probability\n", "path,part,class,probability,area\n"] {
            fs_err::write(&out, other).unwrap();
            assert!(predict(&classifier, &data, &out, &options, &mut |_, _| {}).is_err(), "{other}");
            assert_eq!(fs_err::read_to_string(&out).unwrap(), other);
            fs_err::remove_file(&out).unwrap();
            predict(&classifier, &data, &out, &options, &mut |_, _| {}).unwrap();
        }
    }
    let refused = predict(&classifier, &data, &file.with_extension("txt"), &options, &mut |_, _| {});
    assert!(refused.unwrap_err().to_string().contains(".parquet or .csv"));
}

#[test]
fn fine_tuned_runs_are_classifiers_embedded_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    fixtures::images(&data, 24);
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let (_, report) = made(&run, &data, &options(false, true));
    assert_eq!(report.chosen, "fine-tuned");
    let tuned = fs_err::read_dir(run.path().join("classifiers")).unwrap().next().unwrap().unwrap().path();
    let classifier = load_classifier(&tuned, None).unwrap();
    assert_eq!(classifier.classes, ["light", "low"]);
    let exported = folder.path().join("encoder.safetensors");
    assert_eq!(export_encoder(&RunFolder::open(&tuned).unwrap(), &exported).unwrap().difference, 0.0);
    // The second time, the run is finished.
    let (_, again) = made(&run, &data, &options(false, true));
    assert_eq!(again.candidates, report.candidates);
}
