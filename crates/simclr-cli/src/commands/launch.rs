//! `simclr launch`: the processes of one machine, with the variables of torch.distributed, by which they find each other.

use std::{
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::iterator::Signals;

use simclr::dist::DEFAULT_PORT;

use super::pretrain::ending_signals;
use crate::{args::Launch, failure::Failure, terminal};

const POLL: Duration = Duration::from_millis(50);
/// After a failure that a process has reported, the others are killed, before they report the loss of that process.
const REPORTED_GRACE: Duration = Duration::from_millis(500);
/// After a process was killed, the others have this long to notice and name it: longer than the default heartbeat timeout.
const KILLED_GRACE: Duration = Duration::from_secs(30);

/// Starts the processes, forwards signals to them and waits for their end. The exit code is that of the first failure.
pub fn run(arguments: &Launch) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new(ending_signals())?;
    let mut processes = start(arguments)?;
    let mut first: Option<(ExitStatus, Instant)> = None;
    let mut stopping = false;
    while processes.iter_mut().filter_map(Process::check).count() > 0 {
        for signal in signals.pending().filter_map(Signal::from_named_raw) {
            processes.iter().for_each(|process| process.signal(signal));
            stopping = true;
        }
        if first.is_none() {
            first = first_failure(&processes).map(|status| (status, Instant::now()));
        }
        let is_reported = processes.iter().any(|process| process.status.is_some_and(|s| s.code().is_some()));
        let grace = if is_reported { REPORTED_GRACE } else { KILLED_GRACE };
        if first.is_some_and(|(_, since)| since.elapsed() > grace) && !stopping {
            processes.iter_mut().for_each(Process::kill);
        }
        std::thread::sleep(POLL);
    }
    let failure = first.map(|(status, _)| status).or_else(|| first_failure(&processes));
    Ok(failure.map_or(ExitCode::SUCCESS, |status| ExitCode::from(code(status))))
}

fn first_failure(processes: &[Process]) -> Option<ExitStatus> {
    processes.iter().find_map(|process| process.status.filter(|status| !status.success()))
}

/// A rank that was started, and its status once it has ended.
struct Process {
    child: Child,
    rank: usize,
    status: Option<ExitStatus>,
    /// Whether this process has killed it.
    killed: bool,
}

impl Process {
    /// `Some` while it runs. Its end by a signal of others is reported.
    fn check(&mut self) -> Option<()> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
            let signal = self.status.and_then(|status| status.signal());
            if let Some(number) = signal.filter(|_| !self.killed) {
                let message = format!("rank {} was ended by signal {number}", self.rank);
                terminal::error("notice", &message, None);
            }
        }
        self.status.is_none().then_some(())
    }

    fn kill(&mut self) {
        self.killed = true;
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // An error means that it has just ended.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }
}

/// As a shell reports it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(1)
}

fn start(arguments: &Launch) -> Result<Vec<Process>, Failure> {
    let local = processes(arguments)?;
    if arguments.node_rank >= arguments.nodes {
        let message =
            format!("--node-rank is {}, expected less than --nodes {}", arguments.node_rank, arguments.nodes);
        return Err(Failure::user(message, None));
    }
    let (address, port) = meeting_point(arguments)?;
    let program = std::env::current_exe()?;
    let mut started = Vec::new();
    for local_rank in 0..local {
        let rank = arguments.node_rank * local + local_rank;
        let mut command = Command::new(&program);
        // In a group of its own, so that Ctrl-C reaches it once, through this process.
        command.args(&arguments.command).process_group(0);
        command.envs([
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", (local * arguments.nodes).to_string()),
            ("LOCAL_RANK", local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", local.to_string()),
            ("MASTER_ADDR", address.clone()),
            ("MASTER_PORT", port.to_string()),
        ]);
        match command.spawn() {
            Ok(child) => started.push(Process { child, rank, status: None, killed: false }),
            Err(error) => {
                started.iter().for_each(|process: &Process| process.signal(Signal::KILL));
                return Err(Failure::user(format!("rank {rank} could not be started: {error}"), None));
            }
        }
    }
    Ok(started)
}

fn processes(arguments: &Launch) -> Result<usize, Failure> {
    let count = arguments.processes.unwrap_or_else(simclr::device::gpu_count);
    if count > 0 {
        return Ok(count);
    }
    let message = match arguments.processes {
        Some(_) => "--processes is 0, expected at least 1",
        None => "this machine has no GPU to count: how many processes?",
    };
    Err(Failure::user(
        message,
        Some("give their number by -n, such as `simclr launch -n 2 pretrain ...`".into()),
    ))
}

/// Address and port at which all processes meet.
fn meeting_point(arguments: &Launch) -> Result<(String, u16), Failure> {
    match (&arguments.master, arguments.port) {
        (Some(address), port) => Ok((address.clone(), port.unwrap_or(DEFAULT_PORT))),
        (None, _) if arguments.nodes > 1 => {
            let hint = "give the name of machine 0, the same one on all machines, by --master";
            Err(Failure::user("several machines need an address to meet at", Some(hint.into())))
        }
        (None, Some(port)) => Ok(("127.0.0.1".into(), port)),
        // Free now; another program may take it before rank 0 does, which is then reported.
        (None, None) => Ok(("127.0.0.1".into(), TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())),
    }
}
