//! Writing a packed set.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rayon::prelude::*;

use super::{FOOTER, HEADER, Index, MAGIC, Part, VERSION, content_of_pixels, is_packed};
use crate::{
    DataError, Image, RangeChoice, ValueRange,
    atomic_file::{self, cannot_write},
    augment::shrink,
    dataset::{Channels, Dataset, Labels, OpenOptions, Split},
    decode::{Jpeg, Pages},
    output,
};

/// What [`pack`] writes, and replaces.
pub const PACKED_SET: output::Kind = output::Kind { name: "a packed set", is_earlier: is_packed };

/// Images that each thread decodes between two writes.
const AHEAD: usize = 4;

/// How a set is packed.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// Channels to which images are decoded.
    pub channels: Channels,
    /// Scales images down whose shorter side has more pixels than this. It changes what is trained on: crops are then cut from
    /// the smaller image.
    pub size: Option<usize>,
    /// The decoder of JPEG files.
    pub jpeg: Jpeg,
    /// Which stored values become 0 and 255, measured on the training part where it is left open.
    pub range: RangeChoice,
    /// What the pages of TIFF files are.
    pub pages: Pages,
    /// Where labels come from.
    pub labels: Labels,
    /// Threads that decode, at least 1.
    pub threads: usize,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Images of the training part.
    pub train: usize,
    /// Images of the test part.
    pub test: usize,
    /// Images of the part to choose by, where there is one beside the test part.
    pub validation: usize,
    /// Images of the unlabelled part.
    pub unlabelled: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// Images that cannot be decoded, name and reason. They keep their places, and using them fails with that reason.
    pub bad: Vec<(String, String)>,
    /// By which values were scaled to 8 bits.
    pub range: ValueRange,
    /// What a user must know of how the set was read.
    pub notes: Vec<String>,
}

/// Decodes all images of the set at `data`, all splits, into the file `out`, which `Dataset::open` then reads as it would
/// read `data` with the labels of `options`: the same names, labels, order, pixels and, unless images are scaled down, the same
/// fingerprint. An earlier
/// packed set is replaced when the new one is whole, any other file is not (see [`output::check`]). `progress` hears of images
/// done, and of how many; `None` where `stop` was set.
///
/// # Errors
/// Those of `Dataset::open` and `Dataset::labelled`, and of the operating system on writing.
pub fn pack(
    data: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
    stop: &AtomicBool,
) -> Result<Option<Packed>, DataError> {
    if options.size == Some(0) {
        let (value, reason) = ("0".into(), "an image has at least one pixel".into());
        return Err(DataError::Config { key: "size", value, reason });
    }
    let wanted = OpenOptions { channels: options.channels, pages: options.pages };
    let labelled = |set: Dataset, split| set.labelled(&options.labels, data, &[split]);
    let train = Dataset::open(data, Split::Train, wanted)?.decoded_by(options.jpeg);
    let train = labelled(train, Split::Train)?;
    if is_same_file(out, data) {
        return Err(DataError::Format { path: out.to_owned(), reason: "it is the data set itself".into() });
    }
    output::check(out, PACKED_SET, Some(data))?;
    let (train, range) = train.with_range(&options.range)?;
    let (channels, notes) = (train.channels(), train.notes().to_vec());
    let splits = Dataset::splits(data);
    let open = |split| labelled(Dataset::open_as(data, split, train.decoding())?, split);
    let part = |split| splits.contains(&split).then(|| open(split)).transpose();
    let [test, validation, unlabelled] =
        [part(Split::Test)?, part(Split::Validation)?, part(Split::Unlabelled)?];
    let mut writer = PackWriter::new(out, (channels, train.decoding().pages), &range, options)?;
    let sets = [Some(train), test, validation, unlabelled];
    let of = sets.iter().flatten().map(Dataset::len).sum();
    let (mut before, mut parts) = (0, Vec::new());
    for set in &sets {
        let part = match set {
            None => None,
            Some(set) => match writer.part(set, &mut |done| progress(before + done, of), stop)? {
                None => return Ok(None),
                part => part,
            },
        };
        before += set.as_ref().map_or(0, Dataset::len);
        parts.push(part);
    }
    let [train, test, validation, unlabelled] =
        std::array::from_fn(|at| parts[at].as_ref().map_or(0, |part| part.names.len()));
    let bad = parts.iter().flatten().flat_map(Part::named_bad).collect();
    let bytes = writer.finish(parts)?;
    Ok(Some(Packed { train, test, validation, unlabelled, bytes, bad, range, notes }))
}

impl Part {
    fn named_bad(&self) -> impl Iterator<Item = (String, String)> {
        self.bad.iter().map(|(place, reason)| (self.names[*place].clone(), reason.clone()))
    }
}

