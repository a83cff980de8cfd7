//! Sources of labels: `--labels-from` and tables in the folder.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::path::Path;

use support::{Finished, execute, image_folder, pretrain, simclr, stripes};

fn inspected(data: &Path, more: &[&str]) -> Finished {
    execute(simclr(&["inspect", "--data"]).arg(data).args(more))
}

fn results(run: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(run.join("results.json")).unwrap()).unwrap()
}

/// Without class folders, with a table outside the set.
#[test]
fn label_tables_are_recorded_with_the_run() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (temp.path().join("images"), temp.path().join("run"));
    fs::create_dir(&data).unwrap();
    let mut table = String::from("image;size;target\n");
    for index in 0..40 {
        stripes(index, index % 4).save(data.join(format!("{index:04}.png"))).unwrap();
        table += &format!("{index:04};16;kind {}\n", index % 4);
    }
    let file = temp.path().join("t.csv");
    fs::write(&file, table).unwrap();
    let given = ["--labels-from", file.to_str().unwrap()];
    assert!(inspected(&data, &[]).succeeds().out.contains("no labels"));
    assert!(inspected(&data, &given).succeeds().out.contains("4 classes"));
    let set = temp.path().join("set.pack");
    execute(simclr(&["pack", "--data"]).arg(&data).arg("--out").arg(&set).args(given)).succeeds();
    assert!(inspected(&set, &[]).succeeds().out.contains("4 classes"));
    let mut trained = pretrain(&data, &run, &["--labels-from", "t.csv"]);
    let trained = execute(trained.current_dir(temp.path()));
    assert!(
        trained.succeeds().err.contains("4 classes (labels are used by the online kNN only)"),
        "{}",
        trained.err
    );
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let whole = file.canonicalize().unwrap();
    assert!(config.contains(&format!("labels = \"{}\"", whole.display())), "{config}");
    let evaluate = |more: &[&str]| {
        let mut command = simclr(&["evaluate", "--set", "eval.draws=1", "--set", "eval.trained.epochs=1"]);
        execute(command.arg(&run).args(more))
    };
    evaluate(&["--protocols", "linear-sgd"]).succeeds();
    let notes = results(&run)["notes"].to_string();
    assert!(notes.contains("labels are those of") && notes.contains("t.csv"), "{notes}");
    evaluate(&["--labels-from", "auto"]).refuses(&["none of the 40 images of the training part has one"]);
    evaluate(&["--labels-from", "gone.csv"]).refuses(&["gone.csv"]);
    let none = temp.path().join("none.csv");
    fs::write(&none, "path,label\nx.png,1\n").unwrap();
    evaluate(&["--labels-from", none.to_str().unwrap()])
        .refuses(&["none.csv", "none of its 1 rows names an image of the set"]);
}

#[test]
fn labels_can_be_switched_off() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    assert!(inspected(&data, &["--labels-from", "none"]).succeeds().out.contains("no labels"));
    let trained = execute(&mut pretrain(&data, &run, &["--labels-from", "none"]));
    assert!(trained.succeeds().err.contains("no labels"), "{}", trained.err);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(!metrics.contains("knn"), "{metrics}");
    let refused = execute(simclr(&["evaluate"]).arg(&run));
    refused.refuses(&["switched off: data.labels is \"none\""]);
    refused.hints("--labels-from");
    execute(simclr(&["evaluate", "--set", "eval.draws=1", "--labels-from", "auto"]).arg(&run)).succeeds();
    let missing = temp.path().join("missing");
    execute(&mut pretrain(&data, &missing, &["--labels-from", "nnone"]))
        .refuses(&["data.labels = `nnone`: expected auto, none or the path"]);
    assert!(!missing.exists(), "a wrong name leaves nothing behind");
}

#[test]
fn tables_in_the_folder_are_used_and_noted() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 8);
    let rows: String = (0..8).map(|at| format!("class-{}/{at:04}.png,kind {}\n", at % 4, at % 2)).collect();
    fs::write(data.join("metadata.csv"), format!("file_name,label\n{rows}gone.png,kind 0\n")).unwrap();
    let found = inspected(&data, &[]);
    for part in ["2 classes", "labels are those of `metadata.csv`; 1 of 9 rows name no image: `gone.png`"] {
        assert!(found.succeeds().out.contains(part), "{}", found.out);
    }
}
