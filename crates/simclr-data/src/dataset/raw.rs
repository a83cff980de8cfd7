//! Uncompressed images of one size, in memory: IDX and CIFAR binary.

use bytes::Bytes;

use super::{Source, identity::FileState};
use crate::{
    DataError, Image,
    decode::{self, Decoding},
};

/// Equal-sized 8-bit images, one after another.
#[derive(Default)]
pub struct Raw {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// Whether channels are planes (CIFAR) or interleaved.
    pub planar: bool,
    pub pixels: Bytes,
    /// Cumulative number of images, and state, of each file.
    pub files: Vec<(usize, FileState)>,
}

impl Source for Raw {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let size = self.width * self.height * self.channels;
        Ok(self.pixels.slice(index * size..(index + 1) * size))
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        let area = self.width * self.height;
        let data = if self.planar {
            (0..area)
                .flat_map(|at| (0..self.channels).map(move |c| c * area + at))
                .map(|at| stored[at])
                .collect()
        } else {
            stored.to_vec()
        };
        let image = Image::new(self.width, self.height, self.channels, data);
        decode::to_channels(&format!("image {index}"), image, how.channels)
    }

    fn stamp(&self, index: usize) -> u64 {
        self.files.iter().find(|(end, _)| index < *end).map_or(0, |(_, file)| file.stamp)
    }

    fn stored_bytes(&self, _index: usize) -> u64 {
        (self.width * self.height * self.channels) as u64
    }

    fn native_channels(&self) -> usize {
        self.channels
    }
}
