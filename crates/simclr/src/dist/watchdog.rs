//! Who is lost: every rank sends rank 0 a sign of life each second, and rank 0 sends one to all, with how far its run has
//! come. Silence means dead or cut off; a living rank that lets the others wait too long hangs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use simclr_shim::mpi::{Channel, Sending};

use super::{DistConfig, timeouts};
use crate::DistError;

/// Between signs of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Signs on their way to one rank, beyond which no more are sent.
const UNDERWAY: usize = 8;
/// Where rank 0 is lost, each rank but the first of the others waits so much longer than the one before it, so that one of
/// them speaks for all: longer than a beat and the end of all processes take.
const REPORT_DELAY: Duration = Duration::from_secs(4);
const MAX_REPORT_DELAY: Duration = Duration::from_secs(8);

/// What the run's threads and the watch know of each other.
#[derive(Debug)]
pub struct PeerTable {
    rank: usize,
    hosts: Vec<String>,
    /// Exchanges that this rank has entered, and left again.
    entered: AtomicU64,
    left: AtomicU64,
    timeouts: Mutex<(Duration, Duration)>,
    broken: Mutex<Option<String>>,
}

impl PeerTable {
    /// Nothing exchanged yet.
    pub fn new(rank: usize, hosts: Vec<String>, config: &DistConfig) -> Self {
        let (entered, left) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { rank, hosts, entered, left, timeouts: Mutex::new(timeouts(config)), broken: Mutex::new(None) }
    }

    /// The run waits for the others from here.
    pub fn enter(&self) {
        self.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// It goes on.
    pub fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// From the configuration.
    pub fn set_timeouts(&self, config: &DistConfig) {
        *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner) = timeouts(config);
    }

    /// Seconds of silence that are borne.
    pub fn longest_silence(&self) -> Duration {
        self.timeouts.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// MPI has noticed first; what it said goes into the message.
    pub fn connection_failed(&self, said: &str) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.to_owned());
    }

    fn progress(&self) -> [u64; 2] {
        [self.entered.load(Ordering::Relaxed), self.left.load(Ordering::Relaxed)]
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {} on {}", self.hosts.len(), self.hosts[rank])
    }
}

/// What was last heard of a rank.
#[derive(Debug, Clone, Copy)]
struct PeerState {
    heard: Instant,
    progress: [u64; 2],
    /// Since when the progress is the same.
    since: Instant,
}

impl PeerState {
    fn new(now: Instant) -> Self {
        Self { heard: now, progress: [0; 2], since: now }
    }

    fn update(&mut self, now: Instant, progress: [u64; 2]) {
        self.heard = now;
        if self.progress != progress {
            (self.progress, self.since) = (progress, now);
        }
    }
}

/// The first rank of which nothing was heard for longer than `bearable`.
fn silent(signs: &[(usize, PeerState)], now: Instant, bearable: Duration) -> Option<(usize, Duration)> {
    let silence = |(rank, sign): &(usize, PeerState)| (*rank, now.saturating_duration_since(sign.heard));
    signs.iter().map(silence).find(|(_, silence)| *silence > bearable)
}

/// The rank that lives, waits for nobody, and has been behind the others for longer than `bearable`.
fn stalled(signs: &[(usize, PeerState)], now: Instant, bearable: Duration) -> Option<(usize, Duration)> {
    let furthest = signs.iter().map(|(_, sign)| sign.progress[0]).max()?;
    let (rank, sign) = signs.iter().min_by_key(|(_, sign)| sign.progress[0])?;
    let behind = sign.progress[0] < furthest && sign.progress[0] == sign.progress[1];
    let time = now.saturating_duration_since(sign.since);
    (behind && time > bearable).then_some((*rank, time))
}

/// The watching thread. Dropping it ends it.
#[derive(Debug)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches over `channel` from now on, and calls `alarm` once with who is lost.
    ///
    /// # Errors
    /// A thread that the system does not give.
    pub fn start(
        table: Arc<PeerTable>,
        channel: Channel,
        alarm: impl Fn(String) + Send + 'static,
    ) -> Result<Self, DistError> {
        let stop = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || watch(&table, &channel, &alarm, &ending))?;
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

