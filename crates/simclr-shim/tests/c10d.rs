//! Stores and Gloo groups between threads of one process, over the loopback interface.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Barrier, thread, time::Duration};

use fs_err as fs;
use simclr_shim::{
    Channel,
    c10d::{Gloo, Store},
};

const TIMEOUT: Duration = Duration::from_secs(20);
const HOST: &str = "127.0.0.1";

/// Runs `work` on `count` ranks and returns their results by rank.
fn on_ranks<T: Send>(count: usize, work: impl Fn(usize, Gloo) -> T + Sync) -> Vec<T> {
    connected_within(TIMEOUT, count, work)
}

fn connected_within<T: Send>(
    timeout: Duration,
    count: usize,
    work: impl Fn(usize, Gloo) -> T + Sync,
) -> Vec<T> {
    let server = Store::new(HOST, 0, true, TIMEOUT).unwrap();
    let port = server.port();
    thread::scope(|scope| {
        let rank = |rank| {
            let work = &work;
            scope.spawn(move || {
                let store = Store::new(HOST, port, false, TIMEOUT).unwrap();
                work(rank, Gloo::new(&store, "test", (rank, count), HOST, timeout).unwrap())
            })
        };
        let ranks: Vec<_> = (0..count).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn values_are_shared_and_counted() {
    let server = Store::new(HOST, 0, true, TIMEOUT).unwrap();
    let client = Store::new(HOST, server.port(), false, TIMEOUT).unwrap();
    assert_eq!(server.get("key").unwrap(), None);
    client.set("key", &[0, 255, 7]).unwrap();
    assert_eq!(client.get("key").unwrap(), Some(vec![0, 255, 7]));
    assert_eq!(server.get("key").unwrap(), Some(vec![0, 255, 7]));
    client.set("key", &[]).unwrap();
    assert_eq!(client.get("key").unwrap(), Some(vec![]));
    assert_eq!(server.get("key").unwrap(), Some(vec![]));
    assert_eq!((client.add("ranks", 1).unwrap(), server.add("ranks", 2).unwrap()), (1, 3));
}

/// Policies of the threads of this process by name: field 41 of `/proc/PID/task/TID/stat` (man proc_pid_stat).
#[cfg(target_os = "linux")]
fn policies(name: &str) -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stat = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let of = stat.filter_map(|stat| {
        let (before, after) = stat.rsplit_once(')')?;
        before.contains(name).then(|| after.split_whitespace().nth(38)?.parse().ok())?
    });
    of.collect()
}

/// SCHED_BATCH; otherwise two processes wait for the timer tick (bench/results/processes.txt).
#[cfg(target_os = "linux")]
#[test]
fn threads_of_gloo_do_not_preempt() {
    const SCHED_BATCH: i32 = 3;
    std::thread::Builder::new()
        .name("caller".into())
        .spawn(|| {
            let store = Store::new(HOST, 0, true, TIMEOUT).unwrap();
            let gloo = Gloo::new(&store, "policy", (0, 1), HOST, TIMEOUT).unwrap();
            // Its thread has started and has its name.
            gloo.all_reduce(&mut [1.0]).unwrap();
            let found = policies("pt_gloo");
            assert!(!found.is_empty() && found.iter().all(|&policy| policy == SCHED_BATCH), "{found:?}");
            // The event loop has the name of the thread that made the group, which keeps its policy.
            let mut found = policies("caller");
            found.sort_unstable();
            assert_eq!(found, [0, SCHED_BATCH]);
        })
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn errors_name_the_address() {
    let server = Store::new(HOST, 0, true, TIMEOUT).unwrap();
    let twice = Store::new(HOST, server.port(), true, TIMEOUT).unwrap_err().to_string();
    assert!(twice.contains(&server.port().to_string()), "{twice}");
    let port = server.port();
    drop(server);
    let refused = Store::new(HOST, port, false, Duration::from_secs(1)).unwrap_err().to_string();
    assert!(refused.contains(&port.to_string()), "{refused}");
}

#[test]
fn collectives_over_one_two_and_four_ranks() {
    for count in [1, 2, 4] {
        let results = on_ranks(count, |rank, gloo| {
            // The rounding of these sums depends on the order; the bits must be the same on every rank.
            let mut sums: Vec<f32> = (0..10_001).map(|i| 0.1 + (i * (rank + 1)) as f32 * 1e-3).collect();
            gloo.all_reduce(&mut sums).unwrap();
            let mut wide = [1.0 + rank as f64, 1e300];
            gloo.all_reduce_f64(&mut wide).unwrap();
            let own = vec![rank as u8 + 1; 3 * rank];
            let gathered = gloo.all_gather(&own).unwrap();
            let mut bytes = vec![rank as u8 + 10; 5];
            gloo.broadcast(count - 1, &mut bytes).unwrap();
            gloo.barrier().unwrap();
            gloo.all_reduce(&mut []).unwrap();
            (sums, wide, gathered, bytes)
        });
        let ranks = (1..=count).sum::<usize>() as f32;
        for (sums, wide, gathered, bytes) in &results {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(sums), bits(&results[0].0), "equal on all ranks");
            for (i, sum) in sums.iter().enumerate() {
                let expected = 0.1 * count as f32 + i as f32 * ranks * 1e-3;
                assert!((sum / expected - 1.0).abs() < 1e-5, "{i}: {sum} {expected}");
            }
            assert_eq!(*wide, [f64::from(ranks), count as f64 * 1e300]);
            let expected: Vec<Vec<u8>> = (0..count).map(|rank| vec![rank as u8 + 1; 3 * rank]).collect();
            assert_eq!(*gathered, expected);
            assert_eq!(*bytes, [count as u8 + 9; 5]);
        }
    }
}

#[test]
fn lost_peer_is_an_error() {
    let results = on_ranks(2, |rank, gloo| {
        gloo.barrier().unwrap();
        if rank == 1 {
            return None; // leaves the group
        }
        Some(gloo.all_reduce(&mut [1.0]).unwrap_err().to_string())
    });
    assert!(results[0].as_ref().unwrap().contains("onnection"), "{results:?}");
}

/// A rank's groups (step, statistics, gradients) start on threads of their own; libtorch records new groups in one unlocked map.
#[test]
fn groups_of_one_process_start_at_the_same_time() {
    const GROUPS: usize = 64;
    let server = Store::new(HOST, 0, true, TIMEOUT).unwrap();
    let groups: Vec<Gloo> = (0..GROUPS)
        .map(|i| Gloo::new(&server, &format!("group {i}"), (0, 1), HOST, TIMEOUT).unwrap())
        .collect();
    let start = Barrier::new(GROUPS);
    thread::scope(|scope| {
        for gloo in &groups {
            scope.spawn(|| {
                start.wait();
                let mut sum = [2.5];
                gloo.all_reduce(&mut sum).unwrap();
                assert_eq!(sum, [2.5]);
            });
        }
    });
}

/// The time for the connection does not limit collectives: a rank may take longer between two of them.
#[test]
fn collectives_wait_longer_than_the_connection() {
    let timeout = Duration::from_secs(3);
    let sums = connected_within(timeout, 2, |rank, gloo| {
        thread::sleep(timeout.mul_f64(1.5 * rank as f64));
        let mut values = [1.0f32 + rank as f32];
        gloo.all_reduce(&mut values).map(|()| values[0]).map_err(|error| error.to_string())
    });
    assert_eq!(sums, [Ok(3.0), Ok(3.0)]);
}
