//! TIFF of any number of bands.

use std::io::Cursor;

use image::{ImageFormat, metadata::Orientation};
use tiff::{ColorType, decoder::DecodingResult, tags::Tag};

use super::{check_size, upright};
use crate::Image;

/// Bands of a multi-band TIFF.
pub(super) struct Bands {
    stored: usize,
    /// Without alpha, which comes last.
    pub(super) kept: usize,
    /// RGB with further bands, of which the decoder would keep three.
    rgb: bool,
}

pub(super) fn bands(bytes: &[u8]) -> Option<Bands> {
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

/// A TIFF of any number of bands, 8 or 16 bits each, interleaved.
pub(super) fn decode(bytes: &[u8], bands: &Bands) -> Result<Image, String> {
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
