//! Images that are stored as plain pixels of one size, kept in memory: IDX and CIFAR binary.

use super::Source;
use crate::{DataError, Image, decode};

/// Equal-sized 8-bit images, one after another.
pub struct Raw {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// Whether channels are planes (CIFAR) or interleaved.
    pub planar: bool,
    pub pixels: Vec<u8>,
}

impl Source for Raw {
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError> {
        let area = self.width * self.height;
        let bytes = &self.pixels[index * area * self.channels..][..area * self.channels];
        let data = if self.planar {
            (0..area).flat_map(|at| (0..self.channels).map(move |c| bytes[c * area + at])).collect()
        } else {
            bytes.to_vec()
        };
        let image = Image::new(self.width, self.height, self.channels, data);
        decode::to_channels(&format!("image {index}"), image, channels)
    }

    fn stored_bytes(&self, _index: usize) -> u64 {
        (self.width * self.height * self.channels) as u64
    }

    fn native_channels(&self) -> usize {
        self.channels
    }
}
