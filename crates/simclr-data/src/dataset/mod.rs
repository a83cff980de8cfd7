//! Image sets: their samples in a stable order, with labels if there are any.
//!
//! A path leads to a `Location` (`format`: which format), the format's file lists samples and makes a [`Source`] (`source`),
//! and [`Dataset`] decodes by index.

mod cifar;
mod class_names;
mod folder;
mod folder_tables;
mod format;
mod identity;
mod idx;
mod joined;
mod json_labels;
mod labelled;
mod layout;
mod list;
mod notes;
mod others;
pub(crate) mod packed;
mod pages;
mod parquet;
mod raw;
mod several;
mod table_notes;
mod source;
mod splits;
mod survey;
mod tables;
mod tar;
mod tiny_imagenet;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use format::Location;
pub(crate) use format::may_be_member;
use identity::Contents;
pub use identity::{Changes, Observed};
pub use labelled::Labels;
pub use notes::list_counts;
pub use several::{as_one_path, canonical, sources_of};
use source::Opened;
pub use source::Source;
pub use splits::Split;
pub use survey::{ChannelValues, Examined, Missing, Survey};

use crate::{
    DataError, Image, RangeChoice, ValueRange,
    decode::{self, Decoding, Jpeg, Pages, Raster},
};

/// One image of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path relative to the data set's root, or shard and key; unique within a set.
    pub name: String,
    /// Index into [`Dataset::classes`], if the image has a label.
    pub label: Option<u32>,
}

/// Number of channels of decoded images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channels {
    /// As stored: 1 for grey sets (IDX), N for multi-band files, else 3.
    #[default]
    Auto,
    /// Convert to this number: 1 = luma, 3 = RGB; any other must be what the files hold.
    Count(usize),
}

/// The options that determine the images of a set and their channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// Channels of every decoded image.
    pub channels: Channels,
    /// How pages of TIFF files are read.
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

/// The images of a set in a stable order (sorted by name; file order inside shards).
pub struct Dataset {
    samples: Vec<Sample>,
    classes: Vec<String>,
    decoding: Decoding,
    source: Arc<dyn Source>,
    /// Index in the source of each sample; `None` for all in order.
    part: Option<Vec<usize>>,
    /// By index in the source.
    contents: Arc<Contents>,
    identity: Option<String>,
    notes: Vec<String>,
    /// Number of the notes, the last ones, that are on labels.
    label_notes: usize,
}

impl Dataset {
    /// Opens an image folder, tar shards, CIFAR binary, IDX(.gz) or parquet files, or a packed set at `path`.
    ///
    /// # Errors
    /// [`DataError::Empty`] for a path without images or a missing split, [`DataError::Format`] for a damaged or
    /// contradictory set.
    pub fn open(path: &Path, split: Split, options: impl Into<OpenOptions>) -> Result<Self, DataError> {
        let options = options.into();
        if options.channels == Channels::Count(0) {
            return Err(DataError::config("channels", 0, "an image has at least one channel"));
        }
        Self::open_at(&Location::of(path)?, split, options)
    }

    fn open_at(location: &Location<'_>, split: Split, options: OpenOptions) -> Result<Self, DataError> {
        Ok(Self::from_opened(location.require(split, options.pages)?, options))
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
        notes.extend(label_notes.into_iter().chain(labelled::note_on_unlabelled(&samples)));
        let label_notes = notes.len() - others;
        let mut set = Self::from_source(samples, classes, channels, source);
        set.decoding.pages = pages;
        Self { notes, label_notes, ..set }
    }

    /// As [`Dataset::open`], with all options of decoding.
    ///
    /// # Errors
    /// Those of [`Dataset::open`] and [`Dataset::scaled_to`].
    pub fn open_as(path: &Path, split: Split, how: &Decoding) -> Result<Self, DataError> {
        Self::open(path, split, how)?.decoded_by(how.jpeg).scaled_to(&how.range)
    }

    /// Single image files, in this order, without labels; names are the paths as given.
    ///
    /// # Errors
    /// A range for another number of channels.
    pub fn of_files(files: &[PathBuf], how: &Decoding) -> Result<Self, DataError> {
        Self::from_opened(folder::given(files), how.into()).decoded_by(how.jpeg).scaled_to(&how.range)
    }

