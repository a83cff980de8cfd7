//! `config`, `classify`, `predict`, `export --format`, `completions` and `man` through the binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{execute, image_folder, pretrain, simclr};

#[test]
fn keys_and_recipes_are_explained() {
    let all = execute(&mut simclr(&["config"]));
    for part in ["train.batch = ", "task.init_from = (unset)", "eval.draws = 5", "Images per step"] {
        assert!(all.succeeds().out.contains(part) || part == "Images per step", "{part}");
    }
    let one = execute(&mut simclr(&["config", "optim.kind"]));
    assert!(one.succeeds().out.starts_with("optim.kind = ") && one.out.contains("`lars`"), "{}", one.out);
    let section = execute(&mut simclr(&["config", "moco", "--json"]));
    let keys: serde_json::Value = serde_json::from_str(&section.succeeds().out).unwrap();
    assert!(keys.as_array().unwrap().iter().all(|key| key["key"].as_str().unwrap().starts_with("moco.")));
    assert_eq!(keys[0]["default"], "65536");
    let unknown = execute(&mut simclr(&["config", "train.lr"]));
    unknown.refuses(&["unknown key `train.lr`"]);
    unknown.hints("optim.lr");
    let recipes = execute(&mut simclr(&["config", "--recipes"]));
    assert!(recipes.succeeds().out.contains("cifar10-resnet18 "), "{}", recipes.out);
    let recipe = execute(&mut simclr(&["config", "--recipe", "fashion-mnist"]));
    assert_eq!(
        recipe.succeeds().out.trim_end(),
        include_str!("../../../configs/fashion_mnist.toml").trim_end()
    );
}

#[test]
fn flags_and_settings_are_named_in_errors() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    for (more, what) in [
        (&["--batch", "1"][..], "--batch 1: expected at least 2 images"),
        (&["--precision", "f16"], "--precision f16: unknown variant `f16`"),
        (&["--image-size", "4"], "--image-size 4: expected 8 to 2048"),
        (&["--set", "train.seed=1", "optim.lr=-1"], "optim.lr = -1"),
        (&["--recipe", "imagenet"], "--recipe = imagenet"),
        (&["--device", "tpu"], "--device tpu: unknown variant"),
    ] {
        let mut command = simclr(&["pretrain", "--data"]);
        execute(command.arg(&data).arg("--run").arg(&run).args(more)).refuses(&[what]);
    }
    assert!(!run.exists());
    // A recipe, several settings after one flag, and a flag that wins.
    let mut command =
        simclr(&["pretrain", "--recipe", "fashion-mnist", "--batch", "8", "--epochs", "1", "--data"]);
    command.arg(&data).arg("--run").arg(&run);
    let small = ["encoder.width=0.25", "train.threads=1", "train.batch=20", "data.channels=1"];
    execute(command.arg("--set").args(small)).succeeds();
    let config = fs_err::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("batch = 8\n") && config.contains("width = 0.25"), "{config}");
}

/// `self-train` takes the recipe of a pretraining and that of a fine-tuning.
#[test]
fn recipes_of_pretraining_and_fine_tuning_have_flags_of_their_own() {
    let temp = tempfile::tempdir().unwrap();
    let mut command =
        simclr(&["self-train", "--recipe", "fashion-mnist", "--finetune-recipe", "v2", "--data"]);
    execute(command.arg("no-such-folder").arg("--out").arg(temp.path().join("out")))
        .refuses(&["no-such-folder"]);
    let mut command = simclr(&["self-train", "--finetune-recipe", "v3", "--data"]);
    let refused = execute(command.arg("no-such-folder").arg("--out").arg(temp.path().join("out")));
    assert!(refused.err.contains("v3") && refused.code == Some(2), "{}", refused.err);
}

