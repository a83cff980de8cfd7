//! Training and validation part of a set as one, for training on both once everything has been chosen.

use std::{borrow::Cow, path::Path};

use bytes::Bytes;

use super::{Channels, Dataset, Source, Split};
use crate::{DataError, Image, ValueRange, decode::Decoding};

impl Dataset {
    /// The images of the training part, then those of the validation part, with the training part's classes and channels.
    ///
    /// # Errors
    /// See [`Dataset::open`]; a validation class that the training part does not have.
    pub fn open_with_validation(path: &Path, channels: Channels) -> Result<Self, DataError> {
        let train = Self::open(path, Split::Train, channels)?;
        let validation = Self::open(path, Split::Validation, Channels::Count(train.channels()))?;
        let number_of = |name: &String| {
            let found = train.classes.iter().position(|class| class == name);
            let reason = || format!("class `{name}` of the validation part is not in the training part");
            found.ok_or_else(|| DataError::Format { path: path.to_owned(), reason: reason() })
        };
        let numbers = validation.classes.iter().map(number_of).collect::<Result<Vec<_>, _>>()?;
        let mut samples = train.samples.clone();
        samples.extend(validation.samples.iter().cloned().map(|mut sample| {
            sample.label = sample.label.map(|label| numbers[label as usize] as u32);
            sample
        }));
        let (classes, channels) = (train.classes.clone(), train.channels());
        Ok(Self::from_source(samples, classes, channels, Box::new(Joined { train, validation })))
    }
}

/// The pixels of both parts, those of the training part first.
struct Joined {
    train: Dataset,
    validation: Dataset,
}

impl Joined {
    fn of(&self, index: usize) -> (&Dataset, usize) {
        match index.checked_sub(self.train.len()) {
            None => (&self.train, index),
            Some(index) => (&self.validation, index),
        }
    }
}

impl Source for Joined {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let (set, index) = self.of(index);
        set.source.read(set.stored(index))
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        let (set, index) = self.of(index);
        set.source.decode_stored(set.stored(index), stored, how)
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        let (set, index) = self.of(index);
        set.source.file_name(set.stored(index))
    }

    fn recorded_range(&self) -> Option<&ValueRange> {
        self.train.source.recorded_range()
    }

    fn stamp(&self, index: usize) -> u64 {
        let (set, index) = self.of(index);
        set.source.stamp(set.stored(index))
    }

    fn recorded_content(&self, index: usize) -> Option<u64> {
        let (set, index) = self.of(index);
        set.source.recorded_content(set.stored(index))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        let (set, index) = self.of(index);
        set.stored_bytes(index)
    }
}
