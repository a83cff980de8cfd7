//! `simclr study`, as a smoke run on synthetic images.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use support::{execute, simclr};

/// `simclr study NAME --quick` in `out`.
fn study(name: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = simclr(&["study", name, "--quick", "--out"]);
    command.arg(out).args(more);
    command
}

fn page(out: &Path, file: &str) -> String {
    fs_err::read_to_string(out.join(file)).unwrap()
}

/// Killed after its second job, and started again.
#[test]
fn a_study_that_was_killed_ends_with_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let found = execute(&mut study("temperature", &whole, &[]));
    found.succeeds();
    assert!(found.out.starts_with("temperature") && found.out.contains("not resolved"), "{}", found.out);
    let mut process = study("temperature", &killed, &[]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let third = lines.map_while(Result::ok).find(|line| line.starts_with("job 3/"));
    assert!(third.is_some());
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(!killed.join("temperature").exists());
    let resumed = execute(&mut study("temperature", &killed, &[]));
    resumed.succeeds();
    assert!(!resumed.err.contains("job 1/"), "a finished job is not repeated: {}", resumed.err);
    for file in ["temperature/results.json", "temperature/report.html", "temperature/report.md", "README.md"]
    {
        assert_eq!(page(&whole, file), page(&killed, file), "{file}");
    }
    let runs = fs_err::read_dir(whole.join("runs")).unwrap();
    assert!(runs.into_iter().all(|run| run.unwrap().path().join("config.toml").is_file()));
}

#[test]
fn a_plan_runs_nothing_and_several_processes_share_the_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("studies");
    let plan = execute(&mut study("few-labels", &out, &["--plan", "--seeds", "2"]));
    plan.succeeds();
    assert!(plan.out.contains("fine-tuned, 1 %") && plan.out.contains("16 jobs,    0 done"), "{}", plan.out);
    assert!(!out.join("runs").exists());
    let found = execute(&mut study("few-labels", &out, &["--jobs", "2", "--seeds", "2", "--json"]));
    let reports: serde_json::Value = serde_json::from_str(&found.succeeds().out).unwrap();
    assert_eq!(reports[0]["verdict"], "open", "{reports}");
    let page = page(&out, "few-labels/report.html");
    assert!(page.contains("<svg") && page.contains("Verdict: not resolved") && page.contains("Seeds 1 to 2"));
    let plan = execute(&mut study("few-labels", &out, &["--plan", "--seeds", "2"]));
    assert!(plan.out.contains("16 jobs,   16 done"), "{}", plan.out);
}

#[test]
fn wrong_arguments_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = execute(&mut study("temprature", folder.path(), &[]));
    refused.refuses(&["no study `temprature`"]);
    refused.hints("temperature");
    execute(&mut study("temperature", folder.path(), &["--seeds", "0"])).refuses(&["--seeds"]);
    execute(&mut study("temperature", folder.path(), &["--set", "loss.tau=1"])).refuses(&["loss.tau"]);
    let out = folder.path().join("new");
    let mut elsewhere = simclr(&["study", "temperature", "--data", "/nowhere", "--out"]);
    execute(elsewhere.arg(&out)).refuses(&["/nowhere"]);
    assert!(!out.exists());
}
