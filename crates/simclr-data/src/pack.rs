//! A data set to one file of decoded images ([`crate::dataset`] reads it).

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rayon::prelude::*;

use crate::{
    DataError, Image, RangeChoice, ValueRange,
    atomic_file::{self, cannot_write},
    augment::shrink,
    dataset::{
        Channels, Dataset, Labels, OpenOptions, Split,
        packed::{FOOTER, HEADER, Index, MAGIC, Part, VERSION, content_of_pixels, is_packed},
    },
    decode::{Jpeg, Pages},
    output,
};

/// The output of [`pack`], which it may replace.
pub const PACKED_SET: output::Kind = output::Kind { name: "a packed set", is_earlier: is_packed };

const IMAGES_PER_THREAD: usize = 4;

/// Options of [`pack`].
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Channels of all images.
    pub channels: Channels,
    /// Scales images down to this shorter side. This changes the training data: crops are cut from the smaller images.
    pub size: Option<usize>,
    /// Decoder of JPEG files.
    pub jpeg: Jpeg,
    /// Stored values that become 0 and 255; `Auto` is measured on the training split.
    pub range: RangeChoice,
    /// How pages of TIFF files are read.
    pub pages: Pages,
    /// Source of labels.
    pub labels: Labels,
    /// Decoding threads; 0 = 1.
    pub threads: usize,
}

/// Summary of a packed set.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Images of the training split.
    pub train: usize,
    /// Images of the test split.
    pub test: usize,
    /// Images of the validation split.
    pub validation: usize,
    /// Images of the unlabelled split.
    pub unlabelled: usize,
    /// Size of the file.
    pub bytes: u64,
    /// Name and reason of images that cannot be decoded. They keep their indices, and decoding them fails with that reason.
    pub failed: Vec<(String, String)>,
    /// The range by which values were scaled to 8 bits.
    pub range: ValueRange,
    /// See [`Dataset::notes`].
    pub notes: Vec<String>,
}

/// Decodes all images of all splits of the set at `data` into the file `out`. [`Dataset::open`] reads it like `data` with the
/// labels of `options`: same names, labels, order, pixels and, unless images are scaled down, fingerprint. Only an earlier packed
/// set is replaced, atomically (see [`output::check`]). `progress` receives the numbers of done and of all images. Returns `None`
/// if `stop` was set.
///
/// # Errors
/// Those of [`Dataset::open`] and [`Dataset::labelled`], and write errors of the operating system.
pub fn pack(
    data: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
    stop: &AtomicBool,
) -> Result<Option<Packed>, DataError> {
    if options.size == Some(0) {
        return Err(DataError::config("size", 0, "an image has at least one pixel"));
    }
    let wanted = OpenOptions { channels: options.channels, pages: options.pages };
    let labelled = |set: Dataset, split| set.labelled(&options.labels, data, &[split]);
    let train = Dataset::open(data, Split::Train, wanted)?.decoded_by(options.jpeg);
    let train = labelled(train, Split::Train)?;
    if is_same_file(out, data) {
        return Err(DataError::format(out, "it is the data set itself"));
    }
    output::check(out, PACKED_SET, Some(data))?;
    let (train, range) = train.with_range(&options.range)?;
    let channels = train.channels();
    let notes = train.notes().to_vec();
    let splits = Dataset::splits(data);
    let open = |split| labelled(Dataset::open_as(data, split, train.decoding())?, split);
    let part = |split| splits.contains(&split).then(|| open(split)).transpose();
    let [test, validation, unlabelled] =
        [part(Split::Test)?, part(Split::Validation)?, part(Split::Unlabelled)?];
    let mut writer = PackWriter::new(out, (channels, train.decoding().pages), &range, options)?;
    let sets = [Some(train), test, validation, unlabelled];
    let total = sets.iter().flatten().map(Dataset::len).sum();
    let mut done = 0;
    let mut parts = Vec::new();
    for set in &sets {
        let part = match set {
            None => None,
            Some(set) => match writer.part(set, &mut |of_part| progress(done + of_part, total), stop)? {
                None => return Ok(None),
                part => part,
            },
        };
        done += set.as_ref().map_or(0, Dataset::len);
        parts.push(part);
    }
    let [train, test, validation, unlabelled] =
        std::array::from_fn(|at| parts[at].as_ref().map_or(0, |part| part.names.len()));
    let failed = parts.iter().flatten().flat_map(Part::named_failures).collect();
    let bytes = writer.finish(parts)?;
    Ok(Some(Packed { train, test, validation, unlabelled, bytes, failed, range, notes }))
}

impl Part {
    fn named_failures(&self) -> impl Iterator<Item = (String, String)> {
        self.failed.iter().map(|(place, reason)| (self.names[*place].clone(), reason.clone()))
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
        let mut writer = Self {
            path: path.to_owned(),
            file,
            written: 0,
            channels,
            size: options.size,
            range: range.clone(),
            pages,
            pool,
        };
        let header = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat();
        debug_assert_eq!(header.len(), HEADER);
        writer.put(&header)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.written += bytes.len() as u64;
        Ok(self.file.write_all(bytes).map_err(|error| cannot_write(&self.path, &error))?)
    }

    /// Writes the pixels of a split; `None` if `stop` was set.
    fn part(
        &mut self,
        set: &Dataset,
        progress: &mut dyn FnMut(usize),
        stop: &AtomicBool,
    ) -> Result<Option<Part>, DataError> {
        let mut part = Part { classes: set.classes().to_vec(), ..Part::default() };
        let indices: Vec<usize> = (0..set.len()).collect();
        for chunk in indices.chunks(IMAGES_PER_THREAD * self.pool.current_num_threads()) {
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
        // A scaled image is another one than the original.
        let (stored, content) = match scaled {
            Some(bytes) => (bytes, content_of_pixels(checksum)),
            None => (set.stored_bytes(index), set.content(index).unwrap_or_default()),
        };
        part.widths.push(sides[0] as u32);
        part.heights.push(sides[1] as u32);
        part.checksums.push(checksum);
        part.contents.push(content);
        part.stored_bytes.push(stored);
        part.failed.extend(image.err().map(|reason| (index, reason)));
        Ok(())
    }

    /// Writes the index and renames the file to its path; returns its size.
    fn finish(mut self, parts: Vec<Option<Part>>) -> Result<u64, DataError> {
        let start = self.written;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().flatten();
        let (train, test, validation, unlabelled) = (next().unwrap_or_default(), next(), next(), next());
        let Self { channels, size, ref range, pages, .. } = self;
        let range = range.clone();
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

struct Packable {
    image: Image,
    checksum: u32,
    scaled: bool,
}

impl Packable {
    fn of(set: &Dataset, index: usize, size: Option<usize>) -> Result<Self, String> {
        let image = set.decode(index).map_err(|error| match error {
            // The name is stored in a column of its own.
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

/// Also for two hard links.
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| fs_err::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    id(a).is_some_and(|found| Some(found) == id(b))
}
