//! What exists: the samples of an image set, in a stable order, with labels where there are any. One file per format.

mod cifar;
mod class_names;
mod folder;
mod folder_tables;
mod identity;
mod idx;
mod joined;
mod json_labels;
mod labelled;
mod layout;
mod list;
mod packed;
mod pages;
mod parquet;
mod raw;
mod several;
mod split_names;
mod survey;
mod tables;
mod tar;
mod tiny_imagenet;

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use identity::Contents;
pub use identity::{Changes, Observed};
pub use labelled::Labels;
pub use packed::{PACKED_SET, PackOptions, Packed, pack};
pub(crate) use several::sources_of;
pub use several::{as_one_path, canonical};
pub use survey::{ChannelValues, Missing, Survey};

use crate::{
    DataError, Image, RangeChoice, ValueRange,
    decode::{self, Decoding, Jpeg, Pages, Raster},
};

/// One image of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path relative to the data set's root, or shard and key; unique, shown in reports.
    pub name: String,
    /// Index into [`Dataset::classes`], where the set has labels.
    pub label: Option<u32>,
}

/// Which part of a data set: sets that have splits keep them in sub-folders or files of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The training part; the whole set where it has no splits.
    Train,
    /// The test part (`test`, `val`, `validation`, `t10k-`, `test_batch`).
    Test,
    /// The part to choose by (`val`, `validation`), where there is a test part beside it.
    Validation,
    /// Further images to pretrain on (`unlabeled`, `unlabelled`, `unsupervised`); its folders are no classes.
    Unlabelled,
}

impl Split {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Train, Self::Test, Self::Validation, Self::Unlabelled];

    /// As it is written in configurations and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Unlabelled => "unlabelled",
        }
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|split| split.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// How many channels decoded images have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channels {
    /// What the set holds: 1 for grey sets (IDX), N for multi-band files, else 3.
    #[default]
    Auto,
    /// Convert to this number: 1 = luma, 3 = RGB, any other must be what the files hold.
    Count(usize),
}

/// What decides which images a set has, and of how many channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Of every decoded image.
    pub channels: Channels,
    /// What the pages of TIFF files are.
    pub pages: Pages,
}

impl From<Channels> for OpenOptions {
    fn from(channels: Channels) -> Self {
        Self { channels, pages: Pages::Auto }
    }
}

impl From<&Decoding> for OpenOptions {
    fn from(how: &Decoding) -> Self {
        Self { channels: Channels::Count(how.channels), pages: how.pages }
    }
}

/// A stored image set that can decode its `index`-th image; one implementation per format.
///
/// A format implements [`Source::read`] and, for encoded image files, [`Source::file_name`], else [`Source::decode_stored`]; a
/// source that computes its images stores nothing and implements [`Source::decode`] alone.
pub trait Source: Send + Sync {
    /// Reads and decodes image `index`.
    fn decode(&self, index: usize, how: &Decoding) -> Result<Image, DataError> {
        self.decode_stored(index, self.read(index)?, how)
    }

    /// Name of image `index` in messages, where [`Source::read`] returns an encoded image file.
    fn file_name(&self, _index: usize) -> Option<Cow<'_, str>> {
        None
    }

    /// Image `index` as it is stored: encoded, or its pixels.
    fn read(&self, _index: usize) -> Result<Bytes, DataError> {
        Ok(Bytes::new())
    }

    /// Decodes what [`Source::read`] returned for image `index`.
    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        match self.file_name(index) {
            Some(name) => {
                decode::stored(&name, &stored, how, None)?.into_image(&name, how.channels, &how.range)
            }
            None => self.decode(index, how),
        }
    }

    /// The range that stored pixels were scaled by when they were written; they are not scaled again.
    fn recorded_range(&self) -> Option<&ValueRange> {
        None
    }

    /// The rule for pages that a packed set was written with.
    fn recorded_pages(&self) -> Option<Pages> {
        None
    }

    /// The page that image `index` is of the file that [`Source::read`] returns; none where it is the whole file.
    fn page(&self, _index: usize) -> Option<usize> {
        None
    }

    /// Differs from before where the operating system reports that the file of image `index` has changed; 0 = unknown.
    fn stamp(&self, _index: usize) -> u64 {
        0
    }

    /// Checksum of the stored bytes of image `index`, where the format records one.
    fn recorded_content(&self, _index: usize) -> Option<u64> {
        None
    }

    /// Stored bytes of image `index`, for the fingerprint.
    fn stored_bytes(&self, index: usize) -> u64;

    /// Channels that the first image holds by nature; 3 unless the format says otherwise.
    fn native_channels(&self) -> usize {
        3
    }
}

