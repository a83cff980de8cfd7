//! A stream that cannot be written, a second process on the same run folder, an output that names an input: each time the
//! work that was done is still there afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use fs_err as fs;
use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::{Said, finished, image_folder, newest_checkpoint, pretrain, said, simclr, step_of};

/// Twelve steps with a checkpoint after each, all of which stay.
const STEPS: [&str; 6] =
    ["--epochs", "6", "--set", "train.checkpoint_minutes=0", "--set", "train.keep_checkpoints=20"];
/// More steps than a test waits for.
const ENDLESS: [&str; 4] = ["--epochs", "100000", "--set", "train.checkpoint_minutes=0"];

/// Every file below `folder` with its bytes, but for the lock, whose text may come and go.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().unwrap() != "run.lock" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[track_caller]
fn no_partial_file(folder: &Path) {
    let partial = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".partial-");
    assert_eq!(contents(folder).keys().filter(partial).count(), 0);
}

// Streams.

/// The ends of a stream that cannot be written.
enum Broken {
    FullDisk,
    ClosedPipe,
    ClosedTerminal,
}

/// Runs `command` with its stderr broken, and its stdout too; a terminal is closed once something was read from it.
fn code_with(broken: &Broken, command: &mut Command) -> Option<i32> {
    match broken {
        Broken::FullDisk => {
            let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into_parts().0;
            command.stdout(full()).stderr(full()).status().unwrap().code()
        }
        Broken::ClosedPipe => {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            command.stdout(writer.try_clone().unwrap()).stderr(writer).status().unwrap().code()
        }
        Broken::ClosedTerminal => {
            let (terminal, end) = pseudo_terminal();
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::from(end)).spawn().unwrap();
            // The command keeps copies of the other end.
            command.stderr(Stdio::null());
            let read = rustix::io::read(&terminal, &mut [0; 64]);
            assert!(read.is_ok_and(|bytes| bytes > 0), "nothing was shown on the terminal");
            drop(terminal);
            child.wait().unwrap().code()
        }
    }
}

/// Both ends of a terminal that controls no process, so that closing it sends no signal.
fn pseudo_terminal() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    };
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    (terminal, end)
}

#[test]
fn a_run_goes_on_to_its_end_when_nothing_can_be_written_to_the_terminal() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    // One that is named in a message of its own.
    fs::write(data.join("class-1/cut.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let more = [&STEPS[..], &["--set", "data.max_bad_share=0.1"]].concat();
    let kinds = [("full", Broken::FullDisk), ("pipe", Broken::ClosedPipe), ("pty", Broken::ClosedTerminal)];
    for (name, broken) in kinds {
        let run = temp.path().join(name);
        assert_eq!(code_with(&broken, &mut pretrain(&data, &run, &more)), Some(0), "{name}");
        assert_eq!(step_of(&newest_checkpoint(&run).unwrap()), 12, "{name}");
        no_partial_file(&run);
    }
}

#[test]
fn every_command_keeps_its_exit_code_when_nothing_can_be_written_to_the_terminal() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let with = |arguments: &[&str], paths: &[&Path]| {
        let mut command = simclr(arguments);
        command.args(paths).current_dir(temp.path());
        command
    };
    for broken in [Broken::FullDisk, Broken::ClosedPipe] {
        let code = |arguments: &[&str], paths: &[&Path]| code_with(&broken, &mut with(arguments, paths));
        let missing = temp.path().join("missing");
        assert_eq!(code(&["--help"], &[]), Some(0));
        assert_eq!(code(&["--version"], &[]), Some(0));
        assert_eq!(code(&["no-such-command"], &[]), Some(2));
        assert_eq!(code(&["inspect", "--data"], &[&data]), Some(0));
        assert_eq!(code(&["inspect", "--data"], &[&missing]), Some(2));
        assert_eq!(code(&["export"], &[&run]), Some(0));
        assert_eq!(code(&["embed", "--out", "h.npy", "--data"], &[&data, &run]), Some(0));
        assert_eq!(code(&["evaluate", "--set", "eval.draws=1"], &[&run]), Some(0));
        assert_eq!(code(&["views", "--image-size", "16", "--data"], &[&data]), Some(0));
        assert_eq!(code(&["pack", "--out", "images.pack", "--data"], &[&data]), Some(0));
        no_partial_file(temp.path());
        fs::remove_file(temp.path().join("images.pack")).unwrap();
    }
}

// Two processes.

