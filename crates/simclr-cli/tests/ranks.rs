//! Several processes through the real binary: the same training, ranks that die or hang, another number of ranks.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fs_err as fs;
use simclr::checkpoint::Checkpoint;
use support::{
    Finished, execute, finished, image_folder, mpirun, newest_checkpoint, pretrain, simclr, step_of,
};

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

/// `processes` of them, or one by hand.
fn trained(processes: usize, data: &Path, run: &Path, more: &[&str]) {
    let mut command = pretrain(data, run, more);
    let output = execute(&mut if processes == 0 { command } else { mpirun(processes, &mut command) });
    output.succeeds();
    assert_eq!(output.out.trim(), run.display().to_string(), "one process speaks");
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
fn gradients_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    // An odd batch: parts of 5, 5, 5 and 6 images.
    let settings = [ONE_STEP, &["--batch", "21"]].concat();
    trained(0, &data, &run("plain"), &settings);
    let plain = tensors(&run("plain"));
    assert!(norm(&plain["optim.first.encoder.conv1.weight"]) > 1e-3, "there is a gradient");
    for processes in [1, 2, 4] {
        let name = format!("ranks-{processes}");
        trained(processes, &data, &run(&name), &settings);
        let found = tensors(&run(&name));
        let (distance, tensor) = furthest(&found, &plain, "");
        assert!(distance <= 1e-5, "{processes} processes: {tensor} is {distance:e} away");
        let (loss, expected) = (losses(&run(&name))[0], losses(&run("plain"))[0]);
        assert!(
            (loss / expected - 1.0).abs() <= 1e-5,
            "{processes} processes: loss {loss}, expected {expected}"
        );
    }
}

/// Each of two processes holds a chunk of 10, so batch norm per chunk equals that of one process with chunks of 10.
#[test]
fn chunks_and_processes_split_a_batch_alike() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    let with = |processes: usize, norm: &str, chunk: &str| {
        let name = format!("{processes}-{norm}-{chunk}");
        let norm = format!("train.batch_norm={norm}");
        let chunk = format!("train.chunk={chunk}");
        let settings = [ONE_STEP, &["--batch", "20", "--set", &norm, "--set", &chunk]].concat();
        trained(processes, &data, &run(&name), &settings);
        tensors(&run(&name))
    };
    let check = |found: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Vec<f64>>, what: &str| {
        let (distance, tensor) = furthest(found, expected, "optim.first.");
        assert!(distance <= 1e-5, "{what}: {tensor} is {distance:e} away");
    };
    let plain = with(0, "global", "0");
    check(&with(2, "global", "5"), &plain, "two processes in two chunks each");
    for norm in ["chunk", "chunk-shuffled"] {
        let chunked = with(0, norm, "10");
        check(&with(2, norm, "0"), &chunked, norm);
        assert!(furthest(&chunked, &plain, "optim.first.").0 > 1e-2, "{norm} is not global");
    }
    check(&with(2, "chunk-shuffled", "5"), &with(0, "chunk-shuffled", "5"), "four chunks on two processes");
}

