//! The commands as a user meets them, and runs that are killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::{
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use support::{image_folder, newest_checkpoint, pretrain, said, simclr, step_of};

#[test]
fn help_lists_the_commands() {
    let said = said(&mut simclr(&["--help"]));
    said.succeeds();
    for command in ["pretrain", "evaluate", "embed", "export", "views", "inspect"] {
        assert!(said.out.lines().any(|line| line.trim_start().starts_with(command)), "{}", said.out);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(said(&mut simclr(&["pretain"])).code, Some(2));
    assert_eq!(said(&mut simclr(&["pretrain", "--resume"])).code, Some(2));
    said(&mut simclr(&["pretrain"])).refuses(&["no images are named"]);
}

/// Copies that do not know each other would train one run over each other.
#[test]
fn processes_that_cannot_meet_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    said(pretrain(&data, &run, &[]).env("SLURM_STEP_NUM_TASKS", "4")).refuses(&["srun started 4 processes"]);
    said(simclr(&["inspect", "--data"]).arg(&data).env("SLURM_STEP_NUM_TASKS", "4"))
        .refuses(&["4 processes were started for a command that runs as one"]);
    #[cfg(not(feature = "mpi"))]
    said(pretrain(&data, &run, &[]).env("OMPI_COMM_WORLD_SIZE", "2")).refuses(&["built without MPI"]);
    assert!(!run.exists());
}

#[test]
fn the_straight_line_from_images_to_features() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 80), temp.path().join("run"));
    let trained = said(&mut pretrain(&data, &run, &[]));
    trained.succeeds();
    assert_eq!(trained.out.trim(), run.display().to_string());
    for fact in ["data ", "device", "encoder", "head", "loss", "learning rate", "groups", "step 10/10"] {
        assert!(trained.err.lines().any(|line| line.starts_with(fact)), "no `{fact}` in {}", trained.err);
    }
    let evaluated = said(simclr(&["evaluate"]).arg(&run));
    evaluated.succeeds();
    for row in ["trained h", "random-init h", "raw pixels", "chance"] {
        assert!(evaluated.out.lines().any(|line| line.starts_with(row)), "{}", evaluated.out);
    }
    let results: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(run.join("results.json")).unwrap()).unwrap();
    assert!(results["rows"].as_array().is_some_and(|rows| rows.len() == 4), "{results}");
    let exported = said(simclr(&["export"]).arg(&run));
    exported.succeeds();
    assert!(
        run.join("encoder.safetensors").is_file() && exported.out.contains("read back"),
        "{}",
        exported.out
    );
    for name in ["h.npy", "h.parquet"] {
        let out = temp.path().join(name);
        let embedded = said(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(&out));
        embedded.succeeds();
        assert!(embedded.out.contains("80 rows of 32 features, 0 images skipped"), "{}", embedded.out);
        assert!(out.is_file());
    }
    let sheet = temp.path().join("views.png");
    let drawn = said(simclr(&["views", "--image-size", "16", "--data"]).arg(&data).arg("--out").arg(&sheet));
    drawn.succeeds();
    let sheet = image::open(sheet).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (9 * 100 + 4, 8 * 100 + 4));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let weights = |name: &str, seed: &str| {
        let run = temp.path().join(name);
        said(&mut pretrain(&data, &run, &["--seed", seed, "--epochs", "1"])).succeeds();
        said(simclr(&["export"]).arg(&run)).succeeds();
        fs::read(run.join("encoder.safetensors")).unwrap()
    };
    let first = weights("a", "1");
    assert!(first == weights("b", "1"), "two runs of one seed differ");
    assert!(first != weights("c", "2"), "two seeds give one result");
}

/// Starts a run of 400 steps that writes a checkpoint after each, and waits until some are there.
fn started(data: &Path, run: &Path) -> Child {
    let mut command = pretrain(data, run, LONG);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while newest_checkpoint(run).is_none_or(|path| step_of(&path) < 10) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

const LONG: &[&str] = &["--epochs", "200", "--set", "train.checkpoint_minutes=0"];

fn uninterrupted(data: &Path, run: &Path) -> Vec<u8> {
    said(&mut pretrain(data, run, LONG)).succeeds();
    fs::read(newest_checkpoint(run).unwrap()).unwrap()
}

#[test]
fn kill_9_leaves_a_whole_checkpoint_and_resuming_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = uninterrupted(&data, &temp.path().join("whole"));
    let run = temp.path().join("killed");
    let mut child = started(&data, &run);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was still running when it was killed");
    let resumed = said(simclr(&["pretrain", "--resume", "--run"]).arg(&run));
    resumed.succeeds();
    assert!(resumed.err.contains("resumed after step "), "{}", resumed.err);
    assert!(expected == fs::read(newest_checkpoint(&run).unwrap()).unwrap(), "weights differ");
}

#[cfg(unix)]
#[test]
fn an_interrupt_writes_a_checkpoint_and_exits_with_130() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = uninterrupted(&data, &temp.path().join("whole"));
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let run = temp.path().join(signal);
        let mut child = started(&data, &run);
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code));
        said(simclr(&["pretrain", "--resume", "--run"]).arg(&run)).succeeds();
        assert!(
            expected == fs::read(newest_checkpoint(&run).unwrap()).unwrap(),
            "weights differ after SIG{signal}"
        );
    }
}
