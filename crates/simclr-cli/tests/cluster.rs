//! The examples for clusters: their commands are accepted by the binary, and the shell script by a shell.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use fs_err as fs;
use support::{execute, simclr};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cluster")
}

/// The words of the command of `simclr pretrain` in a shell script, or in YAML lists of the form `[a, b]`.
fn command(text: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.contains("pretrain") && !line.trim().starts_with('#')).unwrap();
    let words: Vec<String> = line
        .split(|c: char| c.is_whitespace() || "[],".contains(c))
        .filter(|word| !word.is_empty())
        .map(|word| word.trim_matches('"').to_owned())
        .collect();
    let start = words.iter().position(|word| word == "pretrain").unwrap();
    words[start..].to_vec()
}

/// The images of the examples do not exist, which is the first thing to fail after the arguments are accepted.
#[test]
fn commands_of_the_examples_are_accepted() {
    let mut found = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let words = command(&fs::read_to_string(&path).unwrap());
        let run = tempfile::tempdir().unwrap();
        let words: Vec<String> =
            words.iter().map(|word| word.replace("/runs", &run.path().display().to_string())).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let config = run.path().join("recipe.toml");
        fs::write(&config, "").unwrap();
        execute(&mut simclr(&words)).refuses(&["/images"]);
        found += 1;
    }
    assert_eq!(found, 4);
}

#[test]
fn launcher_reads_the_variables_of_the_trainer() {
    let mut launch = simclr(&["launch", "inspect", "--data", "/images"]);
    launch.envs([("PET_NNODES", "2"), ("PET_NODE_RANK", "2"), ("PET_NPROC_PER_NODE", "1")]);
    execute(&mut launch).refuses(&["--node-rank is 2, expected less than --nodes 2"]);
    let output = execute(launch.env("PET_NODE_RANK", "1"));
    output.refuses(&["several machines need an address"]);
    output.hints("--master");
}

#[test]
fn slurm_script_is_a_script() {
    let script = folder().join("slurm.sh");
    assert!(Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
}