    /// All splits of the set at `path`, the training split first.
    pub fn splits(path: &Path) -> Vec<Split> {
        Location::of(path).map_or(vec![Split::Train], |location| location.splits())
    }

    /// Whether the set at `path` has the split. True also for a damaged split, so that [`Dataset::open`] reports the damage
    /// instead of an evaluation without that split.
    pub fn has_split(path: &Path, split: Split) -> bool {
        Location::of(path).is_ok_and(|location| location.has_split(split))
    }

    /// A data set over a source, for the formats and for tests.
    pub fn from_source(
        samples: Vec<Sample>,
        classes: Vec<String>,
        channels: usize,
        source: Box<dyn Source>,
    ) -> Self {
        Self {
            contents: Arc::new(Contents::of(&*source, samples.len())),
            samples,
            classes,
            decoding: channels.into(),
            source: source.into(),
            part: None,
            identity: None,
            notes: Vec::new(),
            label_notes: 0,
        }
    }

    /// The images `indices` of this set, in that order, with all of its classes.
    ///
    /// # Panics
    /// If an index is out of range.
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        Self {
            samples: indices.iter().map(|&index| self.samples[index].clone()).collect(),
            part: Some(indices.iter().map(|&index| self.stored(index)).collect()),
            classes: self.classes.clone(),
            source: Arc::clone(&self.source),
            contents: Arc::clone(&self.contents),
            decoding: self.decoding.clone(),
            identity: None,
            notes: self.notes.clone(),
            label_notes: self.label_notes,
        }
    }

    /// Target and options of decoding.
    pub fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// Sets the decoder of JPEG files; packed and binary sets, which store pixels, are not affected.
    #[must_use]
    pub fn decoded_by(mut self, jpeg: Jpeg) -> Self {
        self.decoding.jpeg = jpeg;
        self
    }

    /// Scales stored values by `range`.
    ///
    /// # Errors
    /// A range for another number of channels, or a packed set that was written with another range.
    pub fn scaled_to(mut self, range: &ValueRange) -> Result<Self, DataError> {
        range.validate(Some(self.channels()))?;
        match self.source.recorded_range() {
            Some(recorded) if recorded != range => {
                let reason =
                    format!("the packed set was written with {recorded}; pack it again with --range");
                return Err(DataError::config("data.range", range, reason));
            }
            _ => self.decoding.range = range.clone(),
        }
        Ok(self)
    }

    /// Resolves `choice`; `Auto` is the range of a packed set, else the measured range of `survey`.
    pub fn range_of(&self, choice: &RangeChoice, survey: &Survey) -> ValueRange {
        match (choice, self.source.recorded_range()) {
            (RangeChoice::Set(range), _) => range.clone(),
            (RangeChoice::Auto, Some(recorded)) => recorded.clone(),
            (RangeChoice::Auto, None) => survey.range(),
        }
    }

    /// Image `index` before the conversion to 8 bits.
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

    fn stored(&self, index: usize) -> usize {
        self.part.as_ref().map_or(index, |part| part[index])
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Never true for an opened set.
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

    /// Notes for the user on how the set was read: skipped files, the source of labels, images without a label.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The subset of [`Dataset::notes`] that is on labels.
    pub fn label_notes(&self) -> &[String] {
        &self.notes[self.notes.len() - self.label_notes..]
    }

    /// Channels of every decoded image.
    pub fn channels(&self) -> usize {
        self.decoding.channels
    }

    /// Labels of all images, if every image has one.
    pub fn labels(&self) -> Option<Vec<u32>> {
        self.samples.iter().map(|sample| sample.label).collect()
    }

    /// Reads and decodes image `index`.
    ///
    /// # Errors
    /// [`DataError::Decode`] with the sample's name and the reason.
    pub fn decode(&self, index: usize) -> Result<Image, DataError> {
        let index = self.stored(index);
        if self.contents.is_known(index) {
            return self.source.decode(index, &self.decoding);
        }
        let stored = self.source.read(index);
        self.contents.record(index, &stored);
        self.source.decode_stored(index, stored?, &self.decoding)
    }

    pub(crate) fn stored_bytes(&self, index: usize) -> u64 {
        self.source.stored_bytes(self.stored(index))
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset").field("images", &self.len()).field("classes", &self.classes.len()).finish()
    }
}
