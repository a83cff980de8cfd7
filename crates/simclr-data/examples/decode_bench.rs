//! Microseconds per JPEG of this crate and of `jpeg-decoder`, interleaved on one thread.
//!
//! `cargo run --release -p simclr-data --example decode_bench -- FILE.jpg...`
#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::{error::Error, hint::black_box, time::Instant};

use simclr_data::decode::decode;

/// As in the executable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;
/// Decoded bytes per round; determines the number of repetitions.
const ROUND_BYTES: usize = 200_000_000;

type Decoder = fn(&[u8]) -> Result<usize, Box<dyn Error>>;

fn ours(bytes: &[u8]) -> Result<usize, Box<dyn Error>> {
    let image = decode("benchmark", bytes, 3)?;
    let decoded = image.data.len();
    image.recycle(); // as the loader does
    Ok(decoded)
}

fn other(bytes: &[u8]) -> Result<usize, Box<dyn Error>> {
    Ok(jpeg_decoder::Decoder::new(bytes).decode()?.len())
}

fn main() -> Result<(), Box<dyn Error>> {
    let files = std::env::args().skip(1).map(fs_err::read).collect::<Result<Vec<_>, _>>()?;
    let decoded = files.iter().map(|bytes| ours(bytes)).sum::<Result<usize, _>>()?;
    if decoded == 0 {
        return Err("give one or more JPEG files".into());
    }
    let repeats = (ROUND_BYTES / decoded).max(1);
    let decoders: [(&str, Decoder); 2] = [("simclr-data (zune-jpeg)", ours), ("jpeg-decoder", other)];
    let mut micros = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, (_, decoder)) in micros.iter_mut().zip(decoders) {
            let start = Instant::now();
            for bytes in std::iter::repeat_n(&files, repeats).flatten() {
                black_box(decoder(bytes)?);
            }
            times.push(start.elapsed().as_secs_f64() * 1e6 / (repeats * files.len()) as f64);
        }
    }
    for (mut times, (name, _)) in micros.into_iter().zip(decoders) {
        times.sort_by(f64::total_cmp);
        let (low, median, high) = (times[0], times[ROUNDS / 2], times[ROUNDS - 1]);
        println!("{name:24} {median:8.1} us (median of {ROUNDS}; {low:.1} to {high:.1})");
    }
    Ok(())
}