struct PackWriter {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
    written: u64,
    channels: usize,
    size: Option<usize>,
    range: ValueRange,
    pages: Pages,
    pool: rayon::ThreadPool,
}

impl PackWriter {
    fn new(
        path: &Path,
        (channels, pages): (usize, Pages),
        range: &ValueRange,
        options: &PackOptions,
    ) -> Result<Self, DataError> {
        let file = BufWriter::with_capacity(1 << 20, atomic_file::create(path)?);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.max(1)).build();
        let pool = pool.map_err(std::io::Error::other)?;
        let (size, range) = (options.size, range.clone());
        let path = path.to_owned();
        let mut writer = Self { path, file, written: 0, channels, size, range, pages, pool };
        let header = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat();
        debug_assert_eq!(header.len(), HEADER);
        writer.put(&header)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.written += bytes.len() as u64;
        Ok(self.file.write_all(bytes).map_err(|error| cannot_write(&self.path, &error))?)
    }

    /// Writes the pixels of a split; `None` where `stop` was set.
    fn part(
        &mut self,
        set: &Dataset,
        progress: &mut dyn FnMut(usize),
        stop: &AtomicBool,
    ) -> Result<Option<Part>, DataError> {
        let mut part = Part { classes: set.classes().to_vec(), ..Part::default() };
        let indices: Vec<usize> = (0..set.len()).collect();
        for chunk in indices.chunks(AHEAD * self.pool.current_num_threads()) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let size = self.size;
            let decode = |&index: &usize| Packable::of(set, index, size);
            let images: Vec<_> = self.pool.install(|| chunk.par_iter().map(decode).collect());
            for (&index, image) in chunk.iter().zip(images) {
                self.image(&mut part, set, index, image)?;
            }
            progress(part.names.len());
        }
        Ok(Some(part))
    }

    fn image(
        &mut self,
        part: &mut Part,
        set: &Dataset,
        index: usize,
        image: Result<Packable, String>,
    ) -> Result<(), DataError> {
        let sample = &set.samples()[index];
        part.names.push(sample.name.clone());
        part.labels.push(sample.label);
        let (sides, checksum, scaled) = match &image {
            Ok(Packable { image, checksum, scaled }) => {
                self.put(&image.data)?;
                ([image.width, image.height], *checksum, scaled.then_some(image.data.len() as u64))
            }
            Err(_) => ([0, 0], 0, None),
        };
        // Scaled down, it is another image than the one that was read.
        let (stored, content) = match scaled {
            Some(bytes) => (bytes, content_of_pixels(checksum)),
            None => (set.stored_bytes(index), set.content(index).unwrap_or_default()),
        };
        part.widths.push(sides[0] as u32);
        part.heights.push(sides[1] as u32);
        part.checksums.push(checksum);
        part.contents.push(content);
        part.stored_bytes.push(stored);
        part.bad.extend(image.err().map(|reason| (index, reason)));
        Ok(())
    }

    /// Writes the index and puts the file in its place; the bytes of the whole.
    fn finish(mut self, parts: Vec<Option<Part>>) -> Result<u64, DataError> {
        let start = self.written;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().flatten();
        let (train, test, validation, unlabelled) = (next().unwrap_or_default(), next(), next(), next());
        let (channels, size, range, pages) = (self.channels, self.size, self.range.clone(), self.pages);
        let index = Index { channels, size, range, pages, train, test, validation, unlabelled };
        let json = serde_json::to_vec(&index).map_err(std::io::Error::from)?;
        self.put(&json)?;
        let [start, length] = [start, json.len() as u64].map(u64::to_le_bytes);
        let footer = [&start[..], &length, &crc32c::crc32c(&json).to_le_bytes(), MAGIC].concat();
        debug_assert_eq!(footer.len(), FOOTER);
        self.put(&footer)?;
        let file = self.file.into_inner().map_err(|error| cannot_write(&self.path, error.error()))?;
        atomic_file::persist(file, &self.path)?;
        Ok(self.written)
    }
}

/// An image ready to be written.
struct Packable {
    image: Image,
    checksum: u32,
    scaled: bool,
}

impl Packable {
    fn of(set: &Dataset, index: usize, size: Option<usize>) -> Result<Self, String> {
        let image = set.decode(index).map_err(|error| match error {
            // The name is written beside it.
            DataError::Decode { reason, .. } => reason,
            other => other.to_string(),
        })?;
        let (image, scaled) = match size {
            Some(size) if size < image.width.min(image.height) => (shrink(&image, size), true),
            _ => (image, false),
        };
        Ok(Self { checksum: crc32c::crc32c(&image.data), image, scaled })
    }
}

/// Under whatever names, hard links included.
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| fs_err::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    id(a).is_some_and(|found| Some(found) == id(b))
}
