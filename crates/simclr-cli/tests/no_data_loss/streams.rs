//! Streams that cannot be written.

use fs_err as fs;
use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{
    STEPS, no_partial_file,
    support::{execute, image_folder, newest_checkpoint, pretrain, simclr, step_of},
};

/// Reasons why a stream cannot be written.
enum Broken {
    FullDisk,
    ClosedPipe,
    ClosedTerminal,
}

/// Runs `command` with broken stdout and stderr. A terminal is closed after the first output.
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
            // The command holds copies of the other end.
            command.stderr(Stdio::null());
            let read = rustix::io::read(&terminal, &mut [0; 64]);
            assert!(read.is_ok_and(|bytes| bytes > 0), "nothing was shown on the terminal");
            drop(terminal);
            child.wait().unwrap().code()
        }
    }
}

/// Both ends of a terminal that controls no process, so that no signal is sent when it is closed.
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
fn runs_finish_with_broken_streams() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    // Causes a message.
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
fn commands_keep_their_exit_code_with_broken_streams() {
    let temp = tempfile::tempdir().unwrap();
    let (data, run) = (image_folder(&temp.path().join("images"), 40), temp.path().join("run"));
    execute(&mut pretrain(&data, &run, &STEPS)).succeeds();
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
