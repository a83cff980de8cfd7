//! Transfer sets, retrieval, imported weights and comparison of runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{path::Path, sync::atomic::AtomicBool};

use simclr::{
    EvalError, RunConfig,
    eval::{
        EvalConfig, evaluate,
        features::{import::import, load_encoder},
        options::{Metric, Protocol, TransferSet},
        report::compare::Comparison,
    },
    export::export_encoder,
    knn::precision_at_k,
    train::{RunFolder, Silent},
    weights::{IMAGENET_MEAN, IMAGENET_STD},
};
use tch::{Kind, Tensor};

mod fixtures;

fn options() -> EvalConfig {
    EvalConfig { label_fractions: vec![0.5, 1.0], draws: 2, batch: 16, threads: 1, ..EvalConfig::default() }
}

fn evaluated(root: &Path, name: &str, data: &Path, options: &EvalConfig) -> RunFolder {
    let (run, _) = fixtures::run(&root.join(name), "conv-c3");
    evaluate(&run, data, options, &mut Silent, &AtomicBool::new(false)).unwrap();
    run
}

/// The two bank rows nearest to each query are of its class, the others are not.
#[test]
fn precision_at_k_by_hand() {
    tch::set_num_threads(1);
    let bank = Tensor::from_slice(&[1.0f32, 0.0, 1.0, 0.1, 0.0, 1.0, -0.1, 1.0]).view([4, 2]);
    let labels = Tensor::from_slice(&[0i64, 0, 1, 1]);
    let queries = Tensor::from_slice(&[2.0f32, 0.0, 0.0, 3.0]).view([2, 2]);
    let precision =
        |wanted: [i64; 2], k| precision_at_k(&bank, &labels, &queries, &Tensor::from_slice(&wanted), k);
    assert_eq!((precision([0, 1], 2), precision([0, 1], 4)), (1.0, 0.5));
    assert_eq!((precision([1, 0], 1), precision([0, 0], 2)), (0.0, 0.5));
}

#[test]
fn results_include_transfer_and_retrieval() {
    let folder = tempfile::tempdir().unwrap();
    let (data, other) = (folder.path().join("data"), folder.path().join("other"));
    fixtures::images(&data, 20);
    fixtures::images(&other.join("train"), 25);
    fixtures::images(&other.join("test"), 5);
    let set = |metric| TransferSet { path: other.clone(), metric };
    let transfer = vec![set(Metric::Top1), set(Metric::MeanPerClass), set(Metric::Map11)];
    let protocols = vec![Protocol::Retrieval];
    let options = EvalConfig { protocols, transfer, retrieval_k: 5, ..options() };
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let results = evaluate(&run, &data, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert_eq!(results.transfer.len(), 3);
    for row in &results.transfer {
        assert_eq!(
            (row.images, row.per_class.len(), row.validation.as_str()),
            ((50, 10), 2, "a fifth of the training images")
        );
        assert!(run.path().join(&row.predictions).is_file());
        assert!(row.trained >= 0.9 && row.random_init.is_some() && row.lambda >= 1e-6, "{row:?}");
    }
    let precision = results.row("raw pixels").unwrap().retrieval.as_ref().unwrap().mean;
    assert!(precision > 0.9, "{precision}");
    let table = results.table();
    for words in ["precision at 5", "mean-per-class", "50 + 10"] {
        assert!(table.contains(words), "{table}");
    }
}

/// As in VOC2007: a validation part and a test part, and images in the folders of all their classes.
#[test]
fn images_of_several_classes_count_once_and_a_validation_part_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (data, voc) = (folder.path().join("data"), folder.path().join("voc"));
    fixtures::images(&data, 20);
    for (part, count) in [("train", 20), ("val", 8), ("test", 6)] {
        fixtures::images(&voc.join(part), count);
        for class in ["light", "low"] {
            for number in 0..count {
                let name = format!("{number:03}.png");
                let unique = voc.join(part).join(class).join(format!("{class}-{name}"));
                fs_err::rename(voc.join(part).join(class).join(&name), &unique).unwrap();
            }
        }
        // Two of the bright images hold the other class too.
        for name in ["light-000.png", "light-001.png"] {
            fs_err::copy(voc.join(part).join("light").join(name), voc.join(part).join("low").join(name))
                .unwrap();
        }
    }
    let transfer = vec![TransferSet { path: voc.clone(), metric: Metric::Map11 }];
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let options = EvalConfig { transfer, ..options() };
    let results = evaluate(&run, &data, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
    let row = &results.transfer[0];
    assert_eq!((row.images, row.validation.as_str()), ((40 + 16, 12), "its own part"));
    assert!(row.trained > 0.9, "{}: images of both classes are found under both", row.trained);
    let predictions = simclr::checkpoint::Checkpoint::load(&run.path().join(&row.predictions)).unwrap();
    assert_eq!(
        predictions.tensors["predicted"].size(),
        [12],
        "a prediction for each image, not for each of its folders"
    );
    let table = results.table();
    assert!(table.contains("map-11") && table.contains("its own part"), "{table}");
}

/// A fifth of two images is none.
#[test]
fn transfer_sets_without_images_to_choose_lambda_on_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, small) = (folder.path().join("data"), folder.path().join("small"));
    fixtures::images(&data, 20);
    fixtures::images(&small.join("train"), 2);
    fixtures::images(&small.join("test"), 2);
    let transfer = vec![TransferSet { path: small, metric: Metric::Top1 }];
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let options = EvalConfig { transfer, ..options() };
    let error = evaluate(&run, &data, &options, &mut Silent, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("too few images to hold some out for choosing lambda"), "{error}");
}

