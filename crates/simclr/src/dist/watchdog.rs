//! Detection of lost ranks: every rank sends rank 0 a heartbeat each second, and rank 0 sends one to all, with the number of
//! collectives entered and left. A rank without heartbeats is dead or disconnected; a live rank that lets the others wait too
//! long is a straggler.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{DistConfig, timeouts};
use crate::DistError;

/// Interval between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Timeout instead of [`DistConfig::heartbeat_timeout_s`], if that is longer, once a connection has failed.
const LOST_TIMEOUT: Duration = Duration::from_secs(6);
/// If rank 0 is lost, each further rank delays its report by this much more than the one before it, so that only one reports:
/// longer than a heartbeat interval and the abort of all processes.
const REPORT_DELAY: Duration = Duration::from_secs(4);
const MAX_REPORT_DELAY: Duration = Duration::from_secs(8);

/// What the watchdog of a rank receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heartbeat {
    /// Collectives entered and left by a rank.
    Alive { rank: usize, progress: [u64; 2] },
    /// The connection over which heartbeats are exchanged has failed.
    Disconnected { reason: String },
    /// Another rank has reported a failure and ends all processes with this exit code.
    Aborted { code: i32 },
}

/// Exchange of heartbeats between rank 0 and each other rank. Neither function blocks.
pub trait Heartbeats: Send {
    /// Sends this rank's collectives entered and left.
    fn send(&mut self, to: usize, progress: [u64; 2]);
    /// The next message, if any.
    fn receive(&mut self) -> Option<Heartbeat>;
}

/// State shared between the training threads and the watchdog.
#[derive(Debug)]
pub struct PeerTable {
    rank: usize,
    hosts: Vec<String>,
    /// Number of collectives that this rank has entered, and left.
    entered: AtomicU64,
    left: AtomicU64,
    /// Heartbeat and straggler timeout.
    timeouts: Mutex<(Duration, Duration)>,
    /// First error of a connection.
    connection_error: Mutex<Option<String>>,
}

impl PeerTable {
    /// No collectives yet.
    pub fn new(rank: usize, hosts: Vec<String>, config: &DistConfig) -> Self {
        let (entered, left) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            rank,
            hosts,
            entered,
            left,
            timeouts: Mutex::new(timeouts(config)),
            connection_error: Mutex::new(None),
        }
    }

    /// Call before a collective.
    pub fn enter(&self) {
        self.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// Call after a collective.
    pub fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Replaces the timeouts.
    pub fn set_timeouts(&self, config: &DistConfig) {
        *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner) = timeouts(config);
    }

    /// Time without heartbeat after which a rank counts as lost.
    pub fn heartbeat_timeout(&self) -> Duration {
        self.timeouts.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Records an error for the watchdog's message, and lets it wait no longer than [`LOST_TIMEOUT`] for heartbeats.
    pub fn connection_failed(&self, error: &str) {
        let mut first = self.connection_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_owned());
    }

    fn progress(&self) -> [u64; 2] {
        [self.entered.load(Ordering::Relaxed), self.left.load(Ordering::Relaxed)]
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {} on {}", self.hosts.len(), self.hosts[rank])
    }
}

/// The last heartbeat of a rank.
#[derive(Debug, Clone, Copy)]
struct PeerState {
    last_heartbeat: Instant,
    /// Collectives entered and left.
    progress: [u64; 2],
    /// Time of the last change of `progress`.
    since: Instant,
}

impl PeerState {
    fn new(now: Instant) -> Self {
        Self { last_heartbeat: now, progress: [0; 2], since: now }
    }

    fn update(&mut self, now: Instant, progress: [u64; 2]) {
        self.last_heartbeat = now;
        if self.progress != progress {
            (self.progress, self.since) = (progress, now);
        }
    }
}

/// The first rank without a heartbeat for longer than `timeout`, and the time since its last one.
fn dead(peers: &[(usize, PeerState)], now: Instant, timeout: Duration) -> Option<(usize, Duration)> {
    let silence =
        |(rank, peer): &(usize, PeerState)| (*rank, now.saturating_duration_since(peer.last_heartbeat));
    peers.iter().map(silence).find(|(_, silence)| *silence > timeout)
}

/// The rank that is behind the others, outside of a collective, for longer than `timeout`, and that time.
fn straggler(peers: &[(usize, PeerState)], now: Instant, timeout: Duration) -> Option<(usize, Duration)> {
    let furthest = peers.iter().map(|(_, peer)| peer.progress[0]).max()?;
    let (rank, peer) = peers.iter().min_by_key(|(_, peer)| peer.progress[0])?;
    let behind = peer.progress[0] < furthest && peer.progress[0] == peer.progress[1];
    let time = now.saturating_duration_since(peer.since);
    (behind && time > timeout).then_some((*rank, time))
}

