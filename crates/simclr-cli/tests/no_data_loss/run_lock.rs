//! Several processes on one run folder.

use fs_err as fs;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    STEPS, no_partial_file,
    support::{
        Finished, execute, finished, image_folder, newest_checkpoint, pretrain, simclr, wait_for_step,
    },
};

/// More steps than a test waits for.
const ENDLESS: [&str; 4] = ["--epochs", "100000", "--set", "train.checkpoint_minutes=0"];

/// A run with checkpoints, which continues until it is killed.
struct Running(Child);

impl Running {
    fn on(data: &Path, run: &Path) -> Self {
        let child =
            pretrain(data, run, &ENDLESS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_step(run, 2);
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The message names folder, host and process that holds the lock; the hint another folder.
#[track_caller]
fn refused_for(output: &Finished, run: &Path, pid: u32) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    output.refuses(&[run.to_str().unwrap(), &format!("process {pid} on {host}")]);
    output.hints("--run");
}

#[test]
fn commands_that_write_to_a_run_folder_in_use_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    let running = Running::on(&data, &run);
    let inside = run.join("h.npy");
    let inside = ["--out", inside.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let commands: [&[&str]; 5] = [
        &["pretrain", "--resume", "--run"],
        &["export"],
        &["evaluate"],
        &["evaluate", "--fresh"],
        &["embed"],
    ];
    for arguments in commands {
        let mut command = simclr(arguments);
        command.arg(&run);
        if arguments == ["embed"] {
            command.args(inside);
        }
        refused_for(&execute(&mut command), &run, running.0.id());
    }
    refused_for(&execute(&mut pretrain(&data, &run, &[])), &run, running.0.id());
    // Outputs elsewhere need no lock.
    execute(simclr(&["export"]).arg(&run).arg("--out").arg(temp.path().join("e.safetensors"))).succeeds();
    // The kernel releases the lock of a killed process, although the file still names it.
    let pid = running.0.id().to_string();
    drop(running);
    assert!(fs::read_to_string(run.join("run.lock")).unwrap().contains(&pid));
    execute(simclr(&["export"]).arg(&run)).succeeds();
}

/// `PAIRS=100` tries as many.
#[test]
fn of_two_simultaneous_starts_exactly_one_runs() {
    let pairs = std::env::var("PAIRS").map_or(4, |text| text.parse().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = temp.path().join("alone");
    execute(&mut pretrain(&data, &expected, &STEPS)).succeeds();
    let expected = fs::read(newest_checkpoint(&expected).unwrap()).unwrap();
    let pair = |command: &dyn Fn() -> Command| {
        let start = |_| command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let both = [(); 2].map(start).map(|child| finished(child, Duration::from_secs(60)));
        both.map(|output| (output.code, output))
    };
    for number in 0..pairs {
        let run = temp.path().join(format!("run-{number}"));
        let fresh = pair(&|| pretrain(&data, &run, &STEPS));
        let lost = one_won(&fresh);
        let words = ["is writing to it", "holds a run already"];
        assert!(words.iter().any(|words| lost.err.contains(words)), "{}", lost.err);
        assert!(fs::read(newest_checkpoint(&run).unwrap()).unwrap() == expected);
        no_partial_file(&run);
        // Two processes resume simultaneously from the first checkpoint.
        for step in 2..=12 {
            fs::remove_file(run.join(format!("checkpoints/step-{step:09}.safetensors"))).unwrap();
        }
        let resumed = pair(&|| {
            let mut command = simclr(&["pretrain", "--resume", "--run"]);
            command.arg(&run);
            command
        });
        // If the second starts after the end of the first, both succeed.
        if resumed.iter().any(|(code, _)| *code != Some(0)) {
            assert!(one_won(&resumed).err.contains("is writing to it"));
        }
        assert!(fs::read(newest_checkpoint(&run).unwrap()).unwrap() == expected);
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let steps = metrics.lines().filter(|line| line.contains("\"lr\"")).count();
        assert_eq!(steps, 12, "each step once: {metrics}");
    }
}

/// Exit codes 0 and 2; returns the output of the refused process.
#[track_caller]
fn one_won(both: &[(Option<i32>, Finished); 2]) -> &Finished {
    let codes = [both[0].0, both[1].0];
    assert!(
        [[Some(0), Some(2)], [Some(2), Some(0)]].contains(&codes),
        "{codes:?}\n{}\n{}",
        both[0].1.err,
        both[1].1.err
    );
    let lost = both.iter().find(|(code, _)| *code == Some(2)).unwrap();
    assert!(!lost.1.err.contains("internal error"), "{}", lost.1.err);
    &lost.1
}

#[test]
fn simultaneous_unnamed_runs_get_different_folders() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let start = |_| {
        let unnamed = pretrain(&data, Path::new("unused"), &STEPS);
        let arguments: Vec<_> =
            unnamed.get_args().filter(|word| *word != "--run" && *word != "unused").collect();
        let mut command = Command::new(unnamed.get_program());
        command.args(arguments).current_dir(temp.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let all = [(); 3].map(start).map(|child| finished(child, Duration::from_secs(60)));
    let mut folders: Vec<_> = all.iter().map(|output| output.succeeds().out.trim().to_owned()).collect();
    folders.sort();
    assert_eq!(folders, ["runs/images-1", "runs/images-2", "runs/images-3"]);
}

/// Trainings of an evaluation are runs inside the run folder, with separate locks.
#[test]
fn evaluations_hold_the_lock_while_they_train() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let mut child = simclr(&[
        "evaluate",
        "--set",
        "eval.draws=1",
        "--protocols",
        "finetune",
        "--set",
        "eval.trained.epochs=4",
    ])
    .arg(&run)
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let begin = Instant::now();
    while !run.join("evaluation").exists() {
        assert!(child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    refused_for(&execute(simclr(&["evaluate"]).arg(&run)), &run, child.id());
    finished(child, Duration::from_secs(120)).succeeds();
}
