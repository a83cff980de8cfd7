//! Packed sets, the output of `simclr pack`: all images of a set, decoded, in one memory-mapped file.
//!
//! All numbers are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 16 | `simclrpk`, version (u32), 4 zeros |
//! | ... | the pixels of all images, 8 bits, interleaved, rows from the top, in the order of the index, without gaps |
//! | ... | the index: JSON, see [`Index`] |
//! | 28 | where the index begins and how long it is (u64, u64), its CRC-32C (u32), `simclrpk` |
//!
//! The index is at the end because sizes are known only after all images have been decoded. Truncated files lack the ending; the
//! pixels of an image are checked against their checksum when they are first read.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::{Opened, Sample, Source, Split, identity::FileState};
use crate::{
    DataError, Image, ValueRange,
    decode::{self, Decoding, MAX_PIXELS, Pages},
};

pub(crate) const MAGIC: &[u8; 8] = b"simclrpk";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER: usize = 16;
pub(crate) const FOOTER: usize = 28;

/// The content of a packed set but for pixels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    pub(crate) channels: usize,
    /// The size to which shorter sides were scaled down.
    pub(crate) size: Option<usize>,
    /// The range by which values were scaled to 8 bits.
    #[serde(default)]
    pub(crate) range: ValueRange,
    /// The rule for pages of TIFF files.
    #[serde(default, skip_serializing_if = "Pages::is_auto")]
    pub(crate) pages: Pages,
    // Pixels are in the order of these fields.
    pub(crate) train: Part,
    pub(crate) test: Option<Part>,
    pub(crate) validation: Option<Part>,
    #[serde(default)]
    pub(crate) unlabelled: Option<Part>,
}

/// One split. All columns but the last three have one entry per image.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) names: Vec<String>,
    pub(crate) labels: Vec<Option<u32>>,
    /// Like the heights, 0 for images that could not be decoded.
    pub(crate) widths: Vec<u32>,
    pub(crate) heights: Vec<u32>,
    /// Size of each image in the original set, or of its pixels if it was scaled down; for the fingerprint.
    pub(crate) stored_bytes: Vec<u64>,
    pub(crate) checksums: Vec<u32>,
    /// Checksum of each image in the original set, or [`content_of_pixels`] if it was scaled down; empty in files of earlier
    /// versions.
    #[serde(default)]
    pub(crate) contents: Vec<u64>,
    /// Index and reason of images that could not be decoded.
    #[serde(rename = "bad")]
    pub(crate) failed: Vec<(usize, String)>,
    pub(crate) classes: Vec<String>,
}

/// By the first bytes of a file.
pub(crate) fn is_packed(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    let read = fs_err::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && &start == MAGIC
}

pub(super) fn open(path: &Path, split: Split) -> Result<Opened, DataError> {
    let state = FileState::of(path);
    let (handle, file) = map(path)?;
    let (index, pixels_end) = read_index(&file).map_err(|reason| DataError::format(path, reason))?;
    let Index { channels, range, pages, train, test, validation, unlabelled, .. } = index;
    let mut end = HEADER as u64;
    let mut part = Part::default();
    let mut extents = Vec::new();
    let parts = [
        (Split::Train, Some(train)),
        (Split::Test, test),
        (Split::Validation, validation),
        (Split::Unlabelled, unlabelled),
    ];
    for (of, found) in parts {
        let found = found.unwrap_or_default();
        let places = found.extents(end, channels).map_err(|reason| DataError::format(path, reason))?;
        end = places.last().map_or(end, |extent| extent.end);
        if of == split {
            (part, extents) = (found, places);
        }
    }
    if end != pixels_end as u64 {
        let reason = format!("its index declares pixels up to byte {end}, they end at byte {pixels_end}");
        return Err(DataError::format(path, reason));
    }
    let samples = part.names.iter().zip(&part.labels);
    let samples = samples.map(|(name, &label)| Sample { name: name.clone(), label }).collect();
    let classes = part.classes.clone();
    let checked = extents.iter().map(|_| AtomicBool::new(false)).collect();
    let path = path.to_owned();
    let source = Mapped { path, handle, file, state, channels, range, pages, part, extents, checked };
    Ok(Opened::new(samples, classes, Box::new(source)))
}

/// True also for a damaged file, so that opening it reports the damage.
pub fn has_part(path: &Path, split: Split) -> bool {
    open(path, split).map_or(true, |opened| !opened.samples.is_empty())
}

fn map(path: &Path) -> Result<(fs_err::File, Bytes), DataError> {
    let file = fs_err::File::open(path)?;
    // SAFETY: the mapping is only read as bytes, for which every value is valid. As with every mapped file, writes by another
    // program become visible here (checksums may detect them), and reading beyond the end of a file that another program truncates
    // kills this process: `Mapped::read` checks the length of the file before every image, and `pack` replaces files by a rename
    // instead of writing into them.
    let mapped = unsafe { Mmap::map(file.file()) };
    let with_path =
        |error| std::io::Error::other(format!("cannot map `{}` into memory: {error}", path.display()));
    let mapped = Bytes::from_owner(mapped.map_err(with_path)?);
    Ok((file, mapped))
}

