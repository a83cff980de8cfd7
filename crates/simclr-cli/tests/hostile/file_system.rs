//! Permissions and full disks.

use fs_err as fs;
use std::{
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Place, checkpoints,
    data_sets::tar_of,
    png,
    support::{Finished, execute, pretrain, simclr, stripes},
};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs `command` as a user without privileges: root has all permissions, so a copy of the binary runs as user 65534.
fn execute_unprivileged(place: &Place, command: &mut Command) -> Finished {
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0) {
        return execute(command);
    }
    // The binary itself may be below a folder that only root can enter.
    let copy = place.path("simclr");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_simclr"), &copy).unwrap();
    }
    set_mode(place.temp.path(), 0o777);
    let mut other = Command::new(&copy);
    other.args(command.get_args()).uid(65_534).gid(65_534).env("LD_LIBRARY_PATH", libraries());
    execute(&mut other)
}

fn libraries() -> PathBuf {
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from);
    let libtorch = libtorch.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../libtorch"));
    libtorch.canonicalize().unwrap().join("lib")
}

/// Runs `command` with files limited to `blocks` of 512 bytes, as on a full disk.
fn execute_on_full_disk(blocks: usize, command: &Command) -> Finished {
    let limited = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &limited, "sh"]).arg(command.get_program()).args(command.get_args());
    execute(shell.env("GOMP_SPINCOUNT", "2000"))
}

#[test]
fn unreadable_images_and_an_unwritable_run_folder() {
    let place = Place::new();
    let data = place.images();
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    set_mode(&locked, 0o555);
    execute_unprivileged(&place, &mut pretrain(&data, &locked.join("run"), &[])).refuses(&["locked"]);
    set_mode(&data.join("class-2/0002.png"), 0o000);
    let inspected = execute_unprivileged(&place, &mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    inspected.refuses(&["1 images cannot be decoded"]);
    assert!(
        inspected.out.contains("0002.png") && inspected.out.contains("no permission"),
        "{}",
        inspected.out
    );
    set_mode(&locked, 0o755);
}

/// Reading needs no lock.
#[test]
fn read_only_run_folders_can_be_read() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    execute(&mut pretrain(&data, &run, &[])).succeeds();
    set_mode(&run.join("run.lock"), 0o444);
    set_mode(&run, 0o555);
    let out = place.path("h.npy");
    let embed = &mut simclr(&["embed"]);
    execute_unprivileged(&place, embed.arg(&run).arg("--data").arg(&data).arg("--out").arg(&out)).succeeds();
    let out = place.path("e.safetensors");
    execute_unprivileged(&place, simclr(&["export"]).arg(&run).arg("--out").arg(&out)).succeeds();
    let refused = execute_unprivileged(&place, simclr(&["export"]).arg(&run));
    refused.refuses(&["run.lock"]);
    refused.hints("--out");
    set_mode(&run, 0o755);
}

