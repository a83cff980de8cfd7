//! Processes that found each other by environment variables, connected by c10d's TCPStore and Gloo.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use simclr_shim::{
    ShimError,
    c10d::{Gloo, Store},
    exit_now,
};

use super::{
    launch::{Rendezvous, host},
    watchdog::{Heartbeat, Heartbeats},
    watched::Connected,
};
use crate::DistError;

/// All processes must have started within this time, as with torchrun's static rendezvous.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two looks for a key of the store.
const POLL: Duration = Duration::from_millis(50);
/// Pause between two exchanges of heartbeats; the watchdog looks once a second.
const EXCHANGE: Duration = Duration::from_millis(500);
/// Time for the other processes to see the exit code of [`abort_all`] before its store ends with this process.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// Keys in the store. Attempts of an elastic launcher, which may share a store, are kept apart.
#[derive(Debug, Clone)]
struct Keys {
    attempt: u64,
}

impl Keys {
    fn of(&self, name: &str) -> String {
        format!("simclr/{}/{name}", self.attempt)
    }

    fn of_rank(&self, name: &str, rank: usize) -> String {
        self.of(&format!("{name}/{rank}"))
    }
}

/// Waits for all processes and connects each with each.
///
/// # Errors
/// No store at the address, a rank that is missing or there twice, or a process that cannot be reached.
pub fn connect(place: &Rendezvous) -> Result<Connected<Gloo>, DistError> {
    let at = format!("{}:{}", place.address, place.port);
    let failed = |error: ShimError| DistError::Rendezvous { address: at.clone(), reason: error.to_string() };
    let serve = place.hosts_store();
    let store = Arc::new(Store::new(&place.address, place.port, serve, JOIN_TIMEOUT).map_err(failed)?);
    let keys = Keys { attempt: place.attempt };
    let own = Introduction { host: host(), address: own_address(place), master: master_address(place) };
    let all = introduce(&store, &keys, place, &own, &failed)?;
    let address = reachable(&own, &all).to_string();
    let ranks = (place.rank, place.count);
    let channel =
        |name: &str| Gloo::new(&store, &keys.of(name), ranks, &address, JOIN_TIMEOUT).map_err(failed);
    let (step, statistics, gradients) = (channel("step")?, channel("statistics")?, channel("gradients")?);
    // A connection of its own, so that heartbeats never wait for another call.
    let beats = Store::new(&place.address, place.port, false, JOIN_TIMEOUT).map_err(failed)?;
    Ok(Connected {
        rank: place.rank,
        hosts: all.into_iter().map(|introduction| introduction.host).collect(),
        step,
        statistics,
        gradients,
        heartbeats: Box::new(StoreHeartbeats::start(beats, keys.clone(), ranks)?),
        abort_all: Box::new(move |code| abort_all(&store, &keys, serve, code)),
    })
}

/// Facts of a process for the others, `host \t address \t master`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Introduction {
    host: String,
    /// Address from which this process reaches the store's machine.
    address: IpAddr,
    /// Address of the store's machine, as this process resolves it.
    master: IpAddr,
}

impl Introduction {
    fn to_text(&self) -> String {
        format!("{}\t{}\t{}", self.host, self.address, self.master)
    }

    fn of_text(text: &str) -> Option<Self> {
        let mut parts = text.split('\t');
        let host = parts.next()?.to_owned();
        Some(Self { host, address: parts.next()?.parse().ok()?, master: parts.next()?.parse().ok()? })
    }
}

fn master_address(place: &Rendezvous) -> IpAddr {
    let found = (place.address.as_str(), place.port).to_socket_addrs();
    found.ok().and_then(|mut all| all.next()).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |found| found.ip())
}

/// The source address of packets to the store's machine. Connecting a UDP socket sends nothing.
fn own_address(place: &Rendezvous) -> IpAddr {
    let master = master_address(place);
    let any = if master.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let route = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((master, place.port))?;
        socket.local_addr()
    });
    route.map_or(master, |address| address.ip())
}

