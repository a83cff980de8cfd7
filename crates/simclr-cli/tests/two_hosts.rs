//! Training on two machines over TCP with the link between them cut. Each machine is a network namespace, which needs root;
//! `make test` skips this with a notice if it cannot run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use fs_err as fs;
use support::{Finished, finished, image_folder, newest_checkpoint, pretrain, simclr, step_of};
#[cfg(feature = "mpi")]
use support::{Launcher, execute};

/// All processes exit within this time after the cut.
const WITHIN: Duration = Duration::from_secs(30);
const ADDRESSES: [&str; 2] = ["10.213.77.1", "10.213.77.2"];

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status().unwrap().success()
}

/// Two namespaces connected by a veth pair. Dropping it kills their processes and deletes them.
struct Hosts {
    names: [String; 2],
    #[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "for mpirun"))]
    agent: PathBuf,
}

impl Hosts {
    fn new(folder: &Path) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|side| format!("simclr-{side}-{}-{number}", std::process::id()));
        // Replaces ssh: mpirun calls it with a host and a command.
        let agent = folder.join("agent.sh");
        let text = format!("#!/bin/sh\nshift\nexec ip netns exec {} sh -c \"$*\"\n", names[1]);
        fs::write(&agent, text).unwrap();
        fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
        let hosts = Self { names, agent };
        let [a, b] = &hosts.names;
        assert!(ip(&format!("netns add {a}")) && ip(&format!("netns add {b}")), "namespaces need root");
        assert!(ip(&format!("link add card netns {a} type veth peer name card netns {b}")));
        for (name, address) in hosts.names.iter().zip(ADDRESSES) {
            assert!(ip(&format!("-n {name} addr add {address}/24 dev card")));
            assert!(ip(&format!("-n {name} link set card up")) && ip(&format!("-n {name} link set lo up")));
        }
        hosts
    }

    /// Sets the link of the second machine `up` or `down`.
    fn link(&self, state: &str) {
        assert!(ip(&format!("-n {} link set card {state}", self.names[1])));
    }

    /// Runs `command` as the process of machine `side`.
    fn launch(&self, side: usize, command: &Command) -> Child {
        let number = side.to_string();
        let here = ["launch", "-n", "1", "--nodes", "2", "--node-rank", &number, "--master", ADDRESSES[0]];
        let mut across = Command::new("ip");
        across.args(["netns", "exec", &self.names[side]]).arg(command.get_program()).args(here);
        across.args(command.get_args()).env("NO_COLOR", "1");
        across.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs `command` as one process per machine, started from the first.
    #[cfg(feature = "mpi")]
    fn mpirun(&self, settings: &[&str], command: &mut Command) -> Command {
        let hosts = ADDRESSES.map(|address| format!("{address}:1")).join(",");
        let network = format!("{}0/24", ADDRESSES[0].trim_end_matches('1'));
        let local = Launcher::Mpi.start(2, command);
        let mut across = Command::new("ip");
        across.args([
            "netns",
            "exec",
            &self.names[0],
            "mpirun",
            "--host",
            &hosts,
            "--mca",
            "btl",
            "tcp,self",
        ]);
        across.args(["--mca", "btl_tcp_if_include", &network, "--mca", "oob_tcp_if_include", &network]);
        across.args(["--mca", "plm_rsh_agent"]).arg(&self.agent).args(settings).args(local.get_args());
        across.envs(local.get_envs().filter_map(|(name, value)| Some((name, value?))));
        across
    }

    /// Processes on machine `side`.
    fn processes(&self, side: usize) -> Vec<String> {
        let pids = Command::new("ip").args(["netns", "pids", &self.names[side]]).output().unwrap().stdout;
        String::from_utf8_lossy(&pids).split_whitespace().map(str::to_owned).collect()
    }

    /// Number of `simclr` processes on both machines.
    #[cfg(feature = "mpi")]
    fn trainers(&self) -> usize {
        let name = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let all = self.processes(0).into_iter().chain(self.processes(1));
        all.filter(|pid| name(pid).trim() == "simclr").count()
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < WITHIN, "{what}: not within {WITHIN:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill_all(&self) {
        for pid in (0..2).flat_map(|side| self.processes(side)) {
            let _ = Command::new("kill").args(["-s", "KILL", &pid]).status();
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.kill_all();
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// The README's settings for several machines, with which mpirun and its daemons detect a cut themselves.
#[cfg(feature = "mpi")]
const KEEPALIVE: &[&str] = &[
    "--mca",
    "oob_tcp_keepalive_time",
    "5",
    "--mca",
    "oob_tcp_keepalive_intvl",
    "1",
    "--mca",
    "oob_tcp_keepalive_probes",
    "5",
];

/// Long enough to be cut in the middle.
#[cfg(feature = "mpi")]
const LONG: &[&str] =
    &["--epochs", "400", "--set", "train.checkpoint_minutes=0", "--set", "train.knn_every=0"];

#[cfg(feature = "mpi")]
fn started(hosts: &Hosts, settings: &[&str], data: &Path, run: &Path, more: &[&str]) -> Child {
    let mut command = hosts.mpirun(settings, &mut pretrain(data, run, &[LONG, more].concat()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    hosts.wait_until("20 steps", |_| trains(run));
    assert_eq!(hosts.trainers(), 2, "one process on each machine");
    child
}

fn trains(run: &Path) -> bool {
    newest_checkpoint(run).is_some_and(|path| step_of(&path) >= 20)
}

/// `command` on both machines, to its end.
fn on_both(hosts: &Hosts, command: &Command) -> [Finished; 2] {
    [0, 1].map(|side| hosts.launch(side, command)).map(|child| finished(child, Duration::from_secs(120)))
}

/// 120 steps: small collectives over Gloo take longer than over MPI.
const LAUNCHED: &[&str] =
    &["--epochs", "60", "--set", "train.checkpoint_minutes=0", "--set", "train.knn_every=0"];

/// Without MPI: each machine starts its process by the same command.
#[test]
#[ignore = "needs root and network namespaces; `make test` runs it where it can"]
fn a_cut_link_ends_launched_processes_and_the_run_goes_on_to_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let (whole, cut) = (temp.path().join("whole"), temp.path().join("cut"));
    let hosts = Hosts::new(temp.path());
    for output in on_both(&hosts, &pretrain(&data, &whole, LAUNCHED)) {
        output.succeeds();
    }

    let timeout = ["--set", "dist.heartbeat_timeout_s=4"];
    let command = pretrain(&data, &cut, &[LAUNCHED, &timeout].concat());
    let children = [0, 1].map(|side| hosts.launch(side, &command));
    hosts.wait_until("20 steps", |_| trains(&cut));
    hosts.link("down");
    for (child, lost) in children.into_iter().zip([1, 0]) {
        let output = finished(child, WITHIN);
        assert_eq!(output.code, Some(2), "{}", output.err);
        assert!(output.err.contains(&format!("error: rank {lost} of 2 on ")), "{}", output.err);
        assert!(output.err.contains("the network to it is cut"), "{}", output.err);
    }
    hosts.wait_until("the end on both sides", |hosts| (0..2).all(|side| hosts.processes(side).is_empty()));
    assert!(step_of(&newest_checkpoint(&cut).unwrap()) < 120, "it was cut before its end");

    hosts.link("up");
    let [first, _] = on_both(&hosts, simclr(&["pretrain", "--resume", "--run"]).arg(&cut));
    first.succeeds();
    assert!(first.err.contains("resumed after step "), "{}", first.err);
    let tensors = |run: &Path| {
        let checkpoint = simclr::checkpoint::Checkpoint::load(&newest_checkpoint(run).unwrap()).unwrap();
        let bytes = |(name, tensor): (&String, &tch::Tensor)| {
            (name.clone(), Vec::<f64>::try_from(tensor.reshape([-1])).unwrap())
        };
        checkpoint.tensors.iter().map(bytes).collect::<Vec<_>>()
    };
    assert!(tensors(&whole) == tensors(&cut), "the weights differ");
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs root and network namespaces; `make test` runs it where it can"]
fn a_cut_link_ends_both_sides_and_the_run_goes_on_to_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let (whole, cut) = (temp.path().join("whole"), temp.path().join("cut"));
    let hosts = Hosts::new(temp.path());
    execute(&mut hosts.mpirun(KEEPALIVE, &mut pretrain(&data, &whole, LONG))).succeeds();

    let child = started(&hosts, KEEPALIVE, &data, &cut, &[]);
    hosts.link("down");
    let first = finished(child, WITHIN);
    assert_ne!(first.code, Some(0));
    assert!(first.err.contains(ADDRESSES[1]), "the lost machine is named: {}", first.err);
    hosts.wait_until("the end on both sides", |hosts| (0..2).all(|side| hosts.processes(side).is_empty()));
    assert!(step_of(&newest_checkpoint(&cut).unwrap()) < 800, "it was cut before its end");

    hosts.link("up");
    let resumed = execute(&mut hosts.mpirun(KEEPALIVE, simclr(&["pretrain", "--resume", "--run"]).arg(&cut)));
    resumed.succeeds();
    assert!(resumed.err.contains("resumed after step "), "{}", resumed.err);
    let bytes = |run: &Path| fs::read(newest_checkpoint(run).unwrap()).unwrap();
    assert!(bytes(&whole) == bytes(&cut), "the weights differ");
}

/// Without the launcher's detection: its TCP connections time out after many minutes.
#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs root and network namespaces; `make test` runs it where it can"]
fn both_sides_detect_a_cut_without_the_launcher() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 40);
    let hosts = Hosts::new(temp.path());
    let run = temp.path().join("run");
    let child = started(&hosts, &[], &data, &run, &["--set", "dist.heartbeat_timeout_s=4"]);
    hosts.link("down");
    hosts.wait_until("the end of both processes", |hosts| hosts.trainers() == 0);
    hosts.kill_all();
    let output = finished(child, WITHIN);
    assert!(output.err.contains("error: rank 1 of 2 on "), "{}", output.err);
    assert!(output.err.contains("the network to it is cut"), "{}", output.err);
}