/// A run that has written a checkpoint and goes on until it is killed.
struct Running(Child);

impl Running {
    fn on(data: &Path, run: &Path) -> Self {
        let child =
            pretrain(data, run, &ENDLESS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while newest_checkpoint(run).is_none_or(|path| step_of(&path) < 2) {
            assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Refused at once, with the folder, the host and the process that holds it, and a way out.
#[track_caller]
fn refused_for(said: &Said, run: &Path, pid: u32) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    said.refuses(&[run.to_str().unwrap(), &format!("process {pid} on {host}")]);
    said.hints("--run");
}

#[test]
fn every_command_that_writes_to_a_run_folder_in_use_is_refused() {
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
        refused_for(&said(&mut command), &run, running.0.id());
    }
    refused_for(&said(&mut pretrain(&data, &run, &[])), &run, running.0.id());
    // Who writes elsewhere only reads the run.
    said(simclr(&["export"]).arg(&run).arg("--out").arg(temp.path().join("e.safetensors"))).succeeds();
    // The kernel releases what a killed process held, whatever its file says.
    let pid = running.0.id().to_string();
    drop(running);
    assert!(fs::read_to_string(run.join("run.lock")).unwrap().contains(&pid));
    said(simclr(&["export"]).arg(&run)).succeeds();
}

/// Two processes that start in the same moment: one trains to the end, the other is refused, and nothing of the winner's is
/// touched.
#[test]
fn of_two_starts_on_one_folder_exactly_one_wins() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let expected = temp.path().join("alone");
    said(&mut pretrain(&data, &expected, &STEPS)).succeeds();
    let expected = fs::read(newest_checkpoint(&expected).unwrap()).unwrap();
    let pair = |command: &dyn Fn() -> Command| {
        let start = |_| command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let both = [(); 2].map(start).map(|child| finished(child, Duration::from_secs(60)));
        both.map(|said| (said.code, said))
    };
    for number in 0..4 {
        let run = temp.path().join(format!("run-{number}"));
        let fresh = pair(&|| pretrain(&data, &run, &STEPS));
        let lost = one_won(&fresh);
        let words = ["is writing to it", "holds a run already"];
        assert!(words.iter().any(|words| lost.err.contains(words)), "{}", lost.err);
        assert!(fs::read(newest_checkpoint(&run).unwrap()).unwrap() == expected);
        no_partial_file(&run);
        // Back to the first checkpoint, then two at once go on from it.
        for step in 2..=12 {
            fs::remove_file(run.join(format!("checkpoints/step-{step:09}.safetensors"))).unwrap();
        }
        let resumed = pair(&|| {
            let mut command = simclr(&["pretrain", "--resume", "--run"]);
            command.arg(&run);
            command
        });
        // The second may come when the first is done: then there is nothing left to do.
        if resumed.iter().any(|(code, _)| *code != Some(0)) {
            assert!(one_won(&resumed).err.contains("is writing to it"));
        }
        assert!(fs::read(newest_checkpoint(&run).unwrap()).unwrap() == expected);
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let steps = metrics.lines().filter(|line| line.contains("\"lr\"")).count();
        assert_eq!(steps, 12, "each step once: {metrics}");
    }
}

/// Exit codes 0 and 2; what the refused one said.
#[track_caller]
fn one_won(both: &[(Option<i32>, Said); 2]) -> &Said {
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
fn runs_without_a_name_that_start_together_take_a_folder_each() {
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
    let mut folders: Vec<_> = all.iter().map(|said| said.succeeds().out.trim().to_owned()).collect();
    folders.sort();
    assert_eq!(folders, ["runs/images-1", "runs/images-2", "runs/images-3"]);
}

/// What an evaluation trains are runs inside the run, with locks of their own.
#[test]
fn an_evaluation_that_trains_holds_the_run_and_does_not_wait_for_itself() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let mut child =
        simclr(&["evaluate", "--set=eval.draws=1", "--protocols", "finetune", "--set=eval.trained.epochs=4"])
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
    refused_for(&said(simclr(&["evaluate"]).arg(&run)), &run, child.id());
    finished(child, Duration::from_secs(120)).succeeds();
}

/// Reading needs no lock, so a folder that cannot be written can still be read.
#[test]
fn a_run_folder_that_is_read_only_can_be_read() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let writable = |yes: bool| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(if yes { 0o755 } else { 0o555 });
        fs::set_permissions(&run, mode.clone()).unwrap();
        let lock = std::fs::Permissions::from_mode(if yes { 0o644 } else { 0o444 });
        fs::set_permissions(run.join("run.lock"), lock).unwrap();
    };
    writable(false);
    let user = |command: &mut Command| {
        if fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
            // Root may write everywhere: the program runs as a user who may not.
            let copy = temp.path().join("simclr");
            fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
            if !copy.exists() {
                fs::copy(command.get_program().to_str().unwrap(), &copy).unwrap();
            }
            let mut other = Command::new(&copy);
            other.args(command.get_args()).uid(65_534).gid(65_534).env("LD_LIBRARY_PATH", libraries());
            return said(&mut other);
        }
        said(command)
    };
    let out = temp.path().join("h.npy");
    user(simclr(&["embed"]).arg(&run).arg("--data").arg(&data).arg("--out").arg(&out)).succeeds();
    let out = temp.path().join("e.safetensors");
    user(simclr(&["export"]).arg(&run).arg("--out").arg(&out)).succeeds();
    let refused = user(simclr(&["export"]).arg(&run));
    refused.refuses(&["run.lock"]);
    refused.hints("--out");
    writable(true);
}