/// Changes the newest results of `run`, and forgets the others.
fn alter(run: &RunFolder, change: impl Fn(&mut serde_json::Value)) {
    let mut results = serde_json::from_slice(&fs_err::read(run.results_file()).unwrap()).unwrap();
    change(&mut results);
    fs_err::write(run.results_file(), serde_json::to_vec(&results).unwrap()).unwrap();
    let _ = fs_err::remove_dir_all(run.path().join("results"));
}

/// Options that only some rows depend on are compared where both runs have such a row.
#[test]
fn runs_with_other_options_of_a_shared_row_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fixtures::images(&data, 20);
    let runs = ["one", "two"].map(|name| evaluated(folder.path(), name, &data, &options()));
    let refusal = |key: &str| {
        let error = Comparison::read(&runs).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    };
    let epochs = |epochs: f64| {
        alter(&runs[1], |results| results["options"]["trained"]["epochs"] = epochs.into());
    };
    epochs(3.0);
    Comparison::read(&runs).unwrap();
    for run in &runs {
        alter(run, |results| {
            let mut row = results["rows"][0].clone();
            row["name"] = "fine-tuned".into();
            results["rows"].as_array_mut().unwrap().push(row);
        });
    }
    refusal("eval.trained.epochs: null and 3.0");
    alter(&runs[1], |results| results["options"]["trained"]["epochs"] = serde_json::Value::Null);
    Comparison::read(&runs).unwrap();
    alter(&runs[1], |results| results["options"]["label_lists"] = vec!["some.txt"].into());
    refusal("eval.label_lists: [] and [\"some.txt\"]");
    alter(&runs[1], |results| results["options"]["label_lists"] = serde_json::json!([]));
    alter(&runs[1], |results| results["options"]["draws"] = 3.into());
    refusal("eval.draws: 2 and 3");
    // Without columns of few labels there are no draws.
    for run in &runs {
        alter(run, |results| {
            for row in results["rows"].as_array_mut().unwrap() {
                row["by_labels"].as_array_mut().unwrap().remove(0);
            }
        });
    }
    Comparison::read(&runs).unwrap();
}

#[test]
fn runs_are_compared_with_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fixtures::images(&data, 20);
    let runs = ["one", "two"].map(|name| evaluated(folder.path(), name, &data, &options()));
    let comparison = Comparison::read(&runs).unwrap();
    let table = comparison.table();
    assert_eq!(table.lines().filter(|line| line.contains("   trained h   ")).count(), 2, "{table}");
    assert!(table.contains("not significantly worse, p = 1.00"), "equal predictions: {table}");
    let plot = folder.path().join("plot.svg");
    comparison.plot(&plot).unwrap();
    let svg = fs_err::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() >= 5, "{svg}");
    let (bare, _) = fixtures::run(&folder.path().join("bare"), "conv-c3");
    assert!(matches!(Comparison::read(&[bare]), Err(EvalError::NotEvaluated { .. })));
}

