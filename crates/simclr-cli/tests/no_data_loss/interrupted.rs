//! Runs and evaluations that are killed or interrupted end with the same results.

use fs_err as fs;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::support::{execute, image_folder, newest_checkpoint, pretrain, simclr, wait_for_step};

/// Names and times of the cached results of an evaluation of `run`.
fn figures(run: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let Ok(entries) = fs::read_dir(run.join("evaluation/figures")) else { return Vec::new() };
    let whole = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some());
    let mut found: Vec<_> =
        whole.filter_map(|path| Some((path.clone(), fs::metadata(&path).ok()?.modified().ok()?))).collect();
    found.retain(|(path, _)| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
    found.sort();
    found
}

/// Killed twice, during frozen protocols and during trainings: cached results are kept, nothing is computed twice, and the
/// results equal those of an uninterrupted evaluation.
#[test]
fn killed_evaluations_resume_with_the_same_results() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 80), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    let whole = temp.path().join("whole");
    assert!(std::process::Command::new("cp").arg("-r").args([&run, &whole]).status().unwrap().success());
    let evaluate = |run: &Path| {
        let mut command = simclr(&["evaluate", "--protocols", "all"]);
        for key in ["draws=2", "trained.epochs=2", "trained.finetune_draws=2", "trained.head_layers=0,1"] {
            command.arg("--set").arg(format!("eval.{key}"));
        }
        command.arg(run);
        command
    };
    execute(&mut evaluate(&whole)).succeeds();
    let of = |run: &Path| {
        let text = fs::read_to_string(run.join("results.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let mut kept = Vec::new();
    for enough in [5, 30] {
        let mut child = evaluate(&run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while figures(&run).len() < enough {
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "{} figures in two minutes",
                figures(&run).len()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it was still running when it was killed");
        assert!(!run.join("results.json").exists());
        let now = figures(&run);
        assert!(kept.iter().all(|figure| now.contains(figure)), "a figure was found twice");
        kept = now;
    }
    execute(&mut evaluate(&run)).succeeds();
    let now = figures(&run);
    assert!(kept.iter().all(|figure| now.contains(figure)) && now.len() > kept.len());
    assert_eq!(of(&run), of(&whole));
}

/// Starts a run of 1200 steps that writes a checkpoint after each, and waits until some are there.
fn started(data: &Path, run: &Path) -> Child {
    let run_command = pretrain(data, run, &[LONG, AUTO].concat());
    // These tests may run where signals are ignored: in the background of a shell without job control, or under nohup.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=INT,TERM,HUP,QUIT,USR1,USR2")
        .arg(run_command.get_program())
        .args(run_command.get_args());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_step(run, 10);
    child
}

const LONG: &[&str] = &["--epochs", "600", "--set", "train.checkpoint_minutes=0"];

/// Starts a run, or continues it if there is one.
const AUTO: &[&str] = &["--resume", "auto"];

fn uninterrupted(data: &Path, run: &Path) -> Vec<u8> {
    execute(&mut pretrain(data, run, LONG)).succeeds();
    fs::read(newest_checkpoint(run).unwrap()).unwrap()
}

#[test]
fn killed_runs_resume_with_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = uninterrupted(&data, &temp.path().join("whole"));
    let run = temp.path().join("killed");
    let mut child = started(&data, &run);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was still running when it was killed");
    let resumed = execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run));
    resumed.succeeds();
    assert!(resumed.err.contains("resumed after step "), "{}", resumed.err);
    assert!(expected == fs::read(newest_checkpoint(&run).unwrap()).unwrap(), "weights differ");
    assert_eq!(sessions(&run), ["start", "start", "finished"]);
    let again = execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run));
    assert!(again.succeeds().err.contains(": the run is finished"), "{}", again.err);
}

/// Events of `sessions.jsonl`; of an end its outcome.
fn sessions(run: &Path) -> Vec<String> {
    let text = fs::read_to_string(run.join("sessions.jsonl")).unwrap();
    let event = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["unix_seconds"].as_u64() > Some(1_700_000_000) && line["host"].is_string());
        let is_start = line["event"] == "start";
        assert!(!is_start || line["command"].as_array().unwrap().iter().any(|word| word == "pretrain"));
        line[if is_start { "event" } else { "outcome" }].as_str().unwrap().to_owned()
    };
    text.lines().map(event).collect()
}

#[cfg(unix)]
#[test]
fn interrupted_runs_write_a_checkpoint_and_exit_with_128_plus_signal() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = uninterrupted(&data, &temp.path().join("whole"));
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let run = temp.path().join(format!("{signal:?}"));
        let mut child = started(&data, &run);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal.as_raw()), "{signal:?}");
        // All signals set the same flag; the rest of the run is repeated after two of them: after one of them by the command line
        // that started it.
        let resumed = match signal {
            Signal::INT => execute(simclr(&["pretrain", "--resume", "--run"]).arg(&run)),
            Signal::USR1 => execute(&mut pretrain(&data, &run, &[LONG, AUTO].concat())),
            _ => continue,
        };
        assert!(resumed.succeeds().err.contains("resumed after step "));
        assert!(
            expected == fs::read(newest_checkpoint(&run).unwrap()).unwrap(),
            "weights differ after {signal:?}"
        );
        assert_eq!(sessions(&run), ["start", "stopped", "start", "finished"]);
    }
}

/// The command line of a run must not change what was trained.
#[test]
fn resume_auto_refuses_other_settings() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let auto = |more: &[&str]| execute(&mut pretrain(&data, &run, &[AUTO, more].concat()));
    auto(&[]).succeeds();
    let weights = fs::read(newest_checkpoint(&run).unwrap()).unwrap();
    let refused = auto(&["--set", "loss.decoupled=true", "--set", "train.health_every=7"]);
    refused.refuses(&["started with other settings: loss.decoupled was not set, is true"]);
    refused.hints("--resume");
    auto(&["--set", "train.health_every=7"]).succeeds();
    assert!(weights == fs::read(newest_checkpoint(&run).unwrap()).unwrap());
    let recipe = temp.path().join("recipe.toml");
    fs::write(&recipe, "").unwrap();
    let mut both = simclr(&["pretrain", "--resume", "--run"]);
    let both = execute(both.arg(&run).arg("--config").arg(&recipe));
    both.refuses(&["no --config"]);
    both.hints("--resume auto");
}

/// As under nohup.
#[cfg(unix)]
#[test]
fn a_run_that_ignores_hangups_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let (run, command) = (temp.path().join("run"), pretrain(&data, &temp.path().join("run"), LONG));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    let mut child = shell.stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for_step(&run, 0);
    assert!(child.try_wait().unwrap().is_none(), "it was running");
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