/// The address under which the others reach this process: one that reaches the store's machine over the loopback interface is on that
/// machine, so it takes an address under which processes of other machines find it.
fn reachable(own: &Introduction, all: &[Introduction]) -> IpAddr {
    let outside = || all.iter().map(|other| other.master).find(|master| !master.is_loopback());
    if own.address.is_loopback() { outside().unwrap_or(own.address) } else { own.address }
}

/// Leaves this process's introduction in the store and waits for those of all ranks.
fn introduce(
    store: &Store,
    keys: &Keys,
    place: &Rendezvous,
    own: &Introduction,
    failed: &dyn Fn(ShimError) -> DistError,
) -> Result<Vec<Introduction>, DistError> {
    if store.add(&keys.of_rank("count", place.rank), 1).map_err(failed)? > 1 {
        return Err(DistError::DuplicateRank { rank: place.rank });
    }
    store.set(&keys.of_rank("process", place.rank), own.to_text().as_bytes()).map_err(failed)?;
    let begin = Instant::now();
    let mut all = vec![None; place.count];
    loop {
        for (rank, found) in all.iter_mut().enumerate().filter(|(_, found)| found.is_none()) {
            let text = store.get(&keys.of_rank("process", rank)).map_err(failed)?;
            *found = text.and_then(|bytes| Introduction::of_text(&String::from_utf8_lossy(&bytes)));
        }
        let missing: Vec<usize> = (0..place.count).filter(|&rank| all[rank].is_none()).collect();
        if missing.is_empty() {
            return Ok(all.into_iter().flatten().collect());
        }
        if begin.elapsed() > JOIN_TIMEOUT {
            return Err(DistError::Missing { missing, count: place.count, seconds: JOIN_TIMEOUT.as_secs() });
        }
        sleep(POLL);
    }
}

/// Tells the other processes to exit with `code`, and does so.
fn abort_all(store: &Arc<Store>, keys: &Keys, serve: bool, code: i32) {
    let (store, key) = (Arc::clone(store), keys.of("abort"));
    // The connection may be the reason of the failure: this process exits in any case.
    // `set` does not wait for the server; `get` does.
    let sent = std::thread::spawn(move || {
        store.set(&key, code.to_string().as_bytes()).and_then(|()| store.get(&key)).is_ok()
    });
    let begin = Instant::now();
    while begin.elapsed() < ABORT_GRACE && (serve || !sent.is_finished()) {
        sleep(POLL);
    }
    exit_now(code)
}

/// Heartbeats as values in the store, exchanged by a thread that may block on a cut connection.
struct StoreHeartbeats {
    shared: Arc<Mutex<Exchange>>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Exchange {
    progress: [u64; 2],
    received: VecDeque<Heartbeat>,
}

impl StoreHeartbeats {
    fn start(store: Store, keys: Keys, ranks: (usize, usize)) -> Result<Self, DistError> {
        let (shared, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (exchange, stopped) = (Arc::clone(&shared), Arc::clone(&stop));
        let run = move || exchange_heartbeats(&store, &keys, ranks, &exchange, &stopped);
        std::thread::Builder::new().name("heartbeats".into()).spawn(run)?;
        Ok(Self { shared, stop })
    }
}

impl Drop for StoreHeartbeats {
    fn drop(&mut self) {
        // Not joined: it may wait for a store that no longer answers.
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Heartbeats for StoreHeartbeats {
    fn send(&mut self, _: usize, progress: [u64; 2]) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).progress = progress;
    }

    fn receive(&mut self) -> Option<Heartbeat> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).received.pop_front()
    }
}