/// Values derived from name and position, as in `reference/foreign.py`.
fn made_up(name: &str, tensor: &Tensor) -> Tensor {
    let salt = name.bytes().fold(0i64, |salt, byte| (salt * 31 + i64::from(byte)) % 1009);
    let place = Tensor::arange(tensor.numel() as i64, (Kind::Double, tch::Device::Cpu));
    let wave = (place * 12.9898 + salt as f64).sin().view(&tensor.size()[..]);
    let fan_in: i64 = tensor.size().iter().skip(1).product();
    let value = match name.rsplit('.').next().unwrap() {
        "running_var" => wave * 0.3 + 1.0,
        "weight" if tensor.dim() == 1 => wave * 0.2 + 1.0,
        "weight" => wave * (2.0 / fan_in as f64).sqrt(),
        _ => wave * 0.1,
    };
    value.to_kind(Kind::Float)
}

/// `module.` is the prefix of DistributedDataParallel.
#[test]
fn weights_are_found_with_prefixes_of_other_programs() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let overrides = ["encoder.name=conv-c3", "train.image_size=16", "train.device=cpu"].map(str::to_owned);
    let config = RunConfig::load(None, &overrides).unwrap();
    let (_, model) = fixtures::run(&folder.path().join("names"), "conv-c3");
    let images = Tensor::arange(2 * 3 * 16 * 16, (Kind::Float, tch::Device::Cpu)).sin().view([2, 3, 16, 16]);
    let features = |prefix: &str| {
        let file = folder.path().join("weights.safetensors");
        let names =
            model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)));
        let mut tensors: Vec<_> =
            names.map(|(name, tensor)| (format!("{prefix}{name}"), made_up(name, tensor))).collect();
        // A projection head of which no name is one of the encoder's.
        tensors.push((
            format!("{}projector.0.weight", prefix.trim_end_matches("encoder.")),
            Tensor::zeros([4, 4], (Kind::Float, tch::Device::Cpu)),
        ));
        Tensor::write_safetensors(&tensors, &file).unwrap();
        let run = RunFolder::create(&folder.path().join(format!("run-{prefix}"))).unwrap();
        import(&file, &config, 3, &run).unwrap();
        load_encoder(&run).unwrap().forward(&images).unwrap()
    };
    let plain = features("");
    assert!(plain.std(false).double_value(&[]) > 0.0);
    for prefix in ["module.", "module.encoder.", "encoder.", "backbone.", "module.backbone.", "model."] {
        assert!(features(prefix).equal(&plain), "{prefix}");
    }
}

/// torchvision's ResNet-18 with made-up weights, saved as PyTorch users save it (with classifier, counters and a prefix),
/// gives PyTorch's features (`reference/foreign.py`).
#[test]
fn torchvisions_weights_give_torchvisions_features() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resnet18.safetensors");
    let overrides = ["encoder.name=resnet18", "train.image_size=64", "train.device=cpu"].map(str::to_owned);
    let mut config = RunConfig::load(None, &overrides).unwrap();
    (config.encoder.input_mean, config.encoder.input_std) = (IMAGENET_MEAN.to_vec(), IMAGENET_STD.to_vec());
    let shape = (3, 64);
    let model = simclr::model::Model::new(
        &config.encoder,
        &config.head,
        shape,
        0,
        tch::Device::Cpu,
        simclr::device::Precision::F32,
    )
    .unwrap();
    let names =
        model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)));
    let mut tensors: Vec<_> =
        names.map(|(name, tensor)| (format!("backbone.{name}"), made_up(name, tensor))).collect();
    tensors.push(("backbone.bn1.num_batches_tracked".into(), Tensor::from(7i64)));
    tensors.push(("fc.weight".into(), Tensor::zeros([1000, 512], (Kind::Float, tch::Device::Cpu))));
    Tensor::write_safetensors(&tensors, &file).unwrap();

    let run = RunFolder::create(&folder.path().join("run")).unwrap();
    import(&file, &config, 3, &run).unwrap();
    let frozen = load_encoder(&run).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/foreign.safetensors");
    let golden: std::collections::HashMap<_, _> =
        Tensor::read_safetensors(golden).unwrap().into_iter().collect();
    let features = frozen.forward(&golden["images"]).unwrap();
    let difference = (&features - &golden["features"]).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");

    let export = folder.path().join("export.safetensors");
    let metadata = export_encoder(&run, &export).unwrap().metadata;
    assert_eq!(metadata["simclr.input_mean"], "0.485,0.456,0.406");

    tensors.retain(|(name, _)| !name.contains("layer3.0.conv2"));
    Tensor::write_safetensors(&tensors, &file).unwrap();
    let other = RunFolder::create(&folder.path().join("other")).unwrap();
    let error = import(&file, &config, 3, &other).unwrap_err();
    assert!(error.to_string().contains("layer3.0.conv2.weight"), "{error}");
    assert!(!other.config_file().exists());
}
