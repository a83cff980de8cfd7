//! Several processes through the real binary: the same training, ranks that die or hang, another number of ranks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod equality;
mod lost;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fs_err as fs;
use simclr::checkpoint::Checkpoint;
use support::{LAUNCHERS, Launcher, execute, finished, image_folder, newest_checkpoint, pretrain, simclr};

/// Lost ranks are detected within this time; the default heartbeat timeout is 18 s.
const WITHIN: Duration = Duration::from_secs(30);

/// One test at a time: each starts several processes.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tensors of the newest checkpoint by name.
fn tensors(run: &Path) -> BTreeMap<String, Vec<f64>> {
    let path = newest_checkpoint(run).unwrap();
    let checkpoint = Checkpoint::load(&path).unwrap();
    let numbers = |tensor: &tch::Tensor| Vec::<f64>::try_from(tensor.reshape([-1])).unwrap();
    checkpoint.tensors.iter().map(|(name, tensor)| (name.clone(), numbers(tensor))).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest relative distance between tensors of the same name, and that name.
fn furthest<'a>(
    found: &'a BTreeMap<String, Vec<f64>>,
    expected: &BTreeMap<String, Vec<f64>>,
    prefix: &str,
) -> (f64, &'a str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let of = |(name, values): (&'a String, &Vec<f64>)| {
        let twin = &expected[name];
        let apart: Vec<f64> = values.iter().zip(twin).map(|(a, b)| a - b).collect();
        (norm(&apart) / norm(twin).max(f64::MIN_POSITIVE), name.as_str())
    };
    let all = found.iter().filter(|(name, _)| name.starts_with(prefix)).map(of);
    all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// Losses by step.
fn losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses: Vec<(u64, f64)> =
        lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?))).collect();
    assert!(
        losses.iter().enumerate().all(|(at, (step, _))| at as u64 == *step),
        "each step once: {losses:?}"
    );
    losses.into_iter().map(|(_, loss)| loss).collect()
}

/// `processes` of them connected by Gloo, or one by hand.
fn trained(processes: usize, data: &Path, run: &Path, more: &[&str]) {
    trained_by(Launcher::Gloo, processes, data, run, more);
}

fn trained_by(launcher: Launcher, processes: usize, data: &Path, run: &Path, more: &[&str]) {
    let mut command = pretrain(data, run, more);
    let output = execute(&mut if processes == 0 { command } else { launcher.start(processes, &mut command) });
    output.succeeds();
    assert_eq!(output.out.trim(), run.display().to_string(), "one process prints the folder");
    assert!(!output.err.contains("resumed"), "{}", output.err);
}

/// Plain SGD: after one step the momentum buffer is the gradient.
const ONE_STEP: &[&str] = &[
    "--set",
    "optim.kind=sgd",
    "--set",
    "optim.weight_decay=0",
    "--set",
    "optim.lr_in_momentum=false",
    "--epochs",
    "0.5",
];

#[test]
fn doctor_checks_processes_and_chunks() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 160);
    for processes in [1, 2] {
        let mut doctor = simclr(&["doctor", "--data"]);
        doctor.arg(&data);
        for setting in support::SMALL {
            doctor.args(["--set", setting]);
        }
        let output =
            execute(&mut if processes == 1 { doctor } else { Launcher::Gloo.start(processes, &mut doctor) });
        output.succeeds();
        let verdict = |name: &str| {
            let mut words = output.out.lines().map(str::split_whitespace);
            let line = words
                .find_map(|mut words| Some((words.next()?, words.next()?)).filter(|line| line.1 == name));
            line.unwrap_or_else(|| panic!("no `{name}` in {}", output.out)).0.to_owned()
        };
        assert_eq!(verdict("chunks"), "fine");
        assert_eq!(verdict("memory"), "fine");
        assert_eq!(verdict("weight"), "fine");
        assert_eq!(verdict("processes"), if processes > 1 { "fine" } else { "-" });
        if processes > 1 {
            assert_eq!(verdict("communication"), "-");
            let forecast = output.out.lines().last().unwrap();
            assert!(["8 processes", "64", "512"].iter().all(|part| forecast.contains(part)), "{forecast}");
        }
        assert!(["encoder", "learning", "batch", "groups"].iter().all(|name| verdict(name) == "-"));
    }
}