/// Losses, gradients, momentum encoder and queue: several steps on 1, 2 and 4 processes with SyncBN, and shuffle BN over two processes
/// against two chunks.
#[test]
fn queues_and_momentum_encoders_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    for (at, method) in [
        &["task.objective=moco"][..],
        &["task.objective=moco", "moco.symmetric=true"],
        &["task.objective=simclr-momentum"],
        // Without batch norm, before which gradients of shifts are 0 up to rounding.
        &["task.objective=moco-v3", "moco.predictor_hidden=16", "head.norm=none"],
    ]
    .into_iter()
    .enumerate()
    {
        let sets = method.iter().chain(&["moco.queue=50", "moco.momentum=0.9"]);
        let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
        let run = |processes: usize, more: &[&str]| {
            let folder = temp.path().join(format!("{at}-{processes}-{}", more.concat()));
            trained(processes, &data, &folder, &[ONE_STEP, &["--batch", "20"], &sets, more].concat());
            (tensors(&folder), losses(&folder))
        };
        let check = |found: (BTreeMap<String, Vec<f64>>, Vec<f64>),
                     expected: &(BTreeMap<String, Vec<f64>>, Vec<f64>),
                     prefix: &str| {
            let (distance, tensor) = furthest(&found.0, &expected.0, prefix);
            assert!(distance <= 1e-5, "{method:?}: {tensor} is {distance:e} away");
            found
                .1
                .iter()
                .zip(&expected.1)
                .for_each(|(a, b)| assert!((a / b - 1.0).abs() <= 1e-5, "{method:?}: {a} {b}"));
        };
        let plain = run(0, &[]);
        let queues = !method[0].ends_with("v3");
        assert!(plain.0.get("moco.pointer").map_or(!queues, |pointer| queues && *pointer != [0.0]));
        assert!(norm(&plain.0["optim.first.encoder.conv1.weight"]) > 1e-4);
        for processes in [1, 2, 4] {
            check(run(processes, &[]), &plain, "");
        }
        let shuffled = ["--set", "train.batch_norm=chunk-shuffled", "--set"];
        let by_chunk = run(0, &[&shuffled[..], &["train.chunk=10"]].concat());
        check(run(2, &[&shuffled[..], &["train.chunk=0"]].concat()), &by_chunk, "optim.first.");
        check(
            run(2, &[&shuffled[..], &["train.chunk=5"]].concat()),
            &run(0, &[&shuffled[..], &["train.chunk=5"]].concat()),
            if queues { "moco." } else { "optim.first." },
        );
    }
}

/// 1, 2 and 4 processes, and chunks, give the losses of a run by hand and its tensors that start with `prefix`.
fn agrees_on_processes_and_in_chunks(temp: &Path, data: &Path, settings: &[&str], prefix: &str, within: f64) {
    let run = |name: &str| temp.join(name);
    let with = |processes: usize, more: &[&str]| {
        let name = format!("{processes}-{}", more.concat());
        trained(processes, data, &run(&name), &[settings, more].concat());
        (tensors(&run(&name)), losses(&run(&name)))
    };
    let plain = with(0, &[]);
    let chunks = ["--set", "train.chunk=5"];
    for (processes, more) in [(1, &[][..]), (2, &[]), (4, &[]), (0, &chunks), (2, &chunks)] {
        let found = with(processes, more);
        let (distance, tensor) = furthest(&found.0, &plain.0, prefix);
        assert!(distance <= within, "{processes} processes, {more:?}: {tensor} is {distance:e} away");
        let losses = found.1.iter().zip(&plain.1);
        losses.for_each(|(a, b)| assert!((a / b - 1.0).abs() <= 1e-5, "{processes}, {more:?}: {a} {b}"));
    }
}

/// A step of distillation from a classifier.
#[test]
fn distillation_matches_that_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let teacher = temp.path().join("teacher");
    trained(0, &data, &teacher, &["--set", "task.objective=supervised", "--batch", "20"]);
    let teacher = format!("distill.teacher={}", teacher.display());
    let method = ["--batch", "20", "--set", "task.objective=distillation", "--set", &teacher];
    agrees_on_processes_and_in_chunks(
        temp.path(),
        &data,
        &[ONE_STEP, &method].concat(),
        "optim.first.",
        1e-5,
    );
}

/// A step of Muon at each of two sides of the views.
#[test]
fn muon_and_sides_of_the_views_match_those_of_one_process() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let sets = ["optim.kind=muon", "train.view_sizes=[[0.0,12],[0.5,16]]"].map(|set| ["--set", set]).concat();
    let settings = [&["--batch", "20", "--epochs", "1"], &sets[..]].concat();
    agrees_on_processes_and_in_chunks(temp.path(), &data, &settings, "encoder.", 1e-4);
}

#[test]
fn twenty_steps_agree_for_any_number_of_processes() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run = |name: &str| temp.path().join(name);
    let settings = ["--epochs", "10"];
    trained(0, &data, &run("plain"), &settings);
    let plain = tensors(&run("plain"));
    let check = |name: &str| {
        assert_eq!(losses(&run(name)).len(), 20);
        let found = tensors(&run(name));
        let (distance, tensor) = furthest(&found, &plain, "encoder.");
        assert!(distance <= 1e-3, "{name}: {tensor} is {distance:e} away after 20 steps");
        let (loss, expected) = (losses(&run(name))[19], losses(&run("plain"))[19]);
        assert!((loss / expected - 1.0).abs() <= 1e-3, "{name}: loss {loss}, expected {expected}");
    };
    for processes in [2, 4] {
        let name = format!("ranks-{processes}");
        trained(processes, &data, &run(&name), &settings);
        check(&name);
    }
}

