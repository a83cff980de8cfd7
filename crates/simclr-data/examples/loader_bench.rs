//! Views per second of a loader over an image set.
//!
//! usage: loader_bench PATH [SIZE [BATCH [THREADS [SECONDS]]]]
#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::{error::Error, path::Path, sync::Arc, time::Instant};

use simclr_data::{AugmentConfig, Dataset, Loader, LoaderConfig, Split, dataset::Channels};

/// As in the executable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("give an image set")?;
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (size, batch, threads, seconds) = (number(1, 224)?, number(2, 64)?, number(3, 1)?, number(4, 5)?);
    let set = Arc::new(Dataset::open(Path::new(path), Split::Train, Channels::Auto)?);
    let config =
        LoaderConfig { batch, size, threads, prefetch: 2, max_bad_share: 0.0, ..LoaderConfig::default() };
    let loader = Loader::new(set, AugmentConfig::default(), config)?;
    let mut batches = loader.batches(0, u64::MAX)?;
    // Warm-up.
    for batch in batches.by_ref().take(4) {
        batch?;
    }
    let (start, mut views) = (Instant::now(), 0);
    for batch in batches.by_ref() {
        views += 2 * batch?.ids.len();
        if start.elapsed().as_secs() >= seconds as u64 {
            break;
        }
    }
    let rate = views as f64 / start.elapsed().as_secs_f64();
    println!("{path}: {rate:.0} views/s ({size} px, {threads} threads)");
    Ok(())
}
