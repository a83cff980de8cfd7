//! Ranks that die or hang, and runs that go on with another number of ranks.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use fs_err as fs;

use crate::{
    WITHIN,
    support::{
        Finished, LAUNCHERS, Launcher, finished, image_folder, newest_checkpoint, pretrain, simclr, step_of,
        wait_for_step,
    },
    turn,
};

/// Process id of `rank` in the run with this folder.
fn process_of(launcher: Launcher, rank: usize, run: &Path) -> u32 {
    let has = |file: &Path, part: &str| {
        let bytes = std::io::Read::bytes(fs::File::open(file).ok()?).collect::<Result<Vec<u8>, _>>().ok()?;
        let found = bytes.split(|&byte| byte == 0).any(|word| word == part.as_bytes());
        found.then_some(())
    };
    let found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let folder = entry.ok()?.path();
        let id = folder.file_name()?.to_str()?.parse().ok()?;
        has(&folder.join("cmdline"), &run.display().to_string())?;
        has(&folder.join("environ"), &format!("{}={rank}", launcher.rank_variable()))?;
        Some(id)
    });
    let found: Vec<u32> = found.collect();
    assert_eq!(found.len(), 1, "one process is rank {rank}");
    found[0]
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// A long run that writes a checkpoint after every step.
const LONG: &[&str] =
    &["--epochs", "2000", "--set", "train.checkpoint_minutes=0", "--set", "train.knn_every=0"];

/// Starts it on several processes and waits until `steps` are done.
fn started(launcher: Launcher, processes: usize, data: &Path, run: &Path, more: &[&str]) -> Child {
    let mut command = launcher.start(processes, &mut pretrain(data, run, &[LONG, more].concat()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_step(run, 5);
    child
}

/// It ends by itself in time, with an error.
fn ends(child: Child) -> Finished {
    let output = finished(child, WITHIN);
    assert_ne!(output.code, Some(0), "{}", output.err);
    assert!(!output.err.contains("internal error"), "{}", output.err);
    output
}

/// Resumes the long run on `processes` processes for a few steps.
fn resumed(launcher: Launcher, processes: usize, run: &Path) {
    let before = step_of(&newest_checkpoint(run).unwrap());
    let mut command = launcher.start(processes, simclr(&["pretrain", "--resume", "--run"]).arg(run));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_step(run, before + 5);
    signal("TERM", process_of(launcher, 0, run));
    let output = finished(child, WITHIN);
    assert_eq!(output.code, Some(143), "{}", output.err);
    assert!(output.err.contains("resumed after step "), "{}", output.err);
    let changed = format!("processes changed from 3 to {processes}");
    assert_eq!(output.err.contains(&changed), processes != 3, "{}", output.err);
}

#[test]
fn killed_rank_aborts_all_and_the_run_resumes_with_fewer() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    for &launcher in LAUNCHERS {
        let run = temp.path().join(format!("{launcher:?}"));
        let child = started(launcher, 3, &data, &run, &[]);
        signal("KILL", process_of(launcher, 1, &run));
        let output = ends(child);
        assert!(output.err.contains("rank 1"), "it is named: {}", output.err);
        resumed(launcher, 2, &run);
    }
}

#[test]
fn suspended_rank_is_named_and_aborts_all() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let cases = [(Launcher::Gloo, 2), (Launcher::Gloo, 0), (Launcher::Mpi, 2)];
    for (launcher, lost) in cases.into_iter().filter(|(launcher, _)| LAUNCHERS.contains(launcher)) {
        let run = temp.path().join(format!("{launcher:?}-{lost}"));
        let child = started(launcher, 3, &data, &run, &["--set", "dist.heartbeat_timeout_s=8"]);
        signal("STOP", process_of(launcher, lost, &run));
        let output = ends(child);
        let errors: Vec<_> = output.err.lines().filter(|line| line.starts_with("error: ")).collect();
        let named = format!("rank {lost} of 3 on ");
        assert!(errors.len() == 1 && errors[0].contains(&named), "{named}in {}", output.err);
        output.hints("--resume");
    }
}
