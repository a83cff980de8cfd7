//! Every recipe of `configs/` loads, and says what it is for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use simclr::RunConfig;

#[test]
fn every_recipe_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut count = 0;
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = RunConfig::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(config, RunConfig::default(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 5, "{count} recipes");
}

#[test]
fn traps_are_said() {
    let cautions = |more: &[&str]| {
        let overrides: Vec<_> = more.iter().map(|&text| text.to_owned()).collect();
        RunConfig::load(None, &overrides).unwrap().cautions().join("\n")
    };
    let small =
        cautions(&["train.image_size=32", "encoder.stem=imagenet", "loss.scale=official", "optim.kind=sgd"]);
    for word in ["colour strength", "blur", "ImageNet stem", "temperature", "twice the paper's"] {
        assert!(small.contains(word), "no `{word}` in {small}");
    }
    assert_eq!(cautions(&["train.batch=4096"]), "");
}