fn libraries() -> PathBuf {
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from);
    let libtorch = libtorch.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../libtorch"));
    libtorch.canonicalize().unwrap().join("lib")
}

// Outputs.

/// Refused, with a hint that names --out; nothing in `place` has changed.
#[track_caller]
fn refused_and_unchanged(place: &Path, command: &mut Command, words: &str) {
    let before = contents(place);
    let refused = said(command);
    refused.refuses(&[words]);
    refused.hints("--out");
    assert!(contents(place) == before, "files have changed");
}

#[test]
fn no_output_replaces_an_image_or_joins_the_set() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let (data, run) = (image_folder(&place.join("images"), 40), place.join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    let image = data.join("class-0/0000.png");
    std::os::unix::fs::symlink(&image, place.join("link.png")).unwrap();
    std::os::unix::fs::symlink(&data, place.join("linked")).unwrap();
    fs::hard_link(&image, place.join("hard.png")).unwrap();
    let by = |command: &str, out: &Path| {
        let mut built = simclr(&[command, "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        match command {
            "embed" => drop(built.arg(&run)),
            "views" => drop(built.args(["--image-size", "16"])),
            _ => {}
        }
        built
    };
    let inside = "would become part of the data set";
    for command in ["pack", "views"] {
        for out in
            [&image, &place.join("linked/class-0/0000.png"), &data.join("../images/./class-0/0000.png")]
        {
            refused_and_unchanged(place, &mut by(command, out), inside);
        }
        refused_and_unchanged(place, &mut by(command, &data.join("class-0/new.png")), inside);
        for out in ["link.png", "hard.png"] {
            refused_and_unchanged(place, &mut by(command, &place.join(out)), "exists and is not");
        }
    }
    refused_and_unchanged(place, &mut by("pack", &data.join("shard.tar")), inside);
    refused_and_unchanged(place, &mut by("embed", &data.join("h.parquet")), inside);
    // The default of `views` in the folder of the images.
    refused_and_unchanged(place, simclr(&["views", "--data", "."]).current_dir(&data), inside);
}

#[test]
fn no_output_replaces_a_shard() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let data = image_folder(&place.join("images"), 40);
    let shards = place.join("shards");
    fs::create_dir(&shards).unwrap();
    let shard = shards.join("train-0.tar");
    let tar = Command::new("tar").arg("-cf").arg(&shard).arg("-C").arg(&data).arg(".").status().unwrap();
    assert!(tar.success());
    for set in [&shard, &shards] {
        let mut command =
            simclr(&["pack", "--data", set.to_str().unwrap(), "--out", shard.to_str().unwrap()]);
        let before = contents(place);
        said(&mut command).refuses(&["train-0.tar"]);
        assert!(contents(place) == before, "files have changed");
    }
    // A packed set by another of its names.
    let packed = place.join("set.pack");
    said(simclr(&["pack", "--data", data.to_str().unwrap(), "--out"]).arg(&packed)).succeeds();
    fs::hard_link(&packed, place.join("hard.pack")).unwrap();
    let before = contents(place);
    let mut itself = simclr(&["pack", "--data", packed.to_str().unwrap(), "--out"]);
    said(itself.arg(place.join("hard.pack"))).refuses(&["the data set itself"]);
    assert!(contents(place) == before, "files have changed");
}

