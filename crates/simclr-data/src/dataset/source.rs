//! The interface of formats: a split as opened, and access to its images.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Sample, raw::Raw};
use crate::{
    DataError, Image, ValueRange,
    decode::{self, Decoding, Pages},
};

/// The stored images of a split; one implementation per format.
///
/// A format implements [`Source::read`] and, for encoded image files, [`Source::file_name`], else [`Source::decode_stored`]. A
/// source that computes its images stores nothing and implements [`Source::decode`] alone.
pub trait Source: Send + Sync {
    /// Reads and decodes image `index`.
    fn decode(&self, index: usize, how: &Decoding) -> Result<Image, DataError> {
        self.decode_stored(index, self.read(index)?, how)
    }

    /// Name of image `index` in messages, if [`Source::read`] returns an encoded image file.
    fn file_name(&self, _index: usize) -> Option<Cow<'_, str>> {
        None
    }

    /// Stored bytes of image `index`: an encoded file, or pixels.
    fn read(&self, _index: usize) -> Result<Bytes, DataError> {
        Ok(Bytes::new())
    }

    /// Decodes the bytes that [`Source::read`] returned for image `index`.
    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        match self.file_name(index) {
            Some(name) => {
                decode::stored(&name, &stored, how, None)?.into_image(&name, how.channels, &how.range)
            }
            None => self.decode(index, how),
        }
    }

    /// The range by which stored pixels were scaled when they were packed; they are not scaled again.
    fn recorded_range(&self) -> Option<&ValueRange> {
        None
    }

    /// The page rule with which a set was packed.
    fn recorded_pages(&self) -> Option<Pages> {
        None
    }

    /// Page number of image `index` in the file that [`Source::read`] returns; `None` for the whole file.
    fn page(&self, _index: usize) -> Option<usize> {
        None
    }

    /// Changes whenever the operating system reports a change of the file of image `index`; 0 = unknown.
    fn stamp(&self, _index: usize) -> u64 {
        0
    }

    /// Checksum of the stored bytes of image `index`, for formats that record one.
    fn recorded_content(&self, _index: usize) -> Option<u64> {
        None
    }

    /// Size of image `index` in bytes, for the fingerprint.
    fn stored_bytes(&self, index: usize) -> u64;

    /// Channels of the first image; 3 unless the format is grey or multi-band.
    fn native_channels(&self) -> usize {
        3
    }
}

/// A split as opened by its format.
pub(super) struct Opened {
    pub samples: Vec<Sample>,
    pub classes: Vec<String>,
    pub source: Box<dyn Source>,
    /// See [`super::Dataset::notes`]; without those on labels.
    pub notes: Vec<String>,
    pub label_notes: Vec<String>,
}

impl Opened {
    /// A split that does not exist in the set.
    pub fn none() -> Self {
        Self::new(Vec::new(), Vec::new(), Box::new(Raw::default()))
    }

    pub fn new(samples: Vec<Sample>, classes: Vec<String>, source: Box<dyn Source>) -> Self {
        Self { samples, classes, source, notes: Vec::new(), label_notes: Vec::new() }
    }
}