#[test]
fn errors_are_reported_once() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run: PathBuf = temp.path().join("run");
    let refused = |launcher: Launcher, more: &[&str], parts: &[&str]| {
        let output = execute(&mut launcher.start(3, &mut pretrain(&data, &run, more)));
        output.refuses(parts);
        assert!(!run.join("config.toml").exists());
    };
    for &launcher in LAUNCHERS {
        refused(launcher, &["--batch", "2"], &["train.batch = 2", "3 processes"]);
        refused(launcher, &["--set", "train.bacth=4"], &["train.bacth"]);
        let output = execute(&mut launcher.start(2, simclr(&["inspect", "--data"]).arg(&data)));
        assert_eq!(output.code, Some(2));
        let message = "2 processes were started for a command that runs as one";
        assert!(output.err.contains(message), "{}", output.err);
    }
    refused(Launcher::Gloo, &["--batch", "41"], &["train.batch", "at most the 40 images"]);
    let moco = ["--set", "task.objective=moco", "--set"];
    refused(
        Launcher::Gloo,
        &[&moco[..], &["train.batch_norm=chunk"]].concat(),
        &["train.batch_norm = chunk", "moco.shuffle"],
    );
    refused(
        Launcher::Gloo,
        &[&moco[..], &["train.batch_norm_groups=4"]].concat(),
        &["train.batch_norm_groups = 4", "several processes"],
    );
}

/// Processes that torchrun or a person started with these variables.
#[test]
fn processes_meet_by_their_variables() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let process = |run: &str, rank: &str, world: &str| {
        let mut command = pretrain(&data, &temp.path().join(run), &["--epochs", "1"]);
        command.envs([("RANK", rank), ("WORLD_SIZE", world), ("MASTER_ADDR", "localhost")]);
        command.env("MASTER_PORT", &port).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let second = process("run", "1", "2").spawn().unwrap();
    let first = process("run", "0", "2").spawn().unwrap();
    finished(first, WITHIN).succeeds();
    let second = finished(second, WITHIN);
    second.succeeds();
    assert_eq!((second.out.as_str(), second.err.as_str()), ("", ""));
    let steps: Vec<f64> = losses(&temp.path().join("run"));
    assert_eq!(steps.len(), 2);

    let twins = ["a", "b"].map(|run| process(run, "0", "2").spawn().unwrap());
    std::thread::sleep(Duration::from_secs(1));
    for (run, mut child) in ["a", "b"].into_iter().zip(twins) {
        // One of them hosts the store and waits for rank 1; the other one is refused the port.
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            continue;
        }
        finished(child, WITHIN).refuses(&["cannot meet at localhost", &port]);
        assert!(!temp.path().join(run).join("config.toml").exists());
    }
    let mut lonely = process("c", "1", "2");
    execute(lonely.env_remove("RANK")).refuses(&["RANK is nothing"]);
    execute(lonely.env("RANK", "2")).refuses(&["RANK is 2, expected less than 2"]);
}

#[test]
fn undecodable_images_are_counted_over_all_ranks() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    for name in ["class-0/0000.png", "class-3/0039.png"] {
        fs::write(data.join(name), b"no image").unwrap();
    }
    // Two full batches per epoch: every image is read.
    let some = ["--set", "data.max_bad_share=0.1", "--batch", "20"];
    trained(0, &data, &temp.path().join("plain"), &some);
    trained(3, &data, &temp.path().join("ranks"), &some);
    let (plain, ranks) = (tensors(&temp.path().join("plain")), tensors(&temp.path().join("ranks")));
    let (distance, tensor) = furthest(&ranks, &plain, "encoder.");
    assert!(distance <= 1e-3, "{tensor} is {distance:e} away");
    let listed = |run: &str| {
        let text = fs::read_to_string(temp.path().join(run).join("bad_files.txt")).unwrap();
        let mut names: Vec<_> =
            text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(listed("ranks"), listed("plain"));
    let few = ["--set", "data.max_bad_share=0", "--batch", "20"];
    let output = execute(&mut Launcher::Gloo.start(3, &mut pretrain(&data, &temp.path().join("few"), &few)));
    output.refuses(&["2 of 40"]);
}
