//! A decoded image: 8 bits, interleaved.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;

/// Pixels as `u8`, row by row, channels interleaved: the byte of row `y`, column `x`, channel `c` is
/// `data[(y * width + x) * channels + c]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// 1 (grey), 3 (RGB) or any number of bands.
    pub channels: usize,
    /// `height * width * channels` bytes.
    pub data: Pixels,
}

impl Image {
    /// # Panics
    /// If `data` is not `height * width * channels` long, or a dimension is 0; decoders check both.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Self {
        Self::over(width, height, channels, Pixels::Own(data))
    }

    /// An image over shared memory: of a memory-mapped file, only the rows that a crop needs are read.
    pub(crate) fn shared(width: usize, height: usize, channels: usize, data: Bytes) -> Self {
        Self::over(width, height, channels, Pixels::Shared(data))
    }

    fn over(width: usize, height: usize, channels: usize, data: Pixels) -> Self {
        assert!(width > 0 && height > 0 && channels > 0, "an image has at least one pixel");
        assert_eq!(data.len(), width * height * channels, "pixels fill the image");
        Self { width, height, channels, data }
    }

    /// Gives the memory to the next image that this thread decodes: the system zeroes new pages and the decoder new vectors.
    pub fn recycle(self) {
        if let Pixels::Own(data) = self.data {
            SPARE.set(data);
        }
    }
}

thread_local! {
    /// Memory of the last recycled image.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `len` bytes of unspecified value, in the memory of a recycled image if that suffices.
pub(crate) fn spare_bytes(len: usize) -> Vec<u8> {
    let mut bytes = SPARE.take();
    if bytes.capacity() < len {
        return vec![0; len];
    }
    bytes.resize(len, 0);
    bytes
}

/// Bytes of an image, owned or shared.
#[derive(Debug, Clone)]
pub enum Pixels {
    /// Decoded into memory.
    Own(Vec<u8>),
    /// Part of a larger buffer, such as a mapped file; copied on write.
    Shared(Bytes),
}

impl Pixels {
    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Own(data) => data,
            Self::Shared(data) => data.to_vec(),
        }
    }
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(data) => data,
            Self::Shared(data) => data,
        }
    }
}

impl DerefMut for Pixels {
    fn deref_mut(&mut self) -> &mut [u8] {
        if let Self::Shared(data) = self {
            *self = Self::Own(data.to_vec());
        }
        match self {
            Self::Own(data) => data,
            Self::Shared(_) => unreachable!("it was copied above"),
        }
    }
}

impl PartialEq for Pixels {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Pixels {}

impl<T: AsRef<[u8]>> PartialEq<T> for Pixels {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}