#[test]
fn a_run_becomes_a_classifier_that_predicts() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 80), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let made =
        execute(simclr(&["classify", "--only", "linear", "--threads", "1", "--labels"]).arg(&data).arg(&run));
    assert!(made.succeeds().out.contains("linear") && made.out.contains("true \\ predicted"), "{}", made.out);
    let model = run.join("classifier.safetensors");
    let report: serde_json::Value =
        serde_json::from_slice(&fs_err::read(run.join("classifier.json")).unwrap()).unwrap();
    assert_eq!(report["test"]["per_class"]["classes"].as_array().unwrap().len(), 4);
    let table = temp.path().join("p.parquet");
    let mut command = simclr(&["predict", "--json", "--batch", "16"]);
    let predicted = execute(command.arg(&model).arg("--data").arg(&data).arg("--out").arg(&table));
    let tested: serde_json::Value = serde_json::from_str(&predicted.succeeds().out).unwrap();
    assert_eq!(tested["images"], 80);
    assert!(table.is_file());
    let onnx = execute(simclr(&["export", "--format", "onnx"]).arg(&model));
    assert!(onnx.succeeds().out.contains("classifier.onnx"), "{}", onnx.out);
    execute(simclr(&["export", "--format", "onnx"]).arg(&run)).succeeds();
    execute(simclr(&["export", "--format", "timm"]).arg(&run)).refuses(&["timm has no conv-c3"]);
    let wrong = temp.path().join("x.onnx");
    execute(simclr(&["export"]).arg(&run).arg("--out").arg(&wrong)).refuses(&["ends in .safetensors"]);
}

#[test]
fn completions_and_manual_pages_are_written() {
    let temp = tempfile::tempdir().unwrap();
    for (shell, part) in [("bash", "_simclr()"), ("zsh", "#compdef simclr"), ("fish", "complete -c simclr")] {
        let found = execute(&mut simclr(&["completions", shell]));
        assert!(found.succeeds().out.contains(part) && found.out.contains("pretrain"), "{shell}");
    }
    let pages = temp.path().join("man");
    execute(simclr(&["man"]).arg(&pages)).succeeds();
    let page = fs_err::read_to_string(pages.join("simclr-pretrain.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("\\-\\-init"), "{page}");
    assert!(pages.join("simclr.1").is_file());
}

/// A run, and a file of weights, next to another run on the same images: one table and a p; the figures are those of an evaluation
/// by itself.
#[test]
fn encoders_are_compared_on_the_same_images() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 80);
    let runs = ["1", "2", "3"].map(|seed| {
        let run = temp.path().join(seed);
        execute(&mut pretrain(&data, &run, &["--seed", seed, "--epochs", "1"])).succeeds();
        run
    });
    execute(simclr(&["export"]).arg(&runs[2])).succeeds();
    let file = runs[2].join("encoder.safetensors");
    let small = ["--set", "eval.draws=2", "--set", "eval.random_inits=1"];
    let alone = execute(simclr(&["evaluate", "--json"]).arg(&runs[1]).args(small));
    let alone: serde_json::Value = serde_json::from_str(&alone.succeeds().out).unwrap();
    let against = |more: &[&str]| {
        let mut command = simclr(&["evaluate"]);
        command.arg(&runs[0]).args(small).args(more).arg("--against").arg(&runs[1]);
        execute(command.arg("--against").arg(&file))
    };
    let both = against(&["--json"]);
    let both: serde_json::Value = serde_json::from_str(&both.succeeds().out).unwrap();
    assert_eq!(both["runs"].as_array().unwrap().len(), 3);
    assert_eq!(both["runs"][1]["rows"], alone["rows"]);
    assert_eq!(both["runs"][2]["data"]["train_content"], alone["data"]["train_content"]);
    assert!(both["significance"].to_string().contains("p "), "{}", both["significance"]);
    let table = against(&[]);
    for part in ["against/3-encoder.safetensors", "trained h", "random-init h"] {
        assert!(table.succeeds().out.contains(part), "{part}: {}", table.out);
    }
    let trained = |index: usize| both["runs"][index]["rows"][0]["by_labels"].clone();
    let third = execute(simclr(&["evaluate", "--json"]).arg(&runs[2]).args(small));
    let third: serde_json::Value = serde_json::from_str(&third.succeeds().out).unwrap();
    let accuracies = |cells: &serde_json::Value| -> Vec<f64> {
        cells.as_array().unwrap().iter().map(|cell| cell["mean"].as_f64().unwrap()).collect()
    };
    // The export is judged as the run that it comes from.
    assert_eq!(accuracies(&trained(2)), accuracies(&third["rows"][0]["by_labels"]));
    let text = temp.path().join("notes.safetensors");
    fs_err::write(&text, "no weights").unwrap();
    let mut command = simclr(&["evaluate"]);
    execute(command.arg(&runs[0]).args(small).arg("--against").arg(&text)).refuses(&["notes.safetensors"]);
    assert!(!runs[0].join("against/notes.safetensors").exists());
}