/// The watchdog thread, ended on drop.
#[derive(Debug)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Exchanges heartbeats, and calls `report` once if a rank is lost.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        table: Arc<PeerTable>,
        mut heartbeats: Box<dyn Heartbeats>,
        report: impl Fn(String) + Send + 'static,
    ) -> Result<Self, DistError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&table, &mut *heartbeats, &report, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn watch(table: &PeerTable, heartbeats: &mut dyn Heartbeats, report: &dyn Fn(String), stop: &AtomicBool) {
    let own = table.rank;
    let now = Instant::now();
    let ranks = if own == 0 { 1..table.hosts.len() } else { 0..1 };
    let mut peers: Vec<(usize, PeerState)> = ranks.map(|rank| (rank, PeerState::new(now))).collect();
    let mut myself = PeerState::new(now);
    let mut last = now;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let late = now.duration_since(last).saturating_sub(HEARTBEAT);
        if late > HEARTBEAT {
            // This process was suspended (stopped job, sleeping or overloaded machine): do not count that time against peers.
            peers.iter_mut().for_each(|(_, peer)| peer.last_heartbeat += late);
        }
        last = now;
        while let Some(message) = heartbeats.receive() {
            handle(message, table, &mut peers, now);
        }
        myself.update(now, table.progress());
        peers.iter().for_each(|(rank, _)| heartbeats.send(*rank, table.progress()));
        if let Some(message) = diagnose(table, &peers, myself, now) {
            let delay = REPORT_DELAY.saturating_mul(own.saturating_sub(1) as u32);
            std::thread::sleep(delay.min(MAX_REPORT_DELAY));
            return report(message);
        }
        std::thread::park_timeout(HEARTBEAT);
    }
}

fn handle(message: Heartbeat, table: &PeerTable, peers: &mut [(usize, PeerState)], now: Instant) {
    match message {
        Heartbeat::Alive { rank, progress } => {
            if let Some((_, peer)) = peers.iter_mut().find(|(of, _)| *of == rank) {
                peer.update(now, progress);
            }
        }
        Heartbeat::Disconnected { reason } => table.connection_failed(&reason),
        Heartbeat::Aborted { code } => simclr_shim::exit_now(code),
    }
}

/// The message about a lost rank, if any.
fn diagnose(
    table: &PeerTable,
    peers: &[(usize, PeerState)],
    myself: PeerState,
    now: Instant,
) -> Option<String> {
    let (heartbeat, stall) = *table.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
    let error = table.connection_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let heartbeat = if error.is_some() { heartbeat.min(LOST_TIMEOUT) } else { heartbeat };
    if let Some((rank, time)) = dead(peers, now, heartbeat) {
        let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
        let (name, seconds) = (table.name(rank), time.as_secs());
        return Some(format!(
            "{name} has sent no heartbeat for {seconds} s: it died, hangs, or the network to it is cut{error}"
        ));
    }
    let own = [(table.rank, myself)];
    let all: Vec<(usize, PeerState)> = own.iter().chain(peers).copied().collect();
    let (rank, time) = straggler(&all, now, stall)?;
    let (name, minutes) = (table.name(rank), time.as_secs_f64() / 60.0);
    Some(format!("{name} is alive, but has kept the others waiting for {minutes:.1} minutes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_and_straggling_ranks_are_distinguished() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut peers = [(1, PeerState::new(start)), (2, PeerState::new(start))];
        peers[0].1.update(at(10), [5, 4]); // waits in its fifth collective
        peers[1].1.update(at(3), [4, 4]); // has not entered it
        assert_eq!(dead(&peers, at(12), Duration::from_secs(9)), None);
        assert_eq!(dead(&peers, at(13), Duration::from_secs(9)), Some((2, Duration::from_secs(10))));
        peers[1].1.update(at(40), [4, 4]); // still alive
        assert_eq!(straggler(&peers, at(40), Duration::from_secs(40)), None);
        assert_eq!(straggler(&peers, at(40), Duration::from_secs(30)), Some((2, Duration::from_secs(37))));
        peers[1].1.update(at(41), [5, 4]); // it entered: now all wait for the network
        assert_eq!(straggler(&peers, at(99), Duration::from_secs(30)), None);
    }

    #[test]
    fn message_contains_rank_and_host() {
        let table = PeerTable::new(0, vec!["a".into(), "b".into()], &DistConfig::default());
        let start = Instant::now();
        let state = PeerState::new(start);
        let now = start + Duration::from_secs(21);
        assert_eq!(diagnose(&table, &[(1, state)], state, start + 2 * LOST_TIMEOUT), None);
        table.connection_failed("MPI: broken");
        table.connection_failed("MPI: broken again");
        let message = diagnose(&table, &[(1, state)], state, now).unwrap();
        let soon = start + LOST_TIMEOUT + Duration::from_millis(1);
        assert!(diagnose(&table, &[(1, state)], state, soon).is_some(), "no longer timeout after a failure");
        assert!(message.starts_with("rank 1 of 2 on b has sent no heartbeat for 21 s"), "{message}");
        assert!(message.ends_with("(MPI: broken)"), "{message}");
    }
}
