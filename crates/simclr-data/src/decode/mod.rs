//! Encoded bytes to an upright image: the values as stored ([`Raster`]), then 8 bits of them ([`Image`]).
//!
//! EXIF orientation is applied, palettes are expanded, CMYK becomes RGB. Transparency is dropped, not blended: PIL's
//! `convert("RGB")`, through which the peers read, does the same. What becomes 0 and 255 is [`ValueRange`]'s to say.

mod jpeg;
mod raster;
mod tiff;

use std::{io::Cursor, str::FromStr};

use image::{DynamicImage, ImageDecoder, ImageReader};
use serde::{Deserialize, Serialize};

pub use raster::Raster;
use raster::Values;

use crate::{DataError, Image, ValueRange};

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
#[derive(Debug, Clone, PartialEq)]
pub struct Decoding {
    /// 1 = luma, 3 = RGB, any other number must be what the file holds.
    pub channels: usize,
    /// Of JPEG files.
    pub jpeg: Jpeg,
    /// Which values become 0 and 255.
    pub range: ValueRange,
}

impl From<usize> for Decoding {
    /// With the default decoder, over the full range.
    fn from(channels: usize) -> Self {
        Self { channels, jpeg: Jpeg::default(), range: ValueRange::default() }
    }
}

/// Decodes JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame), PPM or PGM bytes (recognised by content, not by name).
///
/// # Errors
/// [`DataError::Decode`] with `name` and the decoder's reason.
pub fn decode(name: &str, bytes: &[u8], how: impl Into<Decoding>) -> Result<Image, DataError> {
    let how = how.into();
    stored(name, bytes, &how)?.into_image(name, how.channels, &how.range)
}

/// Decodes to the values as stored; `how.range` does not matter.
///
/// # Errors
/// Those of [`decode`].
pub(crate) fn stored(name: &str, bytes: &[u8], how: &Decoding) -> Result<Raster, DataError> {
    let raster = if jpeg::is_jpeg(bytes) {
        jpeg::decode(bytes, how.channels, how.jpeg)
    } else {
        other(bytes, how.channels)
    };
    raster.map_err(|reason| DataError::Decode { name: name.to_owned(), reason })
}

/// Channels of a file that is neither grey nor RGB; 3 for everything else, also for what cannot be read.
pub fn native_channels(bytes: &[u8]) -> usize {
    let channels = tiff::is_tiff(bytes).then(|| tiff::channels(bytes)).flatten().unwrap_or(3);
    if channels == 1 { 3 } else { channels }
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

/// `channels` of 4 keeps transparency.
fn other(bytes: &[u8], channels: usize) -> Result<Raster, String> {
    if tiff::is_tiff(bytes) && !tiff::is_cmyk(bytes) {
        return tiff::decode(bytes, channels);
    }
    let format = image::guess_format(bytes).map_err(|_| match bytes.len() {
        0 => "the file is empty".to_owned(),
        _ => "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM image".to_owned(),
    })?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The limit on pixels is checked below, before anything is allocated.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let orientation = decoder.orientation().ok();
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let (kept, values, kind) = kept_channels(decoded, channels == 4);
    Ok(Raster::new((width as usize, height as usize), kept, values, kind).upright(orientation))
}

/// Grey, RGB or, where `alpha` is asked for and there, RGBA.
fn kept_channels(decoded: DynamicImage, alpha: bool) -> (usize, Values, &'static str) {
    let color = decoded.color();
    let is_16_bit = color.bytes_per_pixel() / color.channel_count() == 2;
    let channels = if alpha && color.has_alpha() {
        4
    } else if color.has_color() {
        3
    } else {
        1
    };
    let values = match (channels, is_16_bit) {
        (1, false) => Values::U8(decoded.into_luma8().into_raw()),
        (3, false) => Values::U8(decoded.into_rgb8().into_raw()),
        (_, false) => Values::U8(decoded.into_rgba8().into_raw()),
        (1, true) => Values::U16(decoded.into_luma16().into_raw()),
        (3, true) => Values::U16(decoded.into_rgb16().into_raw()),
        (_, true) => Values::U16(decoded.into_rgba16().into_raw()),
    };
    (channels, values, if is_16_bit { "uint16" } else { "uint8" })
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err("it has no pixels".into()),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("{width}x{height} pixels are more than the {MAX_PIXELS} that are decoded")),
    }
}