/// Process id of `rank` in the run with this folder.
fn process_of(rank: usize, run: &Path) -> u32 {
    let has = |file: &Path, part: &str| {
        let bytes = std::io::Read::bytes(fs::File::open(file).ok()?).collect::<Result<Vec<u8>, _>>().ok()?;
        let found = bytes.split(|&byte| byte == 0).any(|word| word == part.as_bytes());
        found.then_some(())
    };
    let found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let folder = entry.ok()?.path();
        let id = folder.file_name()?.to_str()?.parse().ok()?;
        has(&folder.join("cmdline"), &run.display().to_string())?;
        has(&folder.join("environ"), &format!("OMPI_COMM_WORLD_RANK={rank}"))?;
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
fn started(processes: usize, data: &Path, run: &Path, more: &[&str]) -> Child {
    let mut command = mpirun(processes, &mut pretrain(data, run, &[LONG, more].concat()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while newest_checkpoint(run).is_none_or(|path| step_of(&path) < 5) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
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
fn resumed(processes: usize, run: &Path) {
    let before = step_of(&newest_checkpoint(run).unwrap());
    let mut command = mpirun(processes, simclr(&["pretrain", "--resume", "--run"]).arg(run));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while step_of(&newest_checkpoint(run).unwrap()) < before + 5 {
        assert!(begin.elapsed() < Duration::from_secs(60), "no further checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal("TERM", process_of(0, run));
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
    let run = temp.path().join("run");
    let child = started(3, &data, &run, &[]);
    signal("KILL", process_of(1, &run));
    let output = ends(child);
    assert!(output.err.contains("rank 1"), "it is named: {}", output.err);
    resumed(2, &run);
}

#[test]
fn suspended_rank_is_named_and_aborts_all() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    for lost in [2, 0] {
        let run = temp.path().join(format!("run-{lost}"));
        let child = started(3, &data, &run, &["--set", "dist.heartbeat_timeout_s=8"]);
        signal("STOP", process_of(lost, &run));
        let output = ends(child);
        let errors: Vec<_> = output.err.lines().filter(|line| line.starts_with("error: ")).collect();
        let named = format!("rank {lost} of 3 on ");
        assert!(errors.len() == 1 && errors[0].contains(&named), "{named}in {}", output.err);
        output.hints("--resume");
    }
}

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
        let output = execute(&mut if processes == 1 { doctor } else { mpirun(processes, &mut doctor) });
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
        assert!(["encoder", "learning", "batch", "groups"].iter().all(|name| verdict(name) == "-"));
    }
}

#[test]
fn errors_are_reported_once() {
    let _turn = turn();
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let run: PathBuf = temp.path().join("run");
    let refused = |more: &[&str], parts: &[&str]| {
        let output = execute(&mut mpirun(3, &mut pretrain(&data, &run, more)));
        output.refuses(parts);
        assert!(!run.join("config.toml").exists());
    };
    refused(&["--batch", "2"], &["train.batch = 2", "3 processes"]);
    refused(&["--batch", "41"], &["train.batch", "at most the 40 images"]);
    refused(&["--set", "train.bacth=4"], &["train.bacth"]);
    let moco = ["--set", "task.objective=moco", "--set"];
    refused(
        &[&moco[..], &["train.batch_norm=chunk"]].concat(),
        &["train.batch_norm = chunk", "moco.shuffle"],
    );
    refused(
        &[&moco[..], &["train.batch_norm_groups=4"]].concat(),
        &["train.batch_norm_groups = 4", "several processes"],
    );
    let output = execute(&mut mpirun(2, simclr(&["inspect", "--data"]).arg(&data)));
    assert_eq!(output.code, Some(2));
    assert!(output.err.contains("2 processes were started for a command that runs as one"), "{}", output.err);
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
    let output = execute(&mut mpirun(3, &mut pretrain(&data, &temp.path().join("few"), &few)));
    output.refuses(&["2 of 40"]);
}
