//! JPEG with the choice of three decoders, and detection of truncated files.

mod layout;
mod libjpeg;

use image::metadata::Orientation;
use mozjpeg::{
    ColorSpace::{JCS_GRAYSCALE, JCS_RGB},
    DctMethod,
};
use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::{JpegDecoder, errors::DecodeErrors};

use self::{layout::Layout, libjpeg::Failure};
use super::{
    Jpeg, check_size,
    raster::{Raster, Values},
};
use crate::image::spare_bytes;

pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Decodes to grey or RGB. `zune-jpeg` reads size and orientation for all decoders; it also converts CMYK and YCCK, which
/// libjpeg refuses.
// zune 9, jpeg-decoder 24, turbojpeg 7-9 us per 32 px JPEG; 0.73, 0.94, 0.56 ms at 500x375. turbojpeg needs cmake and nasm;
// mozjpeg is the same decoder built by a C compiler alone, without SIMD.
pub(super) fn decode(bytes: &[u8], channels: usize, jpeg: Jpeg) -> Result<Raster, String> {
    let layout = Layout::of(bytes);
    if layout.is_none() && !jpeg_is_whole(bytes) {
        return Err("the JPEG data is cut short".into());
    }
    let guarded = layout.as_ref().filter(|_| jpeg == Jpeg::Zune).map(|layout| layout.guarded(bytes));
    let mut decoder =
        JpegDecoder::new_with_options(ZCursor::new(guarded.as_deref().unwrap_or(bytes)), options());
    decoder.decode_headers().map_err(|error| format!("not a readable JPEG: {error}"))?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG without dimensions")?;
    check_size(width as u64, height as u64)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let target = if grey && channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    if jpeg != Jpeg::Zune && matches!(decoder.input_colorspace(), Some(ColorSpace::CMYK | ColorSpace::YCCK)) {
        return Err(
            "the JPEG is CMYK, which libjpeg does not convert to RGB; transform.jpeg = \"zune\" does".into(),
        );
    }
    if layout.as_ref().is_some_and(|layout| !layout.complete) {
        return Err("damaged JPEG: it lacks scans".into());
    }
    let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
    let data = match jpeg {
        Jpeg::Zune => by_zune(&mut decoder, bytes, target, layout.as_ref()),
        Jpeg::Libjpeg => by_libjpeg(bytes, target, DctMethod::IntegerSlow),
        Jpeg::LibjpegFast => by_libjpeg(bytes, target, DctMethod::IntegerFast),
    };
    let data = data.map_err(|error| format!("damaged JPEG: {error}"))?;
    if let Some(layout) = layout.filter(|layout| ends_in_foreign_zeros(bytes, layout)) {
        return Err(format!("damaged JPEG: its last {} bytes of pixel data are zeros", layout.zeros));
    }
    let found = if target == ColorSpace::Luma { 1 } else { 3 };
    if data.len() != width * height * found {
        return Err(format!("damaged JPEG: {} bytes for {width}x{height} pixels", data.len()));
    }
    Ok(Raster::new((width, height), found, Values::U8(data), "uint8").upright(orientation))
}

fn options() -> DecoderOptions {
    DecoderOptions::default().set_max_width(1 << 16).set_max_height(1 << 16)
}

/// `zune-jpeg` silently fills in missing data. If [`Layout`] guards the data, its strict mode reports that as an error. Files that
/// it refuses (including some valid ones), sequential ones of several scans, and files that end in zeros (which may hide restart
/// markers) are checked by libjpeg, then decoded leniently.
fn by_zune(
    decoder: &mut JpegDecoder<ZCursor<&[u8]>>,
    bytes: &[u8],
    target: ColorSpace,
    layout: Option<&Layout>,
) -> Result<Vec<u8>, String> {
    let options = decoder.options().jpeg_set_out_colorspace(target);
    decoder.set_options(options.set_strict_mode(layout.is_some()));
    let is_guarded = layout.is_some_and(|layout| !layout.earlier_scans);
    let strict = if is_guarded { whole(decoder) } else { decoder.decode() };
    if strict.is_ok() && layout.is_some_and(|layout| is_guarded && layout.zeros < 2) {
        return strict.map_err(|error| error.to_string());
    }
    match libjpeg::check(bytes) {
        Err(Failure::Damage(reason)) => return Err(reason),
        // Neither reads the markers.
        Err(Failure::Other(reason)) if layout.is_none() => return Err(reason),
        _ => {}
    }
    strict
        .or_else(|_| JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode())
        .map_err(|error| error.to_string())
}

/// In strict mode, in which every pixel is written or an error is returned; the fuzz target `image` checks that.
fn whole(decoder: &mut JpegDecoder<ZCursor<&[u8]>>) -> Result<Vec<u8>, DecodeErrors> {
    let mut pixels = spare_bytes(decoder.output_buffer_size().unwrap_or_default());
    decoder.decode_into(&mut pixels)?;
    Ok(pixels)
}

fn by_libjpeg(bytes: &[u8], target: ColorSpace, method: DctMethod) -> Result<Vec<u8>, String> {
    let target = if target == ColorSpace::Luma { JCS_GRAYSCALE } else { JCS_RGB };
    libjpeg::decode(bytes, target, method).map_err(Failure::reason)
}

/// Whether zeros replaced the last pixel data: more than one zero byte was read as codes, and at least one was not. Padding is
/// not read at all, and flat areas coded as zeros are read completely.
fn ends_in_foreign_zeros(bytes: &[u8], layout: &Layout) -> bool {
    let is_whole_without = |bytes_lost| libjpeg::check(&layout.without(bytes, bytes_lost)).is_ok();
    layout.zeros > 1 && is_whole_without(1) && !is_whole_without(layout.zeros - 1)
}

/// Whether an end-of-image marker follows the start of the pixel data. One before may be that of a thumbnail.
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
