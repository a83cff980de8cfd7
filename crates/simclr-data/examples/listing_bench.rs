//! What it costs to notice changed images: lists a folder, takes its fingerprint, then asks whether images have changed since an
//! observation of the same state. `cargo run --release -p simclr-data --example listing_bench -- FOLDER [ROUNDS]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints and fails by panicking")]

use std::{path::PathBuf, time::Instant};

use simclr_data::{Dataset, Split, dataset::Channels};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder: PathBuf = arguments.next().expect("a folder").into();
    let rounds: usize = arguments.next().map_or(3, |text| text.parse().unwrap());
    for _ in 0..rounds {
        let began = (Instant::now(), cpu_seconds());
        let set = Dataset::open(&folder, Split::Train, Channels::Count(3)).unwrap();
        let fingerprint = set.fingerprint();
        let listed = (Instant::now(), cpu_seconds());
        let observed = set.observed();
        assert!(set.changes_since(&observed).changed.is_empty());
        let checked = (Instant::now(), cpu_seconds());
        let list = [(listed.0 - began.0).as_secs_f64(), listed.1 - began.1];
        let check = [(checked.0 - listed.0).as_secs_f64(), checked.1 - listed.1];
        println!(
            "{} images, {fingerprint}: listing {:.3} s (CPU {:.3}), change check {:.3} s (CPU {:.3}), {:.2} % of the CPU time",
            set.len(),
            list[0],
            list[1],
            check[0],
            check[1],
            100.0 * check[1] / list[1]
        );
    }
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Clock ticks are hundredths of a second.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}
