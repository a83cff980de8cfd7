//! Several sets as one: the parts of a set that are trained on together, or the sources that a data path stands for.

use std::{borrow::Cow, path::Path};

use bytes::Bytes;

use super::{Dataset, Format, OpenOptions, Opened, Source, Split, class_names::ClassNames};
use crate::{
    DataError, Image, ValueRange,
    decode::{Decoding, Pages},
};

impl Dataset {
    /// The images of the training part, then those of the validation part, with the training part's classes and channels.
    ///
    /// # Errors
    /// See [`Dataset::open`]; a validation class that the training part does not have.
    pub fn open_with_validation(path: &Path, options: impl Into<OpenOptions>) -> Result<Self, DataError> {
        let (parts, options) = ([Split::Train, Split::Validation], options.into());
        let [train, validation] = parts.map(|split| opened(path, split, options.pages));
        let (train, validation) = (train?, validation?);
        if let Some(name) = validation.classes.iter().find(|name| !train.classes.contains(name)) {
            let reason = format!("class `{name}` of the validation part is not in the training part");
            return Err(DataError::Format { path: path.to_owned(), reason });
        }
        let classes = ClassNames::of(train.classes.iter().cloned());
        Ok(Self::from_opened(joined(vec![train, validation], classes), options))
    }

    /// The images of `parts`, one part after another, with the classes of all of them.
    ///
    /// # Errors
    /// See [`Dataset::open`].
    pub fn open_parts(
        path: &Path,
        parts: &[Split],
        options: impl Into<OpenOptions>,
    ) -> Result<Self, DataError> {
        let options = options.into();
        let sets = parts.iter().map(|&split| opened(path, split, options.pages));
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        // Sets of all formats number the classes of their parts alike, so the first part with classes has them all or most.
        let mut names: Vec<String> = Vec::new();
        for name in sets.iter().flat_map(|set| &set.classes) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(Self::from_opened(joined(sets, ClassNames::of(names)), options))
    }
}

fn opened(path: &Path, split: Split, pages: Pages) -> Result<Opened, DataError> {
    let set = Format::of(path)?.open(path, split, pages)?;
    if set.samples.is_empty() { Err(super::no_such_part(path, split)) } else { Ok(set) }
}

/// The images of `sets` one after another, labelled by the names of their classes among `classes`.
pub(super) fn joined(sets: Vec<Opened>, classes: ClassNames) -> Opened {
    let (mut samples, mut notes, mut label_notes) = (Vec::new(), Vec::new(), Vec::new());
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

/// The pixels of several sets, one after another.
struct Joined {
    sources: Vec<Box<dyn Source>>,
    /// Number of images up to the end of each.
    ends: Vec<usize>,
}

impl Joined {
    fn of(&self, index: usize) -> (&dyn Source, usize) {
        let at = self.ends.partition_point(|&end| end <= index);
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&*self.sources[at], index - start)
    }
}

impl Source for Joined {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let (source, index) = self.of(index);
        source.read(index)
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        let (source, index) = self.of(index);
        source.decode_stored(index, stored, how)
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        let (source, index) = self.of(index);
        source.file_name(index)
    }

    /// Of the first one that has any; all must have been packed with the same.
    fn recorded_range(&self) -> Option<&ValueRange> {
        self.sources.iter().find_map(|source| source.recorded_range())
    }

    /// Likewise.
    fn recorded_pages(&self) -> Option<Pages> {
        self.sources.iter().find_map(|source| source.recorded_pages())
    }

    fn page(&self, index: usize) -> Option<usize> {
        let (source, index) = self.of(index);
        source.page(index)
    }

    fn stamp(&self, index: usize) -> u64 {
        let (source, index) = self.of(index);
        source.stamp(index)
    }

    fn recorded_content(&self, index: usize) -> Option<u64> {
        let (source, index) = self.of(index);
        source.recorded_content(index)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        let (source, index) = self.of(index);
        source.stored_bytes(index)
    }

    /// Grey sets become RGB next to others.
    fn native_channels(&self) -> usize {
        self.sources.iter().map(|source| source.native_channels()).max().unwrap_or(3)
    }
}
