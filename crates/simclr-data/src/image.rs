//! A decoded image: 8 bits, interleaved.

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
    pub data: Vec<u8>,
}

impl Image {
    /// An image over existing pixels.
    ///
    /// # Panics
    /// If `data` is not `height * width * channels` long, or a side is zero: decoders check both before.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0 && channels > 0, "an image has at least one pixel");
        assert_eq!(data.len(), width * height * channels, "pixels fill the image");
        Self { width, height, channels, data }
    }
}
