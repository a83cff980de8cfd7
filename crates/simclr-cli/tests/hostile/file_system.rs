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
