//! Mutated files: reading them ends with images or an error, never with a panic. `FUZZ=100000 cargo test --release --test fuzz` runs that
//! many mutations for every target; fuzz/run.sh feeds the same targets by coverage.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use simclr_data::{Dataset, Split, dataset::Channels};

#[path = "../../../fuzz/src/mutation.rs"]
mod mutation;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn fuzz(target: &str, default: u64, read: impl Fn(&[u8])) {
    mutation::fuzz(target, &mutation::files(&corpus(target)), default, read);
}

#[test]
fn images() {
    fuzz("image", 4000, targets::image);
}

#[test]
fn tars() {
    fuzz("tar", 600, targets::tar);
}

#[test]
fn parquet_files() {
    fuzz("parquet", 600, targets::parquet);
}

#[test]
fn idx_files() {
    fuzz("idx", 1500, targets::idx);
}

#[test]
fn packed_sets() {
    fuzz("packed", 600, targets::packed);
}

#[test]
fn label_tables() {
    fuzz("labels", 1500, targets::labels);
}

/// Inputs on which a parser panicked.
#[test]
fn files_that_were_found_by_mutation_are_damaged() {
    let file = corpus("parquet").join("division-by-zero.parquet");
    let error = Dataset::open(&file, Split::Train, Channels::Auto);
    let error = error.and_then(|set| set.decode(0).map(drop)).unwrap_err().to_string();
    assert!(error.contains("its parser failed: attempt to divide by zero"), "{error}");
    for name in ["missing_in_first_of_two_scans.jpg", "two_frames.jpg"] {
        let file = fs_err::read(corpus("image").join(name)).unwrap();
        let error = simclr_data::decode::decode("x", &file, 3).unwrap_err().to_string();
        assert!(error.contains("damaged JPEG"), "{name}: {error}");
    }
}