/// Samples, class names and where the pixels are: what a format hands over.
struct Opened {
    samples: Vec<Sample>,
    classes: Vec<String>,
    source: Box<dyn Source>,
    /// See [`Dataset::notes`].
    notes: Vec<String>,
    /// Of the notes, those on labels.
    label_notes: Vec<String>,
}

impl Opened {
    /// A split that the set does not have.
    fn none() -> Self {
        let nothing = raw::Raw {
            width: 1,
            height: 1,
            channels: 1,
            planar: false,
            pixels: Bytes::new(),
            files: Vec::new(),
        };
        let (samples, classes, source) = (Vec::new(), Vec::new(), Box::new(nothing));
        Self { samples, classes, source, notes: Vec::new(), label_notes: Vec::new() }
    }
}

/// The images of a set in a stable order (sorted by name; file order inside shards).
pub struct Dataset {
    samples: Vec<Sample>,
    classes: Vec<String>,
    decoding: Decoding,
    source: Arc<dyn Source>,
    /// Index in the source of each sample, where the set is a part of it.
    part: Option<Vec<usize>>,
    /// By index in the source.
    contents: Arc<Contents>,
    identity: Option<String>,
    notes: Vec<String>,
    /// How many of the notes, the last ones, are on labels.
    label_notes: usize,
}

impl Dataset {
    /// Opens an image folder, tar shards, CIFAR binary, IDX(.gz) or parquet files, or a packed set at `path`.
    ///
    /// # Errors
    /// [`DataError::Empty`] where nothing readable lies at `path` or the split is missing, [`DataError::Format`]
    /// for a set that contradicts itself.
    pub fn open(path: &Path, split: Split, options: impl Into<OpenOptions>) -> Result<Self, DataError> {
        let options = options.into();
        if options.channels == Channels::Count(0) {
            let (value, reason) = ("0".into(), "an image has at least one channel".into());
            return Err(DataError::Config { key: "channels", value, reason });
        }
        let opened = Format::of(path)?.open(path, split, options.pages)?;
        if opened.samples.is_empty() {
            return Err(no_such_part(path, split));
        }
        Ok(Self::from_opened(opened, options))
    }

    fn from_opened(opened: Opened, options: OpenOptions) -> Self {
        let Opened { samples, classes, source, mut notes, label_notes } = opened;
        let channels = match options.channels {
            Channels::Auto => source.native_channels(),
            Channels::Count(count) => count,
        };
        let recorded = source.recorded_pages().filter(|_| options.pages == Pages::Auto);
        let pages = recorded.unwrap_or(options.pages);
        let others = notes.len();
        notes.extend(label_notes.into_iter().chain(note_on_unlabelled(&samples)));
        let label_notes = notes.len() - others;
        let mut set = Self::from_source(samples, classes, channels, source);
        set.decoding.pages = pages;
        Self { notes, label_notes, ..set }
    }