fn watch(table: &PeerTable, channel: &Channel, alarm: &dyn Fn(String), stop: &AtomicBool) {
    let own = table.rank;
    let peers: Vec<usize> = if own == 0 { (1..table.hosts.len()).collect() } else { vec![0] };
    let mut underway: Vec<(usize, Sending)> = Vec::new();
    let mut signs: Vec<(usize, PeerState)> =
        peers.iter().map(|&rank| (rank, PeerState::new(Instant::now()))).collect();
    let mut myself = PeerState::new(Instant::now());
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let late = now.duration_since(last).saturating_sub(HEARTBEAT);
        if late > HEARTBEAT {
            // It was this process that stood still (a stopped job, a machine that sleeps or is overloaded), and that time
            // is held against nobody.
            signs.iter_mut().for_each(|(_, sign)| sign.heard += late);
        }
        last = now;
        while let Some((from, progress)) = channel.receive() {
            let sign = signs.iter_mut().find(|(rank, _)| *rank == from);
            sign.into_iter().for_each(|(_, sign)| sign.update(now, progress));
        }
        myself.update(now, table.progress());
        underway.retain_mut(|(_, sending)| !sending.is_done());
        for &rank in &peers {
            if underway.iter().filter(|(to, _)| *to == rank).count() < UNDERWAY {
                underway.extend(channel.send(rank, table.progress()).map(|sending| (rank, sending)));
            }
        }
        if let Some(message) = verdict(table, &signs, myself, now) {
            std::thread::sleep(
                REPORT_DELAY.saturating_mul(own.saturating_sub(1) as u32).min(MAX_REPORT_DELAY),
            );
            return alarm(message);
        }
        std::thread::park_timeout(HEARTBEAT);
    }
}

/// Who is lost, in words.
fn verdict(
    table: &PeerTable,
    signs: &[(usize, PeerState)],
    myself: PeerState,
    now: Instant,
) -> Option<String> {
    let (silence, stall) = *table.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((rank, time)) = silent(signs, now, silence) {
        let said = table.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.as_ref().map(|said| format!(" ({said})")).unwrap_or_default();
        let (name, seconds) = (table.name(rank), time.as_secs());
        let why = "it died, hangs, or the network to it is cut";
        return Some(format!("{name} gave no sign of life for {seconds} s: {why}{said}"));
    }
    let own = [(table.rank, myself)];
    let all: Vec<(usize, PeerState)> = own.iter().chain(signs).copied().collect();
    let (rank, time) = stalled(&all, now, stall)?;
    let (name, minutes) = (table.name(rank), time.as_secs_f64() / 60.0);
    Some(format!("{name} lives, but has kept the others waiting for {minutes:.1} minutes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_stalls_are_told_apart() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut signs = [(1, PeerState::new(start)), (2, PeerState::new(start))];
        signs[0].1.update(at(10), [5, 4]); // waits in its fifth exchange
        signs[1].1.update(at(3), [4, 4]); // has not come to it
        assert_eq!(silent(&signs, at(12), Duration::from_secs(9)), None);
        assert_eq!(silent(&signs, at(13), Duration::from_secs(9)), Some((2, Duration::from_secs(10))));
        signs[1].1.update(at(40), [4, 4]); // still alive
        assert_eq!(stalled(&signs, at(40), Duration::from_secs(40)), None);
        assert_eq!(stalled(&signs, at(40), Duration::from_secs(30)), Some((2, Duration::from_secs(37))));
        signs[1].1.update(at(41), [5, 4]); // it came: now all wait for the network, which is nobody's fault
        assert_eq!(stalled(&signs, at(99), Duration::from_secs(30)), None);
    }

    #[test]
    fn the_message_names_the_rank_and_its_machine() {
        let table = PeerTable::new(0, vec!["a".into(), "b".into()], &DistConfig::default());
        let start = Instant::now();
        let sign = PeerState::new(start);
        let now = start + Duration::from_secs(21);
        table.connection_failed("MPI: broken");
        let message = verdict(&table, &[(1, sign)], sign, now).unwrap();
        assert!(message.starts_with("rank 1 of 2 on b gave no sign of life for 21 s"), "{message}");
        assert!(message.ends_with("(MPI: broken)"), "{message}");
    }
}
