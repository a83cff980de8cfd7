//! Encoded bytes to an upright image: first the stored values ([`Raster`]), then 8 bits ([`Image`]) by a [`ValueRange`].
//!
//! EXIF orientation is applied, palettes are expanded, CMYK is converted to RGB. Alpha is dropped, not blended, as by PIL's
//! `convert("RGB")`, which other implementations use.

mod jpeg;
mod raster;
mod tiff;

use std::{fmt, io::Cursor, str::FromStr};

use image::{DynamicImage, ImageDecoder, ImageReader};
use serde::{Deserialize, Serialize};

pub use raster::Raster;
use raster::Values;

use crate::{DataError, Image, ValueRange, guard::guarded};

/// Maximal number of pixels of a decoded image, against decompression bombs.
pub const MAX_PIXELS: u64 = 1 << 27;

/// Maximal size of an encoded image: [`MAX_PIXELS`] of uncompressed 16-bit RGBA.
pub(crate) const MAX_BYTES: u64 = MAX_PIXELS * 8;

/// Weights of red, green and blue in the luma, times 2^16 (ITU-R BT.601).
const LUMA: [u32; 3] = [19_595, 38_470, 7_471];

/// `transform.jpeg`: the decoder of JPEG files. Decoders differ by one or two levels, due to rounding in the inverse DCT and in
/// chroma upsampling, and by more in the last columns of odd widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Jpeg {
    /// `zune-jpeg`, in Rust.
    #[default]
    Zune,
    /// libjpeg-turbo with the accurate DCT (ISLOW): identical to Pillow and torchvision.
    Libjpeg,
    /// libjpeg-turbo with the fast DCT (IFAST): identical to the default of TensorFlow's `decode_jpeg`, as in the official
    /// SimCLR code.
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

/// `data.pages`: how pages of TIFF files are read. Reduced copies and transparency masks are always left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// Single-band pages with the size and type of the first page are channels of one image; other pages are left out, with a
    /// note.
    #[default]
    Auto,
    /// Channels of one image; files with other pages are decode errors.
    Channels,
    /// Every page is an image.
    Images,
}

impl Pages {
    /// Spelling in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Channels => "channels",
            Self::Images => "images",
        }
    }

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

/// Options of decoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoding {
    /// 1 = luma, 3 = RGB; any other number must be that of the file.
    pub channels: usize,
    /// Decoder of JPEG files.
    pub jpeg: Jpeg,
    /// Stored values that become 0 and 255.
    pub range: ValueRange,
    /// How pages of TIFF files are read.
    pub pages: Pages,
}

impl From<usize> for Decoding {
    /// With default options for the given number of channels.
    fn from(channels: usize) -> Self {
        Self { channels, jpeg: Jpeg::default(), range: ValueRange::default(), pages: Pages::default() }
    }
}

/// Decodes JPEG, PNG, WebP, BMP, TIFF, GIF (first frame), PPM or PGM, recognised by content. `name` is for messages.
///
/// # Errors
/// [`DataError::Decode`].
pub fn decode(name: &str, bytes: &[u8], how: impl Into<Decoding>) -> Result<Image, DataError> {
    let how = how.into();
    stored(name, bytes, &how, None)?.into_image(name, how.channels, &how.range)
}

/// Decodes to stored values, regardless of `how.range`; with `page` only that page of a TIFF file.
///
/// # Errors
/// Those of [`decode`].
pub(crate) fn stored(
    name: &str,
    bytes: &[u8],
    how: &Decoding,
    page: Option<usize>,
) -> Result<Raster, DataError> {
    let parse = || {
        if jpeg::is_jpeg(bytes) {
            jpeg::decode(bytes, how.channels, how.jpeg)
        } else {
            other(bytes, how, page)
        }
    };
    guarded(parse, |reason| reason).map_err(|reason| DataError::decode(name, reason))
}

/// Channels of a multi-band file; 3 for grey, RGB and unreadable files.
pub fn native_channels(bytes: &[u8]) -> usize {
    native_channels_of(bytes, None)
}

/// As [`native_channels`]; with `page` of that page of a TIFF file.
pub(crate) fn native_channels_of(bytes: &[u8], page: Option<usize>) -> usize {
    let channels = tiff::is_tiff(bytes).then(|| tiff::channels(bytes, page)).flatten().unwrap_or(3);
    if channels == 1 { 3 } else { channels }
}

/// Page numbers, from 0, of a TIFF file with several pages; empty for other files.
///
/// # Errors
/// A file with more than the maximal number of pages.
pub(crate) fn pages(bytes: &[u8]) -> Result<Vec<usize>, String> {
    let found = if tiff::is_tiff(bytes) { tiff::full_size_pages(bytes)? } else { Vec::new() };
    Ok(if found.len() > 1 { found } else { Vec::new() })
}

/// Converts between 1 (luma) and 3 channels (copies); other conversions are errors.
pub fn to_channels(name: &str, image: Image, channels: usize) -> Result<Image, DataError> {
    let data = match (image.channels, channels) {
        (have, want) if have == want => return Ok(image),
        (1, 3) => image.data.iter().flat_map(|&grey| [grey; 3]).collect(),
        (3, 1) => image.data.chunks_exact(3).map(luma).collect(),
        (have, want) => {
            return Err(DataError::decode(name, format!("it has {have} channels, expected {want}")));
        }
    };
    Ok(Image::new(image.width, image.height, channels, data))
}

fn luma(rgb: &[u8]) -> u8 {
    let sum: u32 = rgb.iter().zip(LUMA).map(|(&value, weight)| u32::from(value) * weight).sum();
    ((sum + (1 << 15)) >> 16) as u8
}

/// The note on an image without its alpha, the last of `bands`.
fn alpha_left_out(bands: usize) -> String {
    format!(
        "alpha is left out, so that transparent pixels have the colours that are stored for them; data.channels = {bands} keeps \
         it as a channel"
    )
}

/// Formats other than JPEG. Alpha is kept if `how.channels` is 4.
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
    // The limit on pixels is checked below, before the allocation.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let orientation = decoder.orientation().ok();
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let color = decoded.color();
    let pixel = usize::from(color.bytes_per_pixel());
    let alpha = pixel - pixel / usize::from(color.channel_count());
    let is_alpha_lost = color.has_alpha() && how.channels != 4 && varies(decoded.as_bytes(), pixel, alpha);
    let (kept, values, kind) = kept_channels(decoded, how.channels == 4);
    let raster = Raster::new((width as usize, height as usize), kept, values, kind).upright(orientation);
    Ok(raster.with_note(is_alpha_lost.then(|| alpha_left_out(4))))
}

/// Whether pixels of `size` values differ in those `from` on.
fn varies<T: PartialEq>(data: &[T], size: usize, from: usize) -> bool {
    let mut ends = data.chunks_exact(size).map(|pixel| &pixel[from..]);
    let first = ends.next();
    ends.any(|end| Some(end) != first)
}

/// Grey, RGB or, if the image has alpha and `alpha` is set, RGBA.
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