    /// As [`Dataset::open`], with all that decides what is decoded.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub fn open_as(path: &Path, split: Split, how: &Decoding) -> Result<Self, DataError> {
        Self::open(path, split, how)?.decoded_by(how.jpeg).scaled_to(&how.range)
    }

    /// The splits that the set at `path` has, the training part first.
    pub fn splits(path: &Path) -> Vec<Split> {
        let Ok(format) = Format::of(path) else { return vec![Split::Train] };
        let is_there = |split: &Split| *split == Split::Train || format.has_split(path, *split);
        Split::ALL.into_iter().filter(is_there).collect()
    }

    /// Whether `path` holds a test split of its own. True also for a test split that is damaged, so that
    /// [`Dataset::open`] reports it instead of an evaluation quietly doing without.
    pub fn has_test_split(path: &Path) -> bool {
        Format::of(path).is_ok_and(|format| format.has_split(path, Split::Test))
    }

    /// Whether `path` holds a validation split beside training and test part; else as [`Dataset::has_test_split`].
    pub fn has_validation_split(path: &Path) -> bool {
        Format::of(path).is_ok_and(|format| format.has_split(path, Split::Validation))
    }

    /// A data set over a source, for the formats and for tests.
    pub fn from_source(
        samples: Vec<Sample>,
        classes: Vec<String>,
        channels: usize,
        source: Box<dyn Source>,
    ) -> Self {
        let contents = Arc::new(Contents::of(&*source, samples.len()));
        let (source, notes, decoding) = (source.into(), Vec::new(), channels.into());
        let (part, identity, label_notes) = (None, None, 0);
        Self { samples, classes, decoding, source, part, contents, identity, notes, label_notes }
    }

    /// The images `indices` of this set, in that order, with all of its classes.
    ///
    /// # Panics
    /// If an index is out of range.
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        let samples = indices.iter().map(|&index| self.samples[index].clone()).collect();
        let part = indices.iter().map(|&index| self.stored(index)).collect();
        let (classes, source) = (self.classes.clone(), Arc::clone(&self.source));
        let (contents, decoding) = (Arc::clone(&self.contents), self.decoding.clone());
        let (part, identity, notes, label_notes) = (Some(part), None, self.notes.clone(), self.label_notes);
        Self { samples, classes, decoding, source, part, contents, identity, notes, label_notes }
    }

    /// To what images are decoded, and by what.
    pub fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// Decodes JPEG files by `jpeg`; pixels that are stored as such, in packed and binary sets, stay as they are.
    #[must_use]
    pub fn decoded_by(mut self, jpeg: Jpeg) -> Self {
        self.decoding.jpeg = jpeg;
        self
    }

    /// Scales stored values by `range`.
    ///
    /// # Errors
    /// A range of another number of channels, or a packed set that was written with another range.
    pub fn scaled_to(mut self, range: &ValueRange) -> Result<Self, DataError> {
        range.validate(Some(self.channels()))?;
        match self.source.recorded_range() {
            Some(recorded) if recorded != range => {
                let reason =
                    format!("the packed set was written with {recorded}; pack it again with --range");
                return Err(DataError::Config { key: "data.range", value: range.to_string(), reason });
            }
            _ => self.decoding.range = range.clone(),
        }
        Ok(self)
    }

    /// The range that `choice` means for this set: what it was packed with, or what a sample of it covers.
    pub fn range_of(&self, choice: &RangeChoice, survey: &Survey) -> ValueRange {
        match (choice, self.source.recorded_range()) {
            (RangeChoice::Set(range), _) => range.clone(),
            (RangeChoice::Auto, Some(recorded)) => recorded.clone(),
            (RangeChoice::Auto, None) => survey.range(),
        }
    }

    /// Image `index` in the values that are stored; of formats that store plain pixels, those.
    ///
    /// # Errors
    /// Those of [`Dataset::decode`].
    pub fn stored_values(&self, index: usize) -> Result<Raster, DataError> {
        let index = self.stored(index);
        let bytes = self.source.read(index)?;
        match self.source.file_name(index) {
            Some(name) => decode::stored(&name, &bytes, &self.decoding, self.source.page(index)),
            None => Ok(self.source.decode_stored(index, bytes, &self.decoding)?.into()),
        }
    }

    /// The index in the source.
    fn stored(&self, index: usize) -> usize {
        self.part.as_ref().map_or(index, |part| part[index])
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether the set is empty; an opened set never is.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// All samples in order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Class names in label order; empty without labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// What a user must know of how the set was read: files that are passed over, where labels are from, images without one.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Those of the notes that are on labels.
    pub fn label_notes(&self) -> &[String] {
        &self.notes[self.notes.len() - self.label_notes..]
    }

    /// Channels of every decoded image.
    pub fn channels(&self) -> usize {
        self.decoding.channels
    }

    /// Labels of all images, where every image has one.
    pub fn labels(&self) -> Option<Vec<u32>> {
        self.samples.iter().map(|sample| sample.label).collect()
    }

    /// Reads and decodes image `index`.
    ///
    /// # Errors
    /// [`DataError::Decode`] names the sample and the reason.
    pub fn decode(&self, index: usize) -> Result<Image, DataError> {
        let index = self.stored(index);
        if self.contents.is_known(index) {
            return self.source.decode(index, &self.decoding);
        }
        let stored = self.source.read(index);
        self.contents.record(index, &stored);
        self.source.decode_stored(index, stored?, &self.decoding)
    }

    /// Stored bytes of image `index`.
    fn stored_bytes(&self, index: usize) -> u64 {
        self.source.stored_bytes(self.stored(index))
    }

    /// 16 hex digits over names, labels and stored sizes: which data a result was measured on.
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
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset").field("images", &self.len()).field("classes", &self.classes.len()).finish()
    }
}