#[test]
fn no_output_replaces_a_file_of_a_run() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    let (data, run) = (image_folder(&place.join("images"), 40), place.join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    said(simclr(&["evaluate", "--set", "eval.draws=1"]).arg(&run)).succeeds();
    let checkpoint = newest_checkpoint(&run).unwrap();
    let (link, link_to_run) = (place.join("link.safetensors"), place.join("linked"));
    std::os::unix::fs::symlink(&checkpoint, &link).unwrap();
    std::os::unix::fs::symlink(&run, &link_to_run).unwrap();
    let name = checkpoint.file_name().unwrap();
    let own = "is kept for the run in";
    let outs: Vec<(PathBuf, &str)> = vec![
        (checkpoint.clone(), own),
        (link_to_run.join("checkpoints").join(name), own),
        (run.join("../run/./checkpoints").join(name), own),
        (run.join("checkpoints/step-000000099.safetensors"), own),
        (run.join("config.toml"), own),
        (run.join("metrics.jsonl"), own),
        (run.join("results.json"), own),
        (run.join("evaluation/new.safetensors"), own),
        (link, "exists and is not an exported encoder"),
    ];
    for (out, words) in outs {
        refused_and_unchanged(place, simclr(&["export"]).arg(&run).arg("--out").arg(&out), words);
        if words == own {
            let mut compare = simclr(&["compare"]);
            refused_and_unchanged(place, compare.arg(&run).arg("--out").arg(&out), words);
            let mut views = simclr(&["views", "--image-size", "16", "--data"]);
            refused_and_unchanged(place, views.arg(&data).arg("--out").arg(&out), words);
            let mut pack = simclr(&["pack", "--data"]);
            refused_and_unchanged(place, pack.arg(&data).arg("--out").arg(&out), words);
        }
    }
    for out in ["checkpoints/h.npy", "evaluation/h.parquet"] {
        let mut embed = simclr(&["embed", "--data"]);
        refused_and_unchanged(place, embed.arg(&data).arg(&run).arg("--out").arg(run.join(out)), own);
    }
    said(simclr(&["pretrain", "--resume", "--run"]).arg(&run)).succeeds();
}

/// What a command wrote before it replaces, and nothing that another command or program wrote.
#[test]
fn a_command_replaces_its_own_earlier_output_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    said(&mut pretrain(&data, &run, &STEPS)).succeeds();
    said(simclr(&["evaluate", "--set", "eval.draws=1"]).arg(&run)).succeeds();
    let (data, run) = (data.to_str().unwrap(), run.to_str().unwrap());
    let commands: [(&str, Vec<&str>); 6] = [
        ("e.safetensors", vec!["export", run]),
        ("h.npy", vec!["embed", run, "--data", data]),
        ("h.parquet", vec!["embed", run, "--data", data]),
        ("sheet.png", vec!["views", "--image-size", "16", "--data", data]),
        ("plot.svg", vec!["compare", run]),
        ("set.pack", vec!["pack", "--data", data]),
    ];
    let out = |name: &str| temp.path().join("out").join(name);
    fs::create_dir(temp.path().join("out")).unwrap();
    let by = |arguments: &[&str], out: &Path| {
        let mut command = simclr(arguments);
        command.arg("--out").arg(out);
        command
    };
    for (name, arguments) in &commands {
        said(&mut by(arguments, &out(name))).succeeds();
        let first = fs::read(out(name)).unwrap();
        said(&mut by(arguments, &out(name))).succeeds();
        assert!(fs::read(out(name)).unwrap() == first, "{name}");
    }
    for (name, arguments) in &commands {
        for (other, _) in commands.iter().filter(|(other, _)| other != name) {
            // Under the name that the command asks for, and without the paths that belong to an array.
            let place = tempfile::tempdir().unwrap();
            let foreign = place.path().join(name);
            fs::copy(out(other), &foreign).unwrap();
            refused_and_unchanged(place.path(), &mut by(arguments, &foreign), "exists and is not");
        }
    }
    // An array whose paths belong to something else.
    let place = tempfile::tempdir().unwrap();
    let array = place.path().join("h.npy");
    fs::write(place.path().join("h.npy.paths.txt"), "a list of mine\n").unwrap();
    let embed = &commands[1].1;
    refused_and_unchanged(place.path(), &mut by(embed, &array), "h.npy.paths.txt");
    fs::copy(out("h.npy"), &array).unwrap();
    refused_and_unchanged(place.path(), &mut by(embed, &array), "exists and is not");
}