fn exchange_heartbeats(
    store: &Store,
    keys: &Keys,
    (own, count): (usize, usize),
    shared: &Mutex<Exchange>,
    stop: &AtomicBool,
) {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let peers = if own == 0 { 1..count } else { 0..1 };
    let mut seen = vec![0; count];
    for beat in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let [entered, left] = lock().progress;
        match exchange_once(store, keys, own, [beat, entered, left], peers.clone(), &mut seen) {
            Ok(received) => lock().received.extend(received),
            Err(error) => {
                lock().received.push_back(Heartbeat::Disconnected { reason: error.to_string() });
                return;
            }
        }
        sleep(EXCHANGE);
    }
}

/// Stores this rank's heartbeat and returns the new ones of `peers`; `seen` holds the number of the last one of each rank.
fn exchange_once(
    store: &Store,
    keys: &Keys,
    own: usize,
    words: [u64; 3],
    peers: std::ops::Range<usize>,
    seen: &mut [u64],
) -> Result<Vec<Heartbeat>, ShimError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    store.set(&keys.of_rank("heartbeat", own), &bytes)?;
    let mut received = Vec::new();
    if let Some(code) = store.get(&keys.of("abort"))? {
        let code = String::from_utf8_lossy(&code).parse().unwrap_or(1);
        received.push(Heartbeat::Aborted { code });
    }
    for rank in peers {
        let Some(bytes) = store.get(&keys.of_rank("heartbeat", rank))? else { continue };
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        if let [beat, entered, left] = words[..]
            && beat != seen[rank]
        {
            seen[rank] = beat;
            received.push(Heartbeat::Alive { rank, progress: [entered, left] });
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(address: &str, master: &str) -> Introduction {
        Introduction { host: "a".into(), address: address.parse().unwrap(), master: master.parse().unwrap() }
    }

    #[test]
    fn introductions_survive_the_store() {
        let own = introduction("10.0.0.2", "::1");
        assert_eq!(Introduction::of_text(&own.to_text()), Some(own));
        assert_eq!(Introduction::of_text("a\t10.0.0.2"), None);
        assert_eq!(Introduction::of_text("a\tb\tc"), None);
    }

    #[test]
    fn processes_on_the_stores_machine_take_an_address_that_others_reach() {
        // Debian resolves a machine's own name to 127.0.1.1.
        let first = introduction("127.0.0.1", "127.0.1.1");
        let other = introduction("10.0.0.2", "10.0.0.1");
        let all = [first.clone(), other.clone()];
        assert_eq!(reachable(&first, &all).to_string(), "10.0.0.1");
        assert_eq!(reachable(&other, &all).to_string(), "10.0.0.2");
        assert_eq!(reachable(&first, std::slice::from_ref(&first)).to_string(), "127.0.0.1");
    }

    #[test]
    fn heartbeats_and_exit_codes_arrive_once() {
        let second = Duration::from_secs(10);
        let server = Store::new("127.0.0.1", 0, true, second).unwrap();
        let client = Store::new("127.0.0.1", server.port(), false, second).unwrap();
        let keys = Keys { attempt: 3 };
        let mut seen = vec![0; 2];
        let mut first = |beat: u64| exchange_once(&server, &keys, 0, [beat, 0, 0], 1..2, &mut seen).unwrap();
        assert_eq!(first(1), []);
        assert_eq!(
            exchange_once(&client, &keys, 1, [1, 8, 7], 0..1, &mut [0; 2]).unwrap(),
            [Heartbeat::Alive { rank: 0, progress: [0, 0] }]
        );
        assert_eq!(first(2), [Heartbeat::Alive { rank: 1, progress: [8, 7] }]);
        assert_eq!(first(3), [], "no new heartbeat of rank 1");
        client.set(&keys.of("abort"), b"5").unwrap();
        client.get(&keys.of("abort")).unwrap();
        assert_eq!(first(4), [Heartbeat::Aborted { code: 5 }]);
        assert_eq!(exchange_once(&server, &Keys { attempt: 4 }, 0, [1; 3], 1..2, &mut [0; 2]).unwrap(), []);
    }
}
