//! Fingerprints of a set, and the detection of images that changed under the same name and size.
//!
//! Two values are recorded for each image. Its *stamp* (inode, size, modification and status-change time of its file, from the
//! `stat` call that reads the size) costs nothing and differs after every write, but also after a copy or a `touch`. Its
//! *content* (checksum of the stored bytes), recorded when the image is first read, distinguishes the two cases. Programs
//! cannot set the status-change time, so a copy that preserves modification times is detected as well.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rayon::prelude::*;

use super::{Dataset, Source};
use crate::DataError;

/// Stamp of a missing file.
const NO_FILE: u64 = 1;
/// Content of an image that has not been read.
const UNKNOWN: u64 = 0;
/// Content of an image that cannot be read.
const UNREADABLE: u64 = 1;
/// Set in every checksum of stored bytes, and in no other content.
const STORED_BYTES: u64 = 1 << 63;
/// Resolution of file times: kernels advance them by the tick (10 ms at most), some file systems by one or two seconds. Two
/// writes within this span may get the same time.
const TICK: Duration = Duration::from_millis(20);
const COARSE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, Default)]
pub struct FileState {
    pub bytes: u64,
    /// See [`Source::stamp`].
    pub stamp: u64,
}

impl FileState {
    pub fn of(path: &Path) -> Self {
        let missing = Self { bytes: 0, stamp: NO_FILE };
        fs_err::metadata(path).map_or(missing, |metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for FileState {
    fn from(file: &Metadata) -> Self {
        let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
        let mut hash = Fnv::default();
        [file.ino(), file.len()].iter().for_each(|value| hash.add(&value.to_le_bytes()));
        times.iter().for_each(|value| hash.add(&value.to_le_bytes()));
        let stamp = if is_recent(file.ctime(), file.ctime_nsec()) { 0 } else { hash.0 };
        Self { bytes: file.len(), stamp }
    }
}

/// Whether a later write could still get the same time, so that equal times prove nothing.
fn is_recent(seconds: i64, nanoseconds: i64) -> bool {
    let resolution = if nanoseconds == 0 { COARSE } else { TICK };
    let written = Duration::new(seconds.max(0) as u64, nanoseconds as u32);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now < written + resolution
}

/// Checksums of stored bytes by index in the source, filled in as images are read.
pub struct Contents(Vec<AtomicU64>);

impl Contents {
    /// For `count` images, with the checksums that the format records.
    pub fn of(source: &dyn Source, count: usize) -> Self {
        let recorded = |index| AtomicU64::new(source.recorded_content(index).unwrap_or(UNKNOWN));
        Self((0..count).map(recorded).collect())
    }

    pub fn is_known(&self, index: usize) -> bool {
        self.get(index) != UNKNOWN
    }

    pub fn record(&self, index: usize, stored: &Result<Bytes, DataError>) {
        self.set(index, content(stored));
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    fn set(&self, index: usize, content: u64) {
        self.0[index].store(content, Ordering::Relaxed);
    }
}

fn content(stored: &Result<Bytes, DataError>) -> u64 {
    let Ok(bytes) = stored else { return UNREADABLE };
    let hash = blake3::hash(bytes);
    let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first) | STORED_BYTES
}

/// Stamps and contents of the images of a set at one time, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// 0 = unknown.
    pub stamps: Vec<u64>,
    /// 0 = not read yet.
    pub contents: Vec<u64>,
}

/// Difference of a set to an earlier observation; indices in the set, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Images with other content.
    pub changed: Vec<usize>,
    /// Images that may have changed: their stamps differ, and their earlier content was never read.
    pub unknown: Vec<usize>,
    /// Number of images that were read and compared because their stamps differ.
    pub compared: usize,
}

impl Changes {
    /// Whether every image is known to be unchanged.
    pub fn is_none(&self) -> bool {
        self.changed.is_empty() && self.unknown.is_empty()
    }
}

impl Dataset {
    /// Current stamps (for a folder of files: those at the first call) and the contents known so far.
    pub fn observed(&self) -> Observed {
        let stored = (0..self.len()).map(|index| self.stored(index));
        let (stamps, contents) =
            stored.map(|index| (self.source.stamp(index), self.contents.get(index))).unzip();
        Observed { stamps, contents }
    }

    /// Images with another content than in `earlier`, an observation of a set with the same fingerprint. Only those with
    /// other stamps are read.
    pub fn changes_since(&self, earlier: &Observed) -> Changes {
        let all = 0..self.len();
        if [earlier.stamps.len(), earlier.contents.len()] != [self.len(); 2] {
            return Changes { changed: all.collect(), ..Changes::default() };
        }
        let same = |index: &usize| {
            let now = self.source.stamp(self.stored(*index));
            now != 0 && now == earlier.stamps[*index]
        };
        let (same, differ): (Vec<usize>, Vec<usize>) = all.partition(same);
        same.into_iter().for_each(|index| self.contents.set(self.stored(index), earlier.contents[index]));
        let (unknown, known): (Vec<usize>, Vec<usize>) =
            differ.into_iter().partition(|&index| earlier.contents[index] == UNKNOWN);
        let is_changed = |index: &&usize| self.read_content(**index) != earlier.contents[**index];
        let changed = known.par_iter().filter(is_changed).copied().collect();
        Changes { changed, unknown, compared: known.len() }
    }

    /// The content of an image, which is read if necessary.
    fn read_content(&self, index: usize) -> u64 {
        let stored = self.stored(index);
        if !self.contents.is_known(stored) {
            self.contents.record(stored, &self.source.read(stored));
        }
        self.contents.get(stored)
    }

    /// The content of an image, if it has been read.
    pub(crate) fn content(&self, index: usize) -> Option<u64> {
        Some(self.contents.get(self.stored(index))).filter(|&content| content != UNKNOWN)
    }

    /// 32 hex digits over the contents of all images, equal for a set and its packed copy. `None` until every image has been
    /// read once, and for packed sets that record checksums of pixels only.
    pub fn content_digest(&self) -> Option<String> {
        let mut hash = blake3::Hasher::new();
        for index in 0..self.len() {
            let of_bytes = |content: &u64| *content == UNREADABLE || content & STORED_BYTES != 0;
            hash.update(&self.content(index).filter(of_bytes)?.to_le_bytes());
        }
        Some(hash.finalize().to_hex()[..32].to_owned())
    }

    /// 16 hex digits over names, labels and stored sizes; they identify the data of a result.
    pub fn fingerprint(&self) -> String {
        let mut hash = Fnv::default();
        for (index, sample) in self.samples.iter().enumerate() {
            hash.add(sample.name.as_bytes());
            hash.add(&[0]);
            hash.add(&sample.label.map_or(u64::MAX, u64::from).to_le_bytes());
            hash.add(&self.stored_bytes(index).to_le_bytes());
        }
        format!("{:016x}", hash.0)
    }

    /// The key under which results on these images are cached: the fingerprint, unless [`Dataset::set_identity`] replaced it.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| self.fingerprint())
    }

    /// Distinguishes these images from others with the same fingerprint.
    pub fn set_identity(&mut self, identity: String) {
        self.identity = Some(identity);
    }
}

/// FNV-1a, 64 bits: the same on every platform and version; not cryptographic.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
