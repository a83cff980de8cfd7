//! Encoded bytes to an upright 8-bit image, as a viewer would show it.
//!
//! EXIF orientation is applied, palettes are expanded, 16 bits become 8 by rounding, CMYK becomes RGB. Transparency is
//! dropped, not blended: PIL's `convert("RGB")`, through which the peers read, does the same. Tiffs of other numbers of
//! bands keep their bands.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, metadata::Orientation};
use mozjpeg::{DctMethod, Decompress};
use serde::{Deserialize, Serialize};
use tiff::{ColorType, decoder::DecodingResult, tags::Tag};
use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

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
    let image = if is_jpeg(bytes) { decode_jpeg(bytes, how) } else { decode_other(bytes, channels) };
    let image = image.map_err(|reason| DataError::Decode { name: name.to_owned(), reason })?;
    to_channels(name, image, channels)
}

/// Bands of a file that is neither grey nor RGB; 3 for everything else, also for what cannot be read.
pub fn native_channels(bytes: &[u8]) -> usize {
    bands(bytes).map_or(3, |bands| if bands.kept == 1 { 3 } else { bands.kept })
}

/// Bands of a multi-band TIFF.
struct Bands {
    stored: usize,
    /// Without alpha, which comes last.
    kept: usize,
    /// RGB with further bands, of which the decoder would keep three.
    rgb: bool,
}

fn bands(bytes: &[u8]) -> Option<Bands> {
    if image::guess_format(bytes).ok() != Some(ImageFormat::Tiff) {
        return None;
    }
    let mut decoder = tiff::decoder::Decoder::new(Cursor::new(bytes)).ok()?;
    let color = decoder.colortype().ok()?;
    let samples = decoder.find_tag(Tag::SamplesPerPixel).ok()??.into_u16().ok()?;
    let extra = decoder.find_tag(Tag::ExtraSamples).ok()?.and_then(|value| value.into_u16_vec().ok());
    // TIFF 6.0, ExtraSamples: 1 and 2 are associated and unassociated alpha, 0 is a band of any other meaning, such as near
    // infrared with RGB.
    let alpha = extra.is_some_and(|kinds| matches!(kinds.last(), Some(1 | 2)));
    let stored = usize::from(samples);
    let kept = stored - usize::from(alpha && stored > 1);
    let rgb = match color {
        ColorType::Multiband { .. } => false,
        ColorType::RGB(_) | ColorType::RGBA(_) if kept > 3 => true,
        _ => return None,
    };
    Some(Bands { stored, kept, rgb })
}

/// The file with RGB declared as grey with further bands, which the decoder keeps. Of classic TIFF; None for BigTIFF.
fn as_grey_bands(bytes: &[u8]) -> Option<Vec<u8>> {
    const PHOTOMETRIC: u64 = 262;
    const BLACK_IS_ZERO: u8 = 1;
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, length: usize| {
        let digits = bytes.get(at..at.checked_add(length)?)?.iter().map(|&byte| u64::from(byte));
        let joined = |sum: u64, digit: u64| sum << 8 | digit;
        Some(if big_endian { digits.fold(0, joined) } else { digits.rev().fold(0, joined) })
    };
    if number(2, 2)? != 42 {
        return None;
    }
    let directory = usize::try_from(number(4, 4)?).ok()?;
    let entries = (0..number(directory, 2)? as usize).map(|entry| directory + 2 + 12 * entry);
    let entry = entries.into_iter().find(|&entry| number(entry, 2) == Some(PHOTOMETRIC))?;
    let mut changed = bytes.to_vec();
    let value = if big_endian { [0, BLACK_IS_ZERO] } else { [BLACK_IS_ZERO, 0] };
    changed.get_mut(entry + 8..entry + 10)?.copy_from_slice(&value);
    Some(changed)
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

fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Straight to grey or RGB. Size and orientation are read by `zune-jpeg` for both decoders; it converts CMYK and YCCK, which
/// libjpeg refuses.
// zune 9, jpeg-decoder 24, turbojpeg 7-9 us per 32 px JPEG; 0.73, 0.94, 0.56 ms at 500x375. turbojpeg needs cmake and nasm;
// mozjpeg is the same decoder built by a C compiler alone, without SIMD.
fn decode_jpeg(bytes: &[u8], Decoding { channels, jpeg }: Decoding) -> Result<Image, String> {
    if !jpeg_is_whole(bytes) {
        return Err("the JPEG data is cut short".into());
    }
    let options = DecoderOptions::default().set_max_width(1 << 16).set_max_height(1 << 16);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| format!("not a readable JPEG: {error}"))?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG without dimensions")?;
    check_size(width as u64, height as u64)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let want = if grey && channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    if jpeg != Jpeg::Zune && matches!(decoder.input_colorspace(), Some(ColorSpace::CMYK | ColorSpace::YCCK)) {
        return Err(
            "the JPEG is CMYK, which libjpeg does not convert to RGB; transform.jpeg = \"zune\" does".into(),
        );
    }
    let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(want));
    let data = match jpeg {
        Jpeg::Zune => decoder.decode().map_err(|error| error.to_string()),
        Jpeg::Libjpeg => by_libjpeg(bytes, want, DctMethod::IntegerSlow),
        Jpeg::LibjpegFast => by_libjpeg(bytes, want, DctMethod::IntegerFast),
    };
    let data = data.map_err(|error| format!("damaged JPEG: {error}"))?;
    let found = if want == ColorSpace::Luma { 1 } else { 3 };
    if data.len() != width * height * found {
        return Err(format!("damaged JPEG: {} bytes for {width}x{height} pixels", data.len()));
    }
    Ok(upright(Image::new(width, height, found, data), orientation))
}

