//! Keys that a new run chooses if they are not written, and its output before the first step.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::{path::Path, process::Stdio, time::Duration};

use support::{execute, finished, image_folder, pretrain, simclr, wait_for_step};

/// The value of a key in the `config.toml` of a run, as text.
fn key(run: &Path, name: &str) -> String {
    let text = fs::read_to_string(run.join("config.toml")).unwrap();
    let (section, key) = name.split_once('.').unwrap();
    let after = text.split(&format!("[{section}]\n")).nth(1).unwrap();
    let line = after.lines().take_while(|line| !line.starts_with('[')).find_map(|line| {
        line.split_once(" = ").filter(|(found, _)| *found == key).map(|(_, value)| value.to_owned())
    });
    line.unwrap_or_else(|| panic!("no `{name}` in {text}"))
}

#[test]
fn defaults_are_chosen_for_cpu_and_small_sets_and_kept_on_resume() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let mut command = simclr(&["pretrain", "--device", "cpu", "--epochs", "1", "--data"]);
    let trained = execute(command.arg(&data).arg("--run").arg(&run));
    trained.succeeds();
    let chosen = [
        ("encoder.name", "\"resnet18\""),
        ("train.image_size", "16"),
        ("train.batch", "32"),
        ("train.chunk", "0"),
        ("augment.color", "0.5"),
        ("augment.blur", "0.0"),
        ("loss.temperature", "0.5"),
        ("optim.scaling", "\"sqrt\""),
        ("optim.lr", "0.075"),
    ];
    let as_chosen = || chosen.iter().for_each(|(name, value)| assert_eq!(key(&run, name), *value, "{name}"));
    as_chosen();
    for part in [
        "chosen ",
        "encoder.name = resnet18",
        "train.batch = 32: the set has 40 images",
        "(paper B.9)",
        "(paper B.1)",
        "warm-up        optim.warmup_epochs = 0.1: a tenth of the run",
    ] {
        assert!(trained.err.contains(part), "no `{part}` in {}", trained.err);
    }
    // On resume, nothing is chosen again.
    let resumed = execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run));
    assert!(!resumed.succeeds().err.contains("chosen "), "{}", resumed.err);
    as_chosen();
}

#[test]
fn written_keys_are_kept_and_the_time_is_estimated() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let written = ["--encoder", "conv-c4", "--image-size", "24", "--batch", "8", "--chunk", "4"];
    let trained = execute(pretrain(&data, &run, &written).args(["--epochs", "60"]));
    trained.succeeds();
    for (name, value) in [
        ("encoder.name", "\"conv-c4\""),
        ("train.image_size", "24"),
        ("train.batch", "8"),
        ("train.chunk", "4"),
        ("train.batch_norm", "\"global\""),
        ("augment.blur", "0.5"),
        ("optim.scaling", "\"linear\""),
    ] {
        assert_eq!(key(&run, name), value, "{name}");
    }
    let line = |name: &str| trained.err.lines().position(|line| line.starts_with(name));
    let (time, first) = (line("time           about"), line("step 1/"));
    assert!(time.is_some() && time < first, "{}", trained.err);
    assert!(line("memory ").is_some() && line("chosen ").is_none(), "{}", trained.err);
}

#[test]
fn keys_without_effect_are_listed() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let trained =
        execute(&mut pretrain(&data, &run, &["--set", "moco.queue=4096", "--set", "optim.beta1=0.9"]));
    let expected = "without effect moco.queue = 4096 has no effect: it needs task.objective";
    assert!(trained.succeeds().err.contains(expected), "{}", trained.err);
    assert!(!trained.err.contains("optim.beta1"), "the default: {}", trained.err);
}

#[test]
fn steps_that_exceed_memory_are_refused_with_numbers() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let refused = execute(&mut pretrain(&data, &run, &["--set", "train.memory_gib=0.01"]));
    refused.refuses(&[
        "memory: a step of conv-c3 over 16 images of 16 px",
        "needs 0.",
        "expected at most 0.01 GiB (train.memory_gib)",
    ]);
    refused.hints("--batch");
    assert!(!run.exists());
    // A written chunk is kept, with a warning.
    let taken = execute(&mut pretrain(&data, &run, &["--chunk", "8", "--set", "train.memory_gib=0.01"]));
    assert!(taken.succeeds().err.contains("the system may kill the run"), "{}", taken.err);
}

#[test]
fn interrupted_runs_print_the_command_to_resume() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("my run's"));
    let mut command = pretrain(&data, &run, &["--epochs", "400", "--set", "train.checkpoint_minutes=0"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_step(&run, 0);
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
    let output = finished(child, Duration::from_secs(60));
    assert_eq!(output.code, Some(143));
    let command = output.err.lines().find_map(|line| line.strip_prefix("stopped; to resume: simclr "));
    let command = command.unwrap_or_else(|| panic!("no command in {}", output.err));
    // Executed by a shell.
    let program = env!("CARGO_BIN_EXE_simclr");
    let more = "--set train.checkpoint_minutes=10";
    let mut shell = std::process::Command::new("sh");
    let again = support::execute(shell.args(["-c", &format!("'{program}' {command} {more}")]));
    assert!(again.succeeds().err.contains("resumed after step "), "{}", again.err);
}