/// FNV-1a, 64 bits: a fingerprint must be the same on every platform and version, not secure.
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

fn no_such_part(path: &Path, split: Split) -> DataError {
    let reason = match split {
        Split::Train => "neither image files nor tar, parquet, IDX or CIFAR files",
        Split::Test => "the set has no test part (a folder or files named test, val or validation)",
        Split::Validation => "the set has no validation part (val or validation next to test)",
        Split::Unlabelled => "the set has no unlabelled part (unlabeled)",
    };
    DataError::Empty { path: path.to_owned(), reason: reason.into() }
}

/// How a set is stored, told by the names of the files at its path; a packed set by how it begins.
enum Format {
    Packed,
    Parquet(Vec<PathBuf>),
    Tar(Vec<PathBuf>),
    Idx(Vec<PathBuf>),
    Cifar(Vec<PathBuf>),
    Folder,
    /// Image files at any places.
    Files(Vec<PathBuf>),
    /// Sets of any formats.
    Several(Vec<PathBuf>),
}

impl Format {
    fn of(path: &Path) -> Result<Self, DataError> {
        let empty = |reason: &str| DataError::Empty { path: path.to_owned(), reason: reason.into() };
        if let Some(sources) = several::sources(path)? {
            return Ok(several::of_one_kind(&sources).unwrap_or(Self::Several(sources)));
        }
        if !path.exists() {
            return Err(several::no_such(path));
        }
        let files = if path.is_dir() { files_of(path)? } else { vec![path.to_owned()] };
        let mut parquets = with_extension(&files, "parquet");
        if parquets.is_empty() && path.join("data").is_dir() {
            // The Hugging Face hub keeps the files of a set in `data/`.
            parquets = with_extension(&files_of(&path.join("data"))?, "parquet");
        }
        if path.is_dir() && parquets.iter().any(|file| folder_tables::is_table(file)) {
            // A table of labels among images is not the set.
            let is_image = |file: &PathBuf| layout::is_image(&file.to_string_lossy());
            if files.iter().any(is_image) || folder::has_images_below(path) {
                parquets.retain(|file| !folder_tables::is_table(file));
            }
        }
        let tars: Vec<PathBuf> = files.iter().filter(|file| tar::is_shard(file)).cloned().collect();
        let binaries = with_extension(&files, "bin");
        // An archive next to folders of images is not the set.
        let next_to_images =
            |archives: &[PathBuf]| !archives.is_empty() && path.is_dir() && folder::has_images_below(path);
        match () {
            () if path.is_file() && packed::is_packed(path) => Ok(Self::Packed),
            // img2dataset writes a table of keys and addresses for each shard.
            () if !parquets.is_empty()
                && parquets.iter().all(|table| tars.contains(&table.with_extension("tar"))) =>
            {
                Ok(Self::Tar(tars))
            }
            () if !parquets.is_empty() => Ok(Self::Parquet(parquets)),
            () if next_to_images(&tars) => Ok(Self::Folder),
            () if !tars.is_empty() => Ok(Self::Tar(tars)),
            () if idx::is_idx(&files) => Ok(Self::Idx(files)),
            () if cifar::is_cifar(&binaries) => Ok(Self::Cifar(binaries)),
            () if path.is_dir() => Ok(Self::Folder),
            () => Err(empty("a single file must be a tar shard, parquet, IDX, CIFAR binary or a packed set")),
        }
    }