#[test]
fn a_full_disk_keeps_the_old_packed_set() {
    let place = Place::new();
    let (data, file) = (place.images(), place.path("images.pack"));
    let pack = || simclr(&["pack", "--data", data.to_str().unwrap(), "--out", file.to_str().unwrap()]);
    execute(&mut pack()).succeeds();
    let old = fs::read(&file).unwrap();
    stripes(40, 0).save(data.join("class-0/one-more.png")).unwrap();
    execute_on_full_disk(20, &pack()).refuses(&["cannot write", "images.pack"]);
    assert!(fs::read(&file).unwrap() == old);
    assert_eq!(fs::read_dir(place.temp.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_full_disk_keeps_earlier_checkpoints() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    execute(&mut pretrain(&data, &run, &["--epochs", "1"])).succeeds();
    let before = checkpoints(&run);
    let bytes = fs::read(&before[0]).unwrap();
    assert!(bytes.len() > 20_480, "{}", bytes.len());
    let full = place.path("full");
    let refused = execute_on_full_disk(40, &pretrain(&data, &full, &["--epochs", "1"]));
    refused.refuses(&["cannot write", "step-"]);
    refused.hints("free some disk space");
    assert_eq!(checkpoints(&full).len(), 0, "no partial file is left");
    assert_eq!(fs::read(&before[0]).unwrap(), bytes);
    execute(simclr(&["export"]).arg(&run)).succeeds();
}

/// The first image of a set is 5 GB of nothing, the second is a pipe without a writer.
#[test]
fn sparse_files_and_pipes_are_named_and_not_read() {
    let place = Place::new();
    let data = place.images();
    let file = fs::File::create(data.join("class-0/0000-a.png")).unwrap();
    file.set_len(5 << 30).unwrap();
    let pipe = data.join("class-0/0000-b.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let limited = "ulimit -v 4000000; exec timeout 60 \"$@\"";
    let inspect = simclr(&["inspect", "--data", data.to_str().unwrap()]);
    let mut shell = Command::new("sh");
    shell.args(["-c", limited, "sh"]).arg(inspect.get_program()).args(inspect.get_args());
    let inspected = execute(&mut shell);
    assert!(inspected.out.contains("0000-a.png`: the file is larger"), "{}{}", inspected.out, inspected.err);
    assert!(!inspected.out.contains("0000-b.png") || inspected.out.contains("no regular file"));
    assert_eq!(inspected.code, Some(2));
}

/// The soft limit of open files is raised to the hard one.
#[test]
fn more_shards_than_the_soft_limit_of_open_files() {
    let place = Place::new();
    let shards = place.path("shards");
    fs::create_dir(&shards).unwrap();
    for index in 0..150 {
        fs::write(shards.join(format!("{index:03}.tar")), tar_of(&[("a/1.png", &png())])).unwrap();
    }
    let inspect = simclr(&["inspect", "--data", shards.to_str().unwrap()]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -S -n 100; exec \"$@\"", "sh"])
        .arg(inspect.get_program())
        .args(inspect.get_args());
    let inspected = execute(&mut shell);
    inspected.succeeds();
    assert!(inspected.out.contains("150"), "{}", inspected.out);
}

/// Names neither control the terminal nor forge lines, and the list of bad files has a line for each.
#[test]
fn names_are_escaped() {
    let place = Place::new();
    let data = place.images();
    let names = ["\u{1b}[31mred.png", "two\nerror: lines.png", "tab\there.png", "\u{202e}gnp.png"];
    for name in names {
        fs::write(data.join("class-1").join(name), b"no image").unwrap();
    }
    let more = ["--set", "data.max_bad_share=0.2", "--batch", "44", "--epochs", "1"];
    let run = execute(&mut pretrain(&data, &place.path("run"), &more));
    run.succeeds();
    let list = fs::read_to_string(place.path("run/bad_files.txt")).unwrap();
    assert_eq!(list.lines().count(), names.len(), "{list}");
    let inspected = execute(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    for text in [&run.err, &list, &inspected.out, &inspected.err] {
        assert!(
            !text.contains(['\u{1b}', '\u{202e}'])
                && !text.lines().any(|line| line.starts_with("error: lines"))
        );
    }
    assert!(list.contains("class-1/two\\u{a}error: lines.png\t"), "{list}");
    // A resumed run does not list them again.
    let again = execute(simclr(&["pretrain", "--resume", "--run"]).arg(place.path("run")));
    again.succeeds();
    assert_eq!(fs::read_to_string(place.path("run/bad_files.txt")).unwrap(), list);
}

/// A TorchScript module runs code: that of a run folder of another user is loaded on request only.
#[test]
fn modules_of_other_users_are_not_run() {
    let place = Place::new();
    let (data, run) = (place.images(), place.path("run"));
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../simclr/tests/golden/script.pt");
    let module = module.canonicalize().unwrap();
    let more =
        ["--encoder-file", module.to_str().unwrap(), "--batch", "8", "--set", "train.batch_norm=chunk"];
    execute(&mut pretrain(&data, &run, &more)).succeeds();
    let embed = |more: &[&str]| {
        let mut command = simclr(&["embed"]);
        command.arg(&run).arg("--data").arg(&data).arg("--out").arg(place.path("h.npy")).args(more);
        execute(&mut command)
    };
    embed(&[]).succeeds();
    // Only root can give a file away; another user has no foreign folder to try.
    let given = std::os::unix::fs::chown(run.join("config.toml"), Some(65_534), None);
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    assert_eq!(given.is_ok(), root);
    if root {
        let refused = embed(&[]);
        refused.refuses(&["config.toml", "belongs to user 65534", "script.pt", "your rights"]);
        refused.hints("--trust-encoder-file");
        embed(&["--trust-encoder-file"]).succeeds();
    }
}
