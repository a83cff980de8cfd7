//! Encoded bytes to an upright 8-bit image, as a viewer would show it.
//!
//! EXIF orientation is applied, palettes are expanded, 16 bits become 8 by rounding, CMYK becomes RGB. Transparency is
//! dropped, not blended: PIL's `convert("RGB")`, through which the peers read, does the same. Tiffs of other numbers of
//! bands keep their bands.

mod jpeg;
mod tiff;

use std::{io::Cursor, str::FromStr};

use image::{DynamicImage, ImageDecoder, ImageReader, metadata::Orientation};
use serde::{Deserialize, Serialize};

use crate::{DataError, Image};

/// Largest decoded image, in pixels: a bomb of a few kilobytes may not take the machine's memory.
pub const MAX_PIXELS: u64 = 1 << 27;

/// Largest encoded image, in bytes: [`MAX_PIXELS`] of 16-bit RGBA, stored plainly.
pub(crate) const MAX_BYTES: u64 = MAX_PIXELS * 8;

/// Weights of red, green and blue in a grey value, in 2^-16 (ITU-R BT.601, spec 5.3; they sum to 2^16).
const LUMA: [u32; 3] = [19_595, 38_470, 7_471];

/// `transform.jpeg`: the decoder of JPEG files. Decoders differ by a level or two in places where the inverse DCT and the
/// upsampling of chroma round, and more in the last columns of odd widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Jpeg {
    /// The Rust decoder.
    #[default]
    Zune,
    /// libjpeg-turbo with the accurate DCT (ISLOW), byte for byte Pillow's and torchvision's result.
    Libjpeg,
    /// libjpeg-turbo with the fast DCT (IFAST), byte for byte the result of TensorFlow's `decode_jpeg` by default, and so of
    /// the official SimCLR code.
    LibjpegFast,
}

impl FromStr for Jpeg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "zune" => Ok(Self::Zune),
            "libjpeg" => Ok(Self::Libjpeg),
            "libjpeg-fast" => Ok(Self::LibjpegFast),
            _ => Err("expected zune, libjpeg or libjpeg-fast".into()),
        }
    }
}

/// To what an image is decoded, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// 1 = luma, 3 = RGB, any other number must be what the file holds.
    pub channels: usize,
    /// Of JPEG files.
    pub jpeg: Jpeg,
}

impl From<usize> for Decoding {
    /// With the default decoder.
    fn from(channels: usize) -> Self {
        Self { channels, jpeg: Jpeg::default() }
    }
}

/// Decodes JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame), PPM or PGM bytes (recognised by content, not by name).
///
/// # Errors
/// [`DataError::Decode`] with `name` and the decoder's reason.
pub fn decode(name: &str, bytes: &[u8], how: impl Into<Decoding>) -> Result<Image, DataError> {
    let how = how.into();
    let channels = how.channels;
    let image = if jpeg::is_jpeg(bytes) { jpeg::decode(bytes, how) } else { decode_other(bytes, channels) };
    let image = image.map_err(|reason| DataError::Decode { name: name.to_owned(), reason })?;
    to_channels(name, image, channels)
}

/// Bands of a file that is neither grey nor RGB; 3 for everything else, also for what cannot be read.
pub fn native_channels(bytes: &[u8]) -> usize {
    tiff::bands(bytes).map_or(3, |bands| if bands.kept == 1 { 3 } else { bands.kept })
}

/// Converts to 1 (luma) or 3 (copies) channels; any other number must be there already.
pub fn to_channels(name: &str, image: Image, channels: usize) -> Result<Image, DataError> {
    let data = match (image.channels, channels) {
        (have, want) if have == want => return Ok(image),
        (1, 3) => image.data.iter().flat_map(|&grey| [grey; 3]).collect(),
        (3, 1) => image.data.chunks_exact(3).map(luma).collect(),
        (have, want) => {
            let reason = format!("it has {have} channels, expected {want}");
            return Err(DataError::Decode { name: name.to_owned(), reason });
        }
    };
    Ok(Image::new(image.width, image.height, channels, data))
}

fn luma(rgb: &[u8]) -> u8 {
    let sum: u32 = rgb.iter().zip(LUMA).map(|(&value, weight)| u32::from(value) * weight).sum();
    ((sum + (1 << 15)) >> 16) as u8
}

fn decode_other(bytes: &[u8], channels: usize) -> Result<Image, String> {
    let format = image::guess_format(bytes).map_err(|_| match bytes.len() {
        0 => "the file is empty".to_owned(),
        _ => "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM image".to_owned(),
    })?;
    if let Some(bands) = tiff::bands(bytes) {
        return tiff::decode(bytes, &bands);
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // Room for 16-bit RGBA of the largest image; the limit on pixels is checked below, before anything is allocated.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let orientation = decoder.orientation().ok();
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let grey = !decoded.color().has_color();
    let (width, height) = (width as usize, height as usize);
    let image = match channels {
        1 if grey => Image::new(width, height, 1, decoded.into_luma8().into_raw()),
        4 if decoded.color().has_alpha() => Image::new(width, height, 4, decoded.into_rgba8().into_raw()),
        _ => Image::new(width, height, 3, decoded.into_rgb8().into_raw()),
    };
    Ok(upright(image, orientation))
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err("it has no pixels".into()),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("{width}x{height} pixels are more than the {MAX_PIXELS} that are decoded")),
    }
}

/// Row and column of the upright image, width and height of the stored one: where its pixel is stored (row, column).
type StoredAt = fn(usize, usize, usize, usize) -> (usize, usize);

/// Turns and mirrors as the camera noted, for any number of channels.
fn upright(image: Image, orientation: Option<Orientation>) -> Image {
    let (w, h) = (image.width, image.height);
    let (turned, from): (bool, StoredAt) = match orientation {
        None | Some(Orientation::NoTransforms) => return image,
        Some(Orientation::FlipHorizontal) => (false, |y, x, w, _| (y, w - 1 - x)),
        Some(Orientation::Rotate180) => (false, |y, x, w, h| (h - 1 - y, w - 1 - x)),
        Some(Orientation::FlipVertical) => (false, |y, x, _, h| (h - 1 - y, x)),
        Some(Orientation::Rotate90FlipH) => (true, |y, x, _, _| (x, y)),
        Some(Orientation::Rotate90) => (true, |y, x, _, h| (h - 1 - x, y)),
        Some(Orientation::Rotate270FlipH) => (true, |y, x, w, h| (h - 1 - x, w - 1 - y)),
        Some(Orientation::Rotate270) => (true, |y, x, w, _| (x, w - 1 - y)),
    };
    let (width, height) = if turned { (h, w) } else { (w, h) };
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..height {
        for x in 0..width {
            let (row, column) = from(y, x, w, h);
            data.extend_from_slice(&image.data[(row * w + column) * image.channels..][..image.channels]);
        }
    }
    Image::new(width, height, image.channels, data)
}
