//! What exists: the samples of an image set, in a stable order, with labels where there are any. One file per format.

mod cifar;
mod folder;
mod idx;
mod layout;
mod parquet;
mod raw;
mod tar;

use std::path::{Path, PathBuf};

use crate::{DataError, Image};

/// One image of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path relative to the data set's root, or shard and key; unique, shown in reports.
    pub name: String,
    /// Index into [`Dataset::classes`], where the set has labels.
    pub label: Option<u32>,
}

/// Which part of a data set: sets that have splits keep them in sub-folders or files of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The training part; the whole set where it has no splits.
    Train,
    /// The test part (`test`, `val`, `validation`, `t10k-`, `test_batch`).
    Test,
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

/// A stored image set that can decode its `index`-th image; one implementation per format.
pub trait Source: Send + Sync {
    /// Reads and decodes image `index` to `channels` channels.
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError>;

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
}

/// The images of a set in a stable order (sorted by name; file order inside shards).
pub struct Dataset {
    samples: Vec<Sample>,
    classes: Vec<String>,
    channels: usize,
    source: Box<dyn Source>,
}

impl Dataset {
    /// Opens an image folder, tar shards, CIFAR binary, IDX(.gz) or parquet files at `path`.
    ///
    /// # Errors
    /// [`DataError::Empty`] where nothing readable lies at `path` or the split is missing, [`DataError::Format`]
    /// for a set that contradicts itself.
    pub fn open(path: &Path, split: Split, channels: Channels) -> Result<Self, DataError> {
        if !path.exists() {
            return Err(DataError::Empty { path: path.to_owned(), reason: "no such file or folder".into() });
        }
        let Opened { samples, classes, source } = open_format(path, split)?;
        if samples.is_empty() {
            let reason = match split {
                Split::Train => "neither image files nor tar, parquet, IDX or CIFAR files",
                Split::Test => "the set has no test part (a folder or files named test, val or validation)",
            };
            return Err(DataError::Empty { path: path.to_owned(), reason: reason.into() });
        }
        let channels = match channels {
            Channels::Auto => source.native_channels(),
            Channels::Count(count) => count,
        };
        Ok(Self { samples, classes, channels, source })
    }

    /// Whether `path` holds a test split of its own.
    pub fn has_test_split(path: &Path) -> bool {
        open_format(path, Split::Test).is_ok_and(|opened| !opened.samples.is_empty())
    }

    /// A data set over a source, for the formats and for tests.
    pub fn from_source(samples: Vec<Sample>, classes: Vec<String>, channels: usize, source: Box<dyn Source>) -> Self {
        Self { samples, classes, channels, source }
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

    /// Channels of every decoded image.
    pub fn channels(&self) -> usize {
        self.channels
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
        self.source.decode(index, self.channels)
    }

    /// 16 hex digits over names, labels and stored sizes: which data a result was measured on.
    pub fn fingerprint(&self) -> String {
        let mut hash = Fnv::default();
        for (index, sample) in self.samples.iter().enumerate() {
            hash.add(sample.name.as_bytes());
            hash.add(&[0]);
            hash.add(&sample.label.map_or(u64::MAX, u64::from).to_le_bytes());
            hash.add(&self.source.stored_bytes(index).to_le_bytes());
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

/// Tells the format by what lies at `path`, and opens it.
fn open_format(path: &Path, split: Split) -> Result<Opened, DataError> {
    let files = if path.is_dir() { files_of(path)? } else { vec![path.to_owned()] };
    let with = |extension: &str| {
        let ours = |file: &&PathBuf| file.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
        files.iter().filter(ours).cloned().collect::<Vec<_>>()
    };
    let mut parquets = with("parquet");
    if parquets.is_empty() && path.join("data").is_dir() {
        // The Hugging Face hub keeps the files of a set in `data/`.
        let inner = files_of(&path.join("data"))?;
        parquets = inner.into_iter().filter(|file| file.extension().is_some_and(|e| e == "parquet")).collect();
    }
    if !parquets.is_empty() {
        return parquet::open(&parquets, split);
    }
    let tars = with("tar");
    if !tars.is_empty() {
        return tar::open(&tars, split);
    }
    if let Some(images) = idx::find(&files, split) {
        return idx::open(&images);
    }
    let binaries = with("bin");
    if cifar::is_cifar(&binaries) {
        return cifar::open(path, &binaries, split);
    }
    if path.is_dir() {
        return folder::open(path, split);
    }
    let reason = "a single file must be a tar shard, a parquet file, an IDX file or CIFAR binary";
    Err(DataError::Empty { path: path.to_owned(), reason: reason.into() })
}

/// Files directly inside a folder, sorted.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a shard of this name belongs to the split, where at least one shard is named `train*`; without one all
/// belong to the training part.
fn shards_of_split(files: &[PathBuf], split: Split) -> Vec<PathBuf> {
    let starts = |file: &PathBuf, words: &[&str]| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        words.iter().any(|word| name.starts_with(word))
    };
    if !files.iter().any(|file| starts(file, &["train"])) {
        return if split == Split::Train { files.to_vec() } else { Vec::new() };
    }
    let words: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test if files.iter().any(|file| starts(file, &["test"])) => &["test"],
        Split::Test => &["val"],
    };
    files.iter().filter(|file| starts(file, words)).cloned().collect()
}