/// Pixels of a whole JPEG, chroma upsampled by the triangle filter ("fancy upsampling").
fn by_libjpeg(bytes: &[u8], want: ColorSpace, method: DctMethod) -> Result<Vec<u8>, String> {
    let decode = || {
        let mut decoder = Decompress::new_mem(bytes)?;
        decoder.dct_method(method);
        decoder.do_fancy_upsampling(true);
        let mut rows = if want == ColorSpace::Luma { decoder.grayscale()? } else { decoder.rgb()? };
        let pixels = rows.read_scanlines::<u8>()?;
        rows.finish()?;
        Ok::<_, std::io::Error>(pixels)
    };
    // The crate reports errors of libjpeg by unwinding with their message, without the panic hook.
    let found = catch_unwind(AssertUnwindSafe(decode)).map_err(|cause| {
        cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "libjpeg gave up without a message".into())
    })?;
    found.map_err(|error| error.to_string())
}

/// Whether the end-of-image marker comes after the start of the pixel data; a thumbnail inside the metadata has one too.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()) {
        if marker == 0xda {
            return bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]);
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    false
}

fn decode_other(bytes: &[u8], channels: usize) -> Result<Image, String> {
    let format = image::guess_format(bytes).map_err(|_| match bytes.len() {
        0 => "the file is empty".to_owned(),
        _ => "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM image".to_owned(),
    })?;
    if let Some(bands) = bands(bytes) {
        return decode_bands(bytes, &bands);
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

/// A TIFF of any number of bands, 8 or 16 bits each, interleaved.
fn decode_bands(bytes: &[u8], bands: &Bands) -> Result<Image, String> {
    let wrong = |error: tiff::TiffError| error.to_string();
    let all = if bands.rgb {
        Some(as_grey_bands(bytes).ok_or("a BigTIFF of RGB with further bands")?)
    } else {
        None
    };
    let mut decoder =
        tiff::decoder::Decoder::new(Cursor::new(all.as_deref().unwrap_or(bytes))).map_err(wrong)?;
    let (width, height) = decoder.dimensions().map_err(wrong)?;
    check_size(u64::from(width) * bands.stored as u64, height.into())?;
    let turned = decoder.find_tag(Tag::Orientation).map_err(wrong)?.and_then(|value| value.into_u16().ok());
    let orientation = turned.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    let data = match decoder.read_image().map_err(wrong)? {
        DecodingResult::U8(data) => data,
        DecodingResult::U16(data) => {
            data.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect()
        }
        _ => return Err("bands of other than 8 or 16 bits".into()),
    };
    let (width, height) = (width as usize, height as usize);
    if data.len() != width * height * bands.stored {
        let reason = format!("{} values for {width}x{height} pixels of {} bands", data.len(), bands.stored);
        return Err(reason + " (planar TIFFs are not read)");
    }
    let data = match bands.stored == bands.kept {
        true => data,
        false => data.chunks_exact(bands.stored).flat_map(|pixel| &pixel[..bands.kept]).copied().collect(),
    };
    Ok(upright(Image::new(width, height, bands.kept, data), orientation))
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
