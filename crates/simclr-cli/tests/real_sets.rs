//! Sets of sensors (12 bits in 16) and sets of several sources, from `inspect` to `embed`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::path::{Path, PathBuf};

use image::{ImageBuffer, Luma};
use support::{execute, image_folder, pretrain, simclr, stripes};

/// Stripes in 500 of 65536 values, 16 bits in PNG.
fn twelve_bits(data: &Path, count: usize) -> PathBuf {
    for index in 0..count {
        let dark = stripes(index, index % 4);
        let image: ImageBuffer<Luma<u16>, Vec<u16>> =
            ImageBuffer::from_fn(16, 16, |x, y| Luma([1000 + 2 * u16::from(dark.get_pixel(x, y).0[0])]));
        let folder = data.join(format!("class-{}", index % 4));
        fs::create_dir_all(&folder).unwrap();
        image.save(folder.join(format!("{index:04}.png"))).unwrap();
    }
    data.to_owned()
}

#[test]
fn value_ranges_are_recorded_with_the_run() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (twelve_bits(&temp.path().join("images"), 40), temp.path().join("run"));
    let looked = execute(simclr(&["inspect", "--data"]).arg(&data));
    assert!(looked.succeeds().out.contains("uint16 values: data.range = [[10"), "{}", looked.out);
    let trained = execute(&mut pretrain(&data, &run, &["--epochs", "1"]));
    assert!(trained.succeeds().err.contains("uint16 values: data.range"), "{}", trained.err);
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    let range = config["data"]["range"].as_array().unwrap().clone();
    assert_eq!(range.len(), 3);
    let low = range[0].as_array().unwrap()[0].as_float().unwrap();
    assert!((1000.0..1100.0).contains(&low), "{range:?}");
    // The range that was measured at the start is kept on resume.
    execute(&mut pretrain(&data, &run, &["--resume", "--epochs", "1"])).succeeds();
    let again: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(again["data"]["range"].as_array().unwrap(), &range);
    execute(simclr(&["evaluate", "--set", "eval.draws=1"]).arg(&run)).succeeds();
    let results = fs::read_to_string(run.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let recorded =
        results["run"]["transform"]["range"].as_array().or(results["transform"]["range"].as_array());
    assert_eq!(recorded.unwrap().len(), 3, "{results}");
    let dark = execute(
        simclr(&["views", "--image-size", "16", "--set", "data.range=full", "--data"])
            .arg(&data)
            .arg("--out")
            .arg(temp.path().join("dark.png")),
    );
    assert!(dark.succeeds().out.contains("16 of 256 levels"), "{}", dark.out);
}

#[test]
fn all_splits_of_all_sources_are_embedded() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    image_folder(&one.join("train"), 24);
    image_folder(&one.join("test"), 8);
    fs::create_dir_all(one.join("unlabeled")).unwrap();
    for index in 0..8 {
        stripes(index, index % 4).save(one.join(format!("unlabeled/{index}.png"))).unwrap();
    }
    image_folder(&two, 16);
    let run = temp.path().join("run");
    let mut trained = pretrain(&one, &run, &["--epochs", "1"]);
    let trained = execute(trained.arg("--data").arg(&two));
    // 24 and 16 training images, 8 without a label.
    assert!(trained.succeeds().err.contains("48 images"), "{}", trained.err);
    let table = temp.path().join("h.npy");
    let embed = |more: &[&str]| {
        let mut command = simclr(&["embed"]);
        execute(
            command
                .arg(&run)
                .arg("--data")
                .arg(&one)
                .arg("--data")
                .arg(&two)
                .arg("--out")
                .arg(&table)
                .args(more),
        )
    };
    assert!(embed(&[]).succeeds().out.contains("56 rows"), "8 of the test part as well");
    assert!(embed(&["--split", "unlabelled"]).succeeds().out.contains("8 rows"));
    embed(&["--split", "dev"]).refuses(&["expected one of train, test, validation, unlabelled"]);
    let all = temp.path().join("all");
    let parts = execute(&mut pretrain(&one, &all, &["--epochs", "1", "--split", "train,test"]));
    assert!(parts.succeeds().err.contains("32 images"), "{}", parts.err);
}