/// The index and its position.
fn read_index(file: &[u8]) -> Result<(Index, usize), String> {
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| file[at + byte]));
    if file.len() < HEADER + FOOTER {
        return Err(format!("a packed set cut short: {} bytes", file.len()));
    }
    let version = number(8) as u32;
    if version != VERSION {
        return Err(format!("a packed set of version {version}, this program reads version {VERSION}"));
    }
    let footer = file.len() - FOOTER;
    if &file[file.len() - MAGIC.len()..] != MAGIC {
        return Err("a packed set cut short: the end mark is missing".into());
    }
    let (start, length, checksum) = (number(footer), number(footer + 8), number(footer + 16) as u32);
    if start < HEADER as u64 || start.checked_add(length) != Some(footer as u64) {
        let reason = format!("an index of {length} bytes at byte {start}, which must end at byte {footer}");
        return Err(format!("a damaged packed set: {reason}"));
    }
    let json = &file[start as usize..footer];
    if crc32c::crc32c(json) != checksum {
        return Err("a damaged packed set: the checksum of its index does not match".into());
    }
    let index: Index =
        serde_json::from_slice(json).map_err(|error| format!("a damaged packed set: {error}"))?;
    if index.channels == 0 {
        return Err("a damaged packed set: images of 0 channels".into());
    }
    Ok((index, start as usize))
}

/// The content checksum of an image from that of its pixels; never 0, which means unknown.
pub(crate) fn content_of_pixels(checksum: u32) -> u64 {
    (1 << 32) | u64::from(checksum)
}

/// Byte range of the pixels of one image.
struct Extent {
    start: u64,
    end: u64,
}

impl Part {
    /// Byte ranges of all images. Checks the columns for consistency.
    fn extents(&self, start: u64, channels: usize) -> Result<Vec<Extent>, String> {
        let count = self.names.len();
        let columns = [
            self.labels.len(),
            self.widths.len(),
            self.heights.len(),
            self.stored_bytes.len(),
            self.checksums.len(),
        ];
        if columns != [count; 5] {
            return Err(format!("a damaged packed set: {count} names, but columns of {columns:?} entries"));
        }
        if ![0, count].contains(&self.contents.len()) {
            let found = self.contents.len();
            return Err(format!(
                "a damaged packed set: {count} names, but {found} checksums of stored images"
            ));
        }
        let classes = self.classes.len();
        if let Some(label) = self.labels.iter().flatten().find(|&&label| label as usize >= classes) {
            return Err(format!("a damaged packed set: label {label}, but {classes} classes"));
        }
        let mut end = start;
        let sides = self.widths.iter().zip(&self.heights).zip(&self.names);
        let extent = |((&width, &height), name): ((&u32, &u32), &String)| {
            let (start, pixels) = (end, u64::from(width) * u64::from(height));
            let bytes = pixels.checked_mul(channels as u64).filter(|_| pixels <= MAX_PIXELS);
            end = bytes.and_then(|bytes| start.checked_add(bytes)).ok_or_else(|| {
                format!("a damaged packed set: `{name}` of {width}x{height} pixels and {channels} channels")
            })?;
            Ok(Extent { start, end })
        };
        sides.map(extent).collect()
    }
}

struct Mapped {
    path: PathBuf,
    handle: fs_err::File,
    file: Bytes,
    state: FileState,
    channels: usize,
    range: ValueRange,
    pages: Pages,
    part: Part,
    extents: Vec<Extent>,
    /// Whether the checksum of an image has been verified.
    checked: Vec<AtomicBool>,
}

impl Source for Mapped {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let Extent { start, end } = self.extents[index];
        let length = self.handle.metadata()?.len();
        if length < end {
            let reason =
                format!("the packed file was truncated to {length} bytes, this image ends at byte {end}");
            return Err(DataError::decode(
                format!("{}: {}", self.path.display(), self.part.names[index]),
                reason,
            ));
        }
        Ok(self.file.slice(start as usize..end as usize))
    }

    fn decode_stored(&self, index: usize, pixels: Bytes, how: &Decoding) -> Result<Image, DataError> {
        let name = || format!("{}: {}", self.path.display(), self.part.names[index]);
        let width = self.part.widths[index] as usize;
        let height = self.part.heights[index] as usize;
        if width == 0 || height == 0 {
            let reason =
                self.part.failed.iter().find(|(place, _)| *place == index).map(|(_, reason)| reason.clone());
            return Err(DataError::decode(name(), reason.unwrap_or_else(|| "it has no pixels".into())));
        }
        if !self.checked[index].load(Ordering::Relaxed) {
            if crc32c::crc32c(&pixels) != self.part.checksums[index] {
                let reason = "the packed pixels are damaged: their checksum does not match";
                return Err(DataError::decode(name(), reason));
            }
            self.checked[index].store(true, Ordering::Relaxed);
        }
        decode::to_channels(&name(), Image::shared(width, height, self.channels, pixels), how.channels)
    }

    fn stamp(&self, _index: usize) -> u64 {
        self.state.stamp
    }

    /// Of the original images, so that a packed set has the identity of the original set.
    fn recorded_content(&self, index: usize) -> Option<u64> {
        let of_pixels = || content_of_pixels(self.part.checksums[index]);
        Some(self.part.contents.get(index).copied().unwrap_or_else(of_pixels))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.part.stored_bytes[index]
    }

    fn recorded_range(&self) -> Option<&ValueRange> {
        Some(&self.range)
    }

    fn recorded_pages(&self) -> Option<Pages> {
        Some(self.pages)
    }

    fn native_channels(&self) -> usize {
        self.channels
    }
}
