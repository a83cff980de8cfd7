//! Every recipe in `configs/` loads and has the values of its published source.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, path::Path};

use simclr::{RunConfig, config::sources::Source};

/// File name, text and configuration of every recipe.
fn recipes() -> Vec<(String, String, RunConfig)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let recipe = |entry: std::io::Result<fs_err::DirEntry>| {
        let path = entry.unwrap().path();
        let config = RunConfig::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{error}"));
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs_err::read_to_string(&path).unwrap(), config)
    };
    fs_err::read_dir(folder).unwrap().map(recipe).collect()
}

#[test]
fn every_recipe_loads() {
    let recipes = recipes();
    for (name, _, config) in &recipes {
        assert_ne!(*config, RunConfig::default(), "{name}");
    }
    assert!(recipes.len() >= 5, "{} recipes", recipes.len());
}

/// Text of a header line `# Name: text` including its continuation lines.
fn header(text: &str, name: &str) -> Option<String> {
    let start = format!("# {name}: ");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let first = lines.next()?.strip_prefix(&start)?.to_owned();
    let more = lines.take_while(|line| line.starts_with("#  "));
    Some(more.fold(first, |all, line| all + " " + line.trim_start_matches(['#', ' '])))
}

/// Words such as `optim.lr` in a header line.
fn keys(text: &str) -> BTreeSet<String> {
    let plain = |word: &str| word.trim_matches([',', '.', '(', ')', ';']).to_owned();
    let is_key = |word: &String| {
        ["augment.", "encoder.", "head.", "loss.", "moco.", "optim.", "task.", "train.", "transform."]
            .iter()
            .any(|section| word.starts_with(section))
    };
    text.split_whitespace().map(plain).filter(is_key).collect()
}

/// A recipe with a `Table` line differs from that table in exactly the keys of its `Differs` line.
#[test]
fn every_recipe_equals_its_source_except_for_declared_differences() {
    let mut compared = BTreeSet::new();
    for (name, text, config) in recipes() {
        let Some(table) = header(&text, "Table") else {
            let own = header(&text, "Source").unwrap();
            assert!(
                own.contains("this project") || own.contains("scaled-down") || own.contains(".toml"),
                "{name}: a recipe with a published source names its table: {own}"
            );
            continue;
        };
        let source = Source::ALL.into_iter().find(|source| source.name() == table);
        let source = source.unwrap_or_else(|| panic!("{name}: no table `{table}`"));
        let differences = source.differences(&config);
        let found: BTreeSet<String> = differences.iter().map(|found| found.key.clone()).collect();
        let named = keys(&header(&text, "Differs").unwrap_or_default());
        assert_eq!(found, named, "{name} against {table}: {differences:?}");
        compared.insert(table);
    }
    let all: BTreeSet<String> = Source::ALL.iter().map(|source| source.name().to_owned()).collect();
    assert_eq!(compared, all, "every table is compared with a recipe");
}

/// Weight decay 1e-6 instead of 1e-4 is detected.
#[test]
fn a_changed_value_is_a_difference() {
    let (_, _, config) =
        recipes().into_iter().find(|(name, ..)| name == "imagenet_resnet50_v2.toml").unwrap();
    let before = Source::SimclrV2.differences(&config).len();
    let mut wrong = config.clone();
    wrong.optim.weight_decay = 1e-6;
    let differences = Source::SimclrV2.differences(&wrong);
    assert_eq!(differences.len(), before + 1);
    let found = differences.iter().find(|found| found.key == "optim.weight_decay").unwrap();
    assert_eq!((found.ours.as_f64(), found.theirs.as_f64()), (Some(1e-6), Some(1e-4)));
}

#[test]
fn differs_from_official_compares_with_the_closest_source() {
    let differs = |name: &str, overrides: &[&str]| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name);
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        RunConfig::load(Some(&path), &overrides).unwrap().differs_from_official().unwrap()
    };
    // Epochs, batch and image size are the user's choice.
    let scaled = ["train.epochs=3", "train.batch=64"];
    assert_eq!(
        differs("cifar10_resnet18.toml", &scaled),
        "every setting is that of SimCLR's CIFAR-10 command"
    );
    assert_eq!(
        differs("cifar10_resnet18.toml", &["augment.gray=0.1", "head.norm=none"]),
        "differs from SimCLR's CIFAR-10 command in: augment.gray = 0.1 (0.2), head.init = linear (official), \
         head.norm = none (all)"
    );
    let v1 = differs("imagenet_resnet50_paper_v1.toml", &["optim.lr=0.4"]);
    assert_eq!(v1, "differs from SimCLR v1 in: encoder.padding = symmetric (same), optim.lr = 0.4 (0.3)");
    let second = differs("imagenet_resnet50_paper_v1.toml", &["augment.second_view.blur=0.1"]);
    assert_eq!(
        second,
        "differs from SimCLR v1 in: encoder.padding = symmetric (same), augment.second_view = {blur = 0.1} (none)"
    );
    let v2 = differs("imagenet_resnet50_v2.toml", &[]);
    assert_eq!(v2, "differs from SimCLR v2 in: encoder.padding = symmetric (same)");
}

#[test]
fn cautions_name_unfavourable_settings() {
    let cautions = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|&text| text.to_owned()).collect();
        RunConfig::load(None, &overrides).unwrap().cautions().join("\n")
    };
    let small = cautions(&[
        "train.image_size=32",
        "encoder.stem=imagenet",
        "loss.reduction=official",
        "optim.kind=sgd",
    ]);
    for word in ["colour strength", "blur", "ImageNet stem", "temperature", "twice the paper's"] {
        assert!(small.contains(word), "no `{word}` in {small}");
    }
    assert_eq!(cautions(&["train.batch=4096"]), "");
    for (epochs, warned) in [("11", false), ("10", true), ("3", true)] {
        let text = cautions(&["train.batch=4096", &format!("train.epochs={epochs}")]);
        assert_eq!(text.contains("warm-up is as long as the run"), warned, "{epochs} epochs: {text}");
    }
    assert_eq!(cautions(&["train.batch=4096", "train.epochs=3", "optim.warmup_epochs=0"]), "");
}
