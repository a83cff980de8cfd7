//! Deterministic mutations of the inputs in fuzz/corpus, for tests. `FUZZ` sets the number of mutations of a target, `FUZZ_SEED` chooses
//! others.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use simclr_data::rng::{Key, Stream};

/// Longest time for one input.
const SLOWEST: Duration = Duration::from_secs(10);
/// Sizes and counts at which readers overflow.
const EXTREME: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// `seed` with one to four changes; `other` is another valid file.
fn mutated(seed: &[u8], other: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=stream.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = stream.below(bytes.len());
        let length = (1 + stream.below(16)).min(bytes.len() - at);
        match stream.below(8) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at] = stream.bits() as u8,
            2 => drop(bytes.drain(at..at + length)),
            3 => bytes.truncate(at),
            4 => {
                let copy = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let from = stream.below(other.len().max(1)).min(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            kind => {
                let value = EXTREME[stream.below(EXTREME.len())];
                let width = [1, 2, 4, 8][stream.below(4)].min(bytes.len() - at);
                let [little, big] = [value.to_le_bytes(), value.to_be_bytes()];
                let chosen = if kind == 6 { &little[..width] } else { &big[8 - width..] };
                bytes[at..at + width].copy_from_slice(chosen);
            }
        }
    }
    bytes
}

/// The files of a folder, by name.
pub fn files(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", folder.display());
    files.iter().map(|file| fs_err::read(file).unwrap()).collect()
}

/// Feeds `seeds` and mutations of them to `read`; as many as `FUZZ`, or `default`.
pub fn fuzz(target: &str, seeds: &[Vec<u8>], default: u64, read: impl Fn(&[u8])) {
    let (count, seed) = (setting("FUZZ", default), setting("FUZZ_SEED", 0));
    let check = |number: &str, input: &[u8]| {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(input)));
        if outcome.is_err() || begin.elapsed() > SLOWEST {
            let kept = std::env::temp_dir().join(format!("fuzz-{target}-{number}"));
            fs_err::write(&kept, input).unwrap();
            panic!("input {number}: {:?}, {}", begin.elapsed(), kept.display());
        }
    };
    for (number, input) in seeds.iter().enumerate() {
        check(&format!("corpus-{number}"), input);
    }
    let epoch = u64::from_le_bytes(std::array::from_fn(|at| *target.as_bytes().get(at).unwrap_or(&0)));
    for number in 0..count {
        let mut stream = Key { seed, epoch, image: number, view: 0 }.stream();
        let [one, other] = [(); 2].map(|()| &seeds[stream.below(seeds.len())]);
        check(&format!("{seed}-{number}"), &mutated(one, other, &mut stream));
    }
}
