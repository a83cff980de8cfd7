//! Encoded bytes to an upright image: the values as stored ([`Raster`]), then 8 bits of them ([`Image`]).
//!
//! EXIF orientation is applied, palettes are expanded, CMYK becomes RGB. Transparency is dropped, not blended: PIL's
//! `convert("RGB")`, through which the peers read, does the same. What becomes 0 and 255 is [`ValueRange`]'s to say.

mod jpeg;
mod raster;
mod tiff;

use std::{fmt, io::Cursor, str::FromStr};

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

/// `data.pages`: what the pages of a TIFF file are. Reduced copies of other pages and transparency masks are left out in any
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// Pages of one band and of the first one's size and type are channels of one image; other further pages are left out, with
    /// a note.
    #[default]
    Auto,
    /// Channels of one image; a file of pages that cannot be cannot be decoded.
    Channels,
    /// Images of their own.
    Images,
}

impl Pages {
    /// As it is written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Channels => "channels",
            Self::Images => "images",
        }
    }

    /// For fields that are left out where they have their default.
    pub(crate) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Auto, Self::Channels, Self::Images].into_iter().find(|rule| rule.name() == text);
        found.ok_or_else(|| "expected auto, channels or images".into())
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
    /// Of TIFF files.
    pub pages: Pages,
}

impl From<usize> for Decoding {
    /// With the default decoder, over the full range.
    fn from(channels: usize) -> Self {
        Self { channels, jpeg: Jpeg::default(), range: ValueRange::default(), pages: Pages::default() }
    }
}

/// Decodes JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame), PPM or PGM bytes (recognised by content, not by name).
///
/// # Errors
/// [`DataError::Decode`] with `name` and the decoder's reason.
pub fn decode(name: &str, bytes: &[u8], how: impl Into<Decoding>) -> Result<Image, DataError> {
    let how = how.into();
    stored(name, bytes, &how, None)?.into_image(name, how.channels, &how.range)
}

/// Decodes to the values as stored, of a TIFF file page `page` alone where that is given; `how.range` does not matter.
///
/// # Errors
/// Those of [`decode`].
pub(crate) fn stored(
    name: &str,
    bytes: &[u8],
    how: &Decoding,
    page: Option<usize>,
) -> Result<Raster, DataError> {
    let raster = if jpeg::is_jpeg(bytes) {
        jpeg::decode(bytes, how.channels, how.jpeg)
    } else {
        other(bytes, how, page)
    };
    raster.map_err(|reason| DataError::Decode { name: name.to_owned(), reason })
}

/// Channels of a file that is neither grey nor RGB; 3 for everything else, also for what cannot be read.
pub fn native_channels(bytes: &[u8]) -> usize {
    native_channels_of(bytes, None)
}

/// As [`native_channels`], of page `page` of a TIFF file where that is given.
pub(crate) fn native_channels_of(bytes: &[u8], page: Option<usize>) -> usize {
    let channels = tiff::is_tiff(bytes).then(|| tiff::channels(bytes, page)).flatten().unwrap_or(3);
    if channels == 1 { 3 } else { channels }
}

/// Numbers, from 0, of the pages that are images of their own where a TIFF file has several; else none. Likewise for a file
/// that cannot be read.
///
/// # Errors
/// A file of more pages than are looked at.
pub(crate) fn pages(bytes: &[u8]) -> Result<Vec<usize>, String> {
    let found = if tiff::is_tiff(bytes) { tiff::full_size_pages(bytes)? } else { Vec::new() };
    Ok(if found.len() > 1 { found } else { Vec::new() })
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

/// `how.channels` of 4 keeps transparency.
fn other(bytes: &[u8], how: &Decoding, page: Option<usize>) -> Result<Raster, String> {
    if tiff::is_tiff(bytes) {
        if page.is_some() || !tiff::is_cmyk(bytes) {
            return tiff::decode(bytes, how, page);
        }
        tiff::check_pages(bytes, how.pages)?;
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
    let (kept, values, kind) = kept_channels(decoded, how.channels == 4);
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
