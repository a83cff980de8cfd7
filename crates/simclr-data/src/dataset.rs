//! What exists: the samples of an image set, in a stable order, with labels where there are any.

use std::path::Path;

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
    /// Reads and decodes image `index`.
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError>;
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
        let _ = (path, split, channels);
        todo!("helper data-read")
    }

    /// Whether `path` holds a test split of its own.
    pub fn has_test_split(path: &Path) -> bool {
        let _ = path;
        todo!("helper data-read")
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

    /// 16 hex digits over names, labels and sizes: which data a result was measured on.
    pub fn fingerprint(&self) -> String {
        todo!("helper data-read")
    }
}