    fn open(&self, path: &Path, split: Split, pages: Pages) -> Result<Opened, DataError> {
        let opened = match self {
            Self::Packed => packed::open(path, split),
            Self::Parquet(files) => parquet::open(files, split),
            Self::Tar(files) => tar::open(files, split),
            Self::Idx(files) => idx::open(files, split),
            Self::Cifar(files) => cifar::open(path, files, split),
            Self::Folder => folder::open(path, split),
            Self::Files(files) => several::open_files(files, split),
            Self::Several(sources) => return several::open(sources, split, pages),
        }?;
        let rule = pages::resolved(pages, opened.source.recorded_pages(), &opened.samples)?;
        pages::expanded(opened, rule)
    }

    fn has_split(&self, path: &Path, split: Split) -> bool {
        match self {
            Self::Packed => packed::has_part(path, split),
            Self::Parquet(files) => !split_names::shards_of(files, split).is_empty(),
            Self::Idx(files) => idx::find(files, split).is_some(),
            Self::Cifar(files) => split == Split::Test && cifar::has_test(files),
            Self::Several(sources) => several::has_split(sources, split),
            Self::Tar(_) | Self::Folder | Self::Files(_) => match self.open(path, split, Pages::Auto) {
                Ok(opened) => !opened.samples.is_empty(),
                Err(error) => !matches!(error, DataError::Empty { .. }),
            },
        }
    }
}

/// A sentence on images without a label where others have one.
fn note_on_unlabelled(samples: &[Sample]) -> Option<String> {
    const NAMED: usize = 3;
    let without: Vec<&Sample> = samples.iter().filter(|sample| sample.label.is_none()).collect();
    if without.is_empty() || without.len() == samples.len() {
        return None;
    }
    let names: Vec<_> = without.iter().take(NAMED).map(|sample| format!("`{}`", sample.name)).collect();
    let more = if without.len() > NAMED { ", ..." } else { "" };
    let (count, of) = (without.len(), samples.len());
    Some(format!(
        "{count} of {of} images have no label; whatever needs labels leaves them out: {}{more}",
        names.join(", ")
    ))
}

fn with_extension(files: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    let ours = |file: &&PathBuf| file.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    files.iter().filter(ours).cloned().collect()
}

/// Whether a new file `path`, relative to the folder of a set, may be read as part of the set: by its ending, with which all
/// formats begin.
pub(crate) fn may_be_member(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let binary = ["parquet", "tar", "bin"].contains(&ending.as_str());
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    binary || idx::is_idx(&[path.to_owned()]) || layout::is_image(&parts.join("/"))
}

/// Files directly inside a folder, sorted, without hidden ones.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
