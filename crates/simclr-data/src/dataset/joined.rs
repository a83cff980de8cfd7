//! Concatenation of splits, or of the sets that a data path with several sources denotes.

use std::{borrow::Cow, collections::HashSet, path::Path};

use bytes::Bytes;

use super::{Dataset, Location, OpenOptions, Opened, Source, Split, class_names::ClassNames};
use crate::{
    DataError, Image, ValueRange,
    decode::{Decoding, Pages},
};

impl Dataset {
    /// The images of the training split, then those of the validation split, with the training split's classes.
    ///
    /// # Errors
    /// Those of [`Dataset::open`]; a class that only the validation split has.
    pub fn open_with_validation(path: &Path, options: impl Into<OpenOptions>) -> Result<Self, DataError> {
        let options = options.into();
        let sets = opened(path, &[Split::Train, Split::Validation], options)?;
        let known: HashSet<&String> = sets[0].classes.iter().collect();
        if let Some(name) = sets[1].classes.iter().find(|name| !known.contains(name)) {
            let reason = format!("class `{name}` of the validation part is not in the training part");
            return Err(DataError::format(path, reason));
        }
        Ok(Self::concatenated(sets, options))
    }

    /// The images of `parts`, one split after another, with the classes of all of them.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub fn open_parts(
        path: &Path,
        parts: &[Split],
        options: impl Into<OpenOptions>,
    ) -> Result<Self, DataError> {
        let options = options.into();
        Ok(Self::concatenated(opened(path, parts, options)?, options))
    }

    fn concatenated(sets: Vec<Opened>, options: OpenOptions) -> Self {
        // The splits of a set number their classes alike, so that the first split with classes has nearly all of them.
        let mut known = HashSet::new();
        let names = sets.iter().flat_map(|set| &set.classes).filter(|name| known.insert(name.as_str()));
        let classes = ClassNames::of(names.cloned());
        Self::from_opened(joined(sets, classes), options)
    }
}

fn opened(path: &Path, parts: &[Split], options: OpenOptions) -> Result<Vec<Opened>, DataError> {
    let location = Location::of(path)?;
    parts.iter().map(|&split| location.require(split, options.pages)).collect()
}

/// Concatenates `sets`, with labels by class name among `classes`.
pub(super) fn joined(sets: Vec<Opened>, classes: ClassNames) -> Opened {
    let mut samples = Vec::new();
    let mut notes = Vec::new();
    let mut label_notes = Vec::new();
    let mut source = Joined { sources: Vec::new(), ends: Vec::new() };
    for set in sets {
        let labels: Vec<Option<u32>> = set.classes.iter().map(|name| classes.label(name)).collect();
        samples.extend(set.samples.into_iter().map(|mut sample| {
            sample.label = sample.label.and_then(|label| labels[label as usize]);
            sample
        }));
        notes.extend(set.notes);
        label_notes.extend(set.label_notes);
        source.sources.push(set.source);
        source.ends.push(samples.len());
    }
    Opened { samples, classes: classes.names, source: Box::new(source), notes, label_notes }
}

struct Joined {
    sources: Vec<Box<dyn Source>>,
    /// Cumulative number of images.
    ends: Vec<usize>,
}

impl Joined {
    fn locate(&self, index: usize) -> (&dyn Source, usize) {
        let at = self.ends.partition_point(|&end| end <= index);
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&*self.sources[at], index - start)
    }
}

impl Source for Joined {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let (source, index) = self.locate(index);
        source.read(index)
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        let (source, index) = self.locate(index);
        source.decode_stored(index, stored, how)
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        let (source, index) = self.locate(index);
        source.file_name(index)
    }

    /// Of the first source with a recorded range; all packed sources must have the same.
    fn recorded_range(&self) -> Option<&ValueRange> {
        self.sources.iter().find_map(|source| source.recorded_range())
    }

    fn recorded_pages(&self) -> Option<Pages> {
        self.sources.iter().find_map(|source| source.recorded_pages())
    }

    fn page(&self, index: usize) -> Option<usize> {
        let (source, index) = self.locate(index);
        source.page(index)
    }

    fn stamp(&self, index: usize) -> u64 {
        let (source, index) = self.locate(index);
        source.stamp(index)
    }

    fn recorded_content(&self, index: usize) -> Option<u64> {
        let (source, index) = self.locate(index);
        source.recorded_content(index)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        let (source, index) = self.locate(index);
        source.stored_bytes(index)
    }

    /// The maximum: grey sets are converted to RGB next to others.
    fn native_channels(&self) -> usize {
        self.sources.iter().map(|source| source.native_channels()).max().unwrap_or(3)
    }
}
