//! TIFF of cameras, scanners, GDAL and ImageJ: any number of bands, integers and floats, palettes, pages.
//!
//! | file | image |
//! | --- | --- |
//! | grey, RGB | 1, 3 channels |
//! | other numbers of bands; RGB with bands beyond alpha | all bands but a last one that is alpha |
//! | palette, YCbCr | RGB |
//! | pages that are marked as reduced copies or masks | left out |
//! | further single-band pages with the size and type of the first | a stack: one channel each |
//! | other further pages | left out, with a note |
//!
//! The last two rows are `data.pages = "auto"`; for the other rules see [`Pages`].

use std::io::Cursor;

use image::metadata::Orientation;
use tiff::{
    TiffError,
    decoder::{BufferLayoutPreference, Decoder, DecodingResult, Limits},
    tags::Tag,
};

use super::{
    Decoding, MAX_BYTES, Pages, alpha_left_out, check_size,
    raster::{Raster, Values, each_type, same_type},
    varies,
};

/// Maximal number of pages that are read.
const MAX_PAGES: usize = 4096;

const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;
const YCBCR: u16 = 6;

type Reader<'a> = Decoder<Cursor<&'a [u8]>>;

/// Classic TIFF or BigTIFF, in either byte order.
pub(super) fn is_tiff(bytes: &[u8]) -> bool {
    [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|start| bytes.starts_with(*start))
}

/// Channels of the image, or only of page `page`; `None` for unreadable files.
pub(super) fn channels(bytes: &[u8], page: Option<usize>) -> Option<usize> {
    let mut reader = open(bytes).ok()?;
    let used = Used::of(&mut reader, Pages::Auto, page).ok()?.pages;
    reader.seek_to_image(used[0]).ok()?;
    let page = Page::of(&mut reader).ok()?;
    Some(if matches!(page.photometric, PALETTE | YCBCR | CMYK) { 3 } else { page.kept * used.len() })
}

/// Numbers, from 0, of the pages that are neither reduced copies nor masks.
pub(super) fn full_size_pages(bytes: &[u8]) -> Result<Vec<usize>, String> {
    let mut reader = open(bytes).map_err(reason)?;
    let (pages, is_whole) = full_size(&mut reader).map_err(reason)?;
    if is_whole { Ok(pages.into_iter().map(|(at, _)| at).collect()) } else { Err(too_many()) }
}

/// CMYK files are left to the `image` crate, which converts them.
pub(super) fn is_cmyk(bytes: &[u8]) -> bool {
    open(bytes)
        .ok()
        .and_then(|mut reader| Page::of(&mut reader).ok())
        .is_some_and(|page| page.photometric == CMYK)
}

/// # Errors
/// Pages that `rule` does not allow.
pub(super) fn check_pages(bytes: &[u8], rule: Pages) -> Result<(), String> {
    if rule == Pages::Auto {
        return Ok(());
    }
    Used::of(&mut open(bytes).map_err(reason)?, rule, None).map(drop)
}

/// Decodes the whole file, or only page `page`. Alpha is kept if `how.channels` includes it.
pub(super) fn decode(bytes: &[u8], how: &Decoding, page: Option<usize>) -> Result<Raster, String> {
    let mut reader = open(bytes).map_err(reason)?;
    let used = Used::of(&mut reader, how.pages, page)?;
    reader.seek_to_image(used.pages[0]).map_err(reason)?;
    let first = Page::of(&mut reader).map_err(reason)?;
    let no_data = reader.get_tag_ascii_string(Tag::GdalNodata).ok();
    let values = u64::from(first.width) * (first.stored * used.pages.len()) as u64;
    check_size(values, first.height.into())?;
    let mut rasters = Vec::new();
    for &at in &used.pages {
        reader.seek_to_image(at).map_err(reason)?;
        let mut page = Page::of(&mut reader).map_err(reason)?;
        if page.photometric == CMYK {
            return Err(format!("page {at} is CMYK, which is supported only in files of one page"));
        }
        if page.stored == how.channels {
            page.kept = how.channels;
        }
        rasters.push(page.read(&mut reader, (bytes, at))?);
    }
    let raster = stacked(rasters)?;
    let no_data = no_data.and_then(|text| text.trim_matches(['\0', ' ']).parse().ok());
    let no_data = no_data.map(|number| as_stored(number, raster.kind));
    Ok(Raster { no_data, ..raster }.with_note(used.note).upright(first.orientation))
}

/// `number` as a pixel of type `kind` holds it. Writers shorten the digits of the lowest float, or declare that of f64.
fn as_stored(number: f64, kind: &str) -> f64 {
    let limit = if kind == "float32" { f64::from(f32::MAX) } else { f64::MAX };
    let number = number.clamp(-limit, limit);
    if kind == "float32" { f64::from(number as f32) } else { number }
}

/// Raises the decoder's limits to the largest image; sizes are checked before decoding.
fn open(bytes: &[u8]) -> Result<Reader<'_>, TiffError> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_BYTES as usize;
    limits.intermediate_buffer_size = MAX_BYTES as usize;
    Ok(Decoder::new(Cursor::new(bytes))?.with_limits(limits))
}

fn reason(error: TiffError) -> String {
    error.to_string()
}

/// Pages that are neither reduced copies nor masks, with their numbers in the file; `false` if the file has more than
/// [`MAX_PAGES`].
fn full_size(reader: &mut Reader<'_>) -> Result<(Vec<(usize, Page)>, bool), TiffError> {
    let mut found: Vec<(usize, Page)> = Vec::new();
    let mut count = 1;
    loop {
        let page = Page::of(reader)?;
        if !page.is_copy_or_mask {
            found.push((count - 1, page));
        }
        if !reader.more_images() || count == MAX_PAGES {
            return Ok((found, !reader.more_images()));
        }
        reader.next_image()?;
        count += 1;
    }
}

fn too_many() -> String {
    format!("it has more than {MAX_PAGES} pages")
}

struct Used {
    /// At least one; several are a stack.
    pages: Vec<usize>,
    note: Option<String>,
}

impl Used {
    fn of(reader: &mut Reader<'_>, rule: Pages, page: Option<usize>) -> Result<Self, String> {
        if let Some(page) = page {
            return Ok(Self { pages: vec![page], note: None });
        }
        let (found, is_whole) = full_size(reader).map_err(reason)?;
        if !is_whole && rule != Pages::Auto {
            return Err(too_many());
        }
        let Some((_, first)) = found.first() else { return Ok(Self { pages: vec![0], note: None }) };
        let is_stack = first.stored == 1 && first.photometric != PALETTE;
        let belongs = |(at, page): &(usize, Page)| *at == found[0].0 || is_stack && page.matches(first);
        if let Some(other) = found.iter().find(|&page| !belongs(page)).filter(|_| rule == Pages::Channels) {
            return Err(not_channels(&found, other));
        }
        if rule == Pages::Images && found.len() > 1 {
            return Err(format!(
                "it holds {} pages; with data.pages = images a file of several pages must be called .tif or .tiff",
                found.len()
            ));
        }
        let pages: Vec<usize> = found.iter().filter(|&page| belongs(page)).map(|(at, _)| *at).collect();
        let note = match (found.len() - pages.len(), pages.len()) {
            (0, 1) => None,
            (0, pages) => Some(format!("{pages} pages are read as channels (data.pages = {rule})")),
            (others, _) => {
                Some(format!("{others} of {} pages are not used (data.pages = {rule})", found.len()))
            }
        };
        Ok(Self { pages, note })
    }
}

fn not_channels(found: &[(usize, Page)], (at, page): &(usize, Page)) -> String {
    let (first_at, first) = &found[0];
    let (pages, page, first) = (found.len(), page.layout(), first.layout());
    format!(
        "data.pages = channels: expected pages of one band and one size and type, its {pages} pages differ: page {first_at} \
         is {first}, page {at} is {page}"
    )
}

struct Page {
    width: u32,
    height: u32,
    photometric: u16,
    bits: u16,
    /// 1 = unsigned, 2 = signed, 3 = floating point.
    format: u16,
    stored: usize,
    /// Bands without alpha, which is the last one.
    kept: usize,
    /// A reduced copy of another page, or a transparency mask (NewSubfileType, bits 0 and 2).
    is_copy_or_mask: bool,
    orientation: Option<Orientation>,
}

impl Page {
    fn of(reader: &mut Reader<'_>) -> Result<Self, TiffError> {
        let (width, height) = reader.dimensions()?;
        let mut number = |tag| {
            Ok::<_, TiffError>(reader.find_tag_unsigned_vec::<u16>(tag)?.and_then(|v| v.first().copied()))
        };
        let stored = usize::from(number(Tag::SamplesPerPixel)?.unwrap_or(1));
        let bits = number(Tag::BitsPerSample)?.unwrap_or(1);
        let format = number(Tag::SampleFormat)?.unwrap_or(1);
        let photometric = number(Tag::PhotometricInterpretation)?.unwrap_or(BLACK_IS_ZERO);
        let orientation = number(Tag::Orientation)?.and_then(|turned| Orientation::from_exif(turned as u8));
        let subfile = reader.find_tag_unsigned::<u32>(Tag::NewSubfileType)?.unwrap_or(0);
        // TIFF 6.0, ExtraSamples: 1 and 2 are associated and unassociated alpha, 0 is any other band, such as near infrared.
        let extra = reader.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples)?;
        let alpha = stored > 1 && extra.is_some_and(|kinds| matches!(kinds.last(), Some(1 | 2)));
        let kept = stored - usize::from(alpha);
        let is_copy_or_mask = subfile & 0b101 != 0;
        Ok(Self { width, height, photometric, bits, format, stored, kept, is_copy_or_mask, orientation })
    }

    fn layout(&self) -> String {
        let Self { width, height, stored, bits, photometric, .. } = self;
        let kind = if *photometric == PALETTE { " of a palette" } else { "" };
        format!("{width}x{height}, {stored} x {bits} bits{kind}")
    }

    /// Whether two pages can be channels of one image.
    fn matches(&self, other: &Self) -> bool {
        let layout =
            |page: &Self| (page.width, page.height, page.stored, page.bits, page.format, page.photometric);
        layout(self) == layout(other)
    }

    /// Reads this page, number `at` of the file, at which `reader` is positioned.
    fn read(&self, reader: &mut Reader<'_>, (bytes, at): (&[u8], usize)) -> Result<Raster, String> {
        // The decoder refuses palettes and drops further bands of RGB. Declared as grey, all bands are returned as stored.
        let as_stored = self.photometric == PALETTE || self.photometric == RGB && self.kept > 3;
        let (data, layout) = if as_stored {
            let directory = reader.ifd_pointer().ok_or("a TIFF without a directory")?.0;
            let grey = with_photometric(bytes, directory, BLACK_IS_ZERO).ok_or("a damaged directory")?;
            let mut reader = open(&grey).map_err(reason)?;
            reader.seek_to_image(at).map_err(reason)?;
            samples(&mut reader)?
        } else {
            samples(reader)?
        };
        let (values, kind) = exact(data);
        let values = interleaved(self.unpacked(values, &layout), layout.planes);
        let (width, height) = (self.width as usize, self.height as usize);
        let stored = values.len() / (width * height);
        if stored < self.kept.min(3) || !values.len().is_multiple_of(width * height) {
            return Err(format!(
                "{} values for {width}x{height} pixels of {} bands",
                values.len(),
                self.stored
            ));
        }
        let is_alpha_lost =
            self.kept < stored && each_type!(&values, data => varies(data, stored, stored - 1));
        let (values, kept) = match self.photometric {
            PALETTE => (through_palette(reader, &values)?, 3),
            YCBCR => (rgb_of_ycbcr(&values, stored)?, 3),
            _ => (first_bands(values, stored, self.kept), self.kept),
        };
        let kind = if self.photometric == PALETTE { "uint8" } else { kind };
        let raster = Raster::new((width, height), kept, values, kind);
        Ok(raster.with_note(is_alpha_lost.then(|| alpha_left_out(self.stored))))
    }

    /// Unpacks values of fewer than 8 bits to bytes, grey ones scaled to 0 to 255.
    fn unpacked(&self, values: Values, layout: &BufferLayoutPreference) -> Values {
        let Values::U8(packed) = values else { return values };
        if self.bits >= 8 {
            return Values::U8(packed);
        }
        let bits = usize::from(self.bits);
        let levels = (1u16 << bits) - 1;
        let bands = if layout.planes > 1 { 1 } else { self.stored };
        let row = layout.row_stride.map_or(packed.len(), std::num::NonZeroUsize::get);
        let value = |row: &[u8], at: usize| {
            let byte = row[at * bits / 8];
            u16::from(byte) >> (8 - bits - at * bits % 8) & levels
        };
        let scaled = |value: u16| if self.photometric == PALETTE { value } else { value * 255 / levels };
        let rows = packed.chunks_exact(row.max(1));
        let in_row = (self.width as usize * bands).min(row * 8 / bits);
        Values::U8(rows.flat_map(|row| (0..in_row).map(move |at| scaled(value(row, at)) as u8)).collect())
    }
}

fn samples(reader: &mut Reader<'_>) -> Result<(DecodingResult, BufferLayoutPreference), String> {
    let mut data = DecodingResult::U8(Vec::new());
    let layout = reader.read_image_to_buffer(&mut data).map_err(reason)?;
    Ok((data, layout))
}

/// The samples in the smallest type of [`Values`] that represents them, and the name of the stored type.
fn exact(data: DecodingResult) -> (Values, &'static str) {
    match data {
        DecodingResult::U8(data) => (Values::U8(data), "uint8"),
        DecodingResult::U16(data) => (Values::U16(data), "uint16"),
        DecodingResult::I8(data) => (Values::F32(data.into_iter().map(f32::from).collect()), "int8"),
        DecodingResult::I16(data) => (Values::F32(data.into_iter().map(f32::from).collect()), "int16"),
        DecodingResult::F16(data) => (Values::F32(data.into_iter().map(f32::from).collect()), "float16"),
        DecodingResult::F32(data) => (Values::F32(data), "float32"),
        DecodingResult::F64(data) => (Values::F64(data), "float64"),
        DecodingResult::U32(data) => (Values::F64(data.into_iter().map(f64::from).collect()), "uint32"),
        DecodingResult::I32(data) => (Values::F64(data.into_iter().map(f64::from).collect()), "int32"),
        DecodingResult::U64(data) => {
            (Values::F64(data.into_iter().map(|value| value as f64).collect()), "uint64")
        }
        DecodingResult::I64(data) => {
            (Values::F64(data.into_iter().map(|value| value as f64).collect()), "int64")
        }
    }
}

/// Planes one after another to bands side by side.
fn interleaved(values: Values, planes: usize) -> Values {
    fn weave<T: Copy>(data: &[T], planes: usize) -> Vec<T> {
        let area = data.len() / planes;
        (0..area).flat_map(|at| (0..planes).map(move |plane| data[plane * area + at])).collect()
    }
    if planes < 2 { values } else { same_type!(&values, data => weave(data, planes)) }
}

fn first_bands(values: Values, stored: usize, kept: usize) -> Values {
    fn keep<T: Copy>(data: &[T], stored: usize, kept: usize) -> Vec<T> {
        data.chunks_exact(stored).flat_map(|pixel| &pixel[..kept]).copied().collect()
    }
    if stored == kept { values } else { same_type!(&values, data => keep(data, stored, kept)) }
}

/// Replaces palette indices by RGB.
fn through_palette(reader: &mut Reader<'_>, values: &Values) -> Result<Values, String> {
    let map = reader.get_tag_u16_vec(Tag::ColorMap).map_err(reason)?;
    let entries = map.len() / 3;
    // Some writers store 8-bit colours in the 16-bit entries; libtiff uses the same heuristic.
    let is_8_bit = map.iter().all(|&value| value < 256);
    let level = |value: u16| if is_8_bit { value as u8 } else { ((u32::from(value) + 128) / 257) as u8 };
    let indices: Vec<usize> = match values {
        Values::U8(data) => data.iter().map(|&index| index.into()).collect(),
        Values::U16(data) => data.iter().map(|&index| index.into()).collect(),
        _ => return Err("a palette with indices that are not unsigned integers".into()),
    };
    if let Some(index) = indices.iter().find(|&&index| index >= entries) {
        return Err(format!("index {index} into a palette of {entries} colours"));
    }
    let colour = |&index: &usize| [0, 1, 2].map(|channel| level(map[channel * entries + index]));
    Ok(Values::U8(indices.iter().flat_map(colour).collect()))
}

/// By the JPEG convention (full range, ITU-R BT.601), the default of TIFF.
fn rgb_of_ycbcr(values: &Values, stored: usize) -> Result<Values, String> {
    let Values::U8(data) = values else { return Err("YCbCr of other than 8 bits".into()) };
    if stored < 3 {
        return Err(format!("YCbCr of {stored} bands"));
    }
    let rgb = |pixel: &[u8]| {
        let [luma, blue, red] = [0, 1, 2].map(|band| f32::from(pixel[band]));
        let (blue, red) = (blue - 128.0, red - 128.0);
        let rgb = [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue];
        // The cast saturates.
        rgb.map(|value| (value + 0.5) as u8)
    };
    Ok(Values::U8(data.chunks_exact(stored).flat_map(rgb).collect()))
}

/// Combines pages of one size as channels of one image.
fn stacked(mut pages: Vec<Raster>) -> Result<Raster, String> {
    let count = pages.len();
    let mut first = pages.remove(0);
    if count == 1 {
        return Ok(first);
    }
    for page in pages {
        let appended = match (&mut first.values, page.values) {
            (Values::U8(all), Values::U8(page)) => extended(all, &page),
            (Values::U16(all), Values::U16(page)) => extended(all, &page),
            (Values::F32(all), Values::F32(page)) => extended(all, &page),
            (Values::F64(all), Values::F64(page)) => extended(all, &page),
            _ => false,
        };
        if !appended {
            return Err("pages of different types".into());
        }
    }
    Ok(Raster { channels: count, values: interleaved(first.values, count), ..first })
}

fn extended<T: Copy>(all: &mut Vec<T>, page: &[T]) -> bool {
    all.extend_from_slice(page);
    true
}

/// The file with another colour space in the directory at byte `directory`; classic TIFF and BigTIFF.
fn with_photometric(bytes: &[u8], directory: u64, photometric: u16) -> Option<Vec<u8>> {
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, length: usize| {
        let digits = bytes.get(at..at.checked_add(length)?)?.iter().map(|&byte| u64::from(byte));
        let joined = |sum: u64, digit: u64| sum << 8 | digit;
        Some(if big_endian { digits.fold(0, joined) } else { digits.rev().fold(0, joined) })
    };
    // Size of the entry count, size of an entry, offset of the value within an entry.
    let (count, size, value) = if number(2, 2)? == 43 { (8, 20, 12) } else { (2, 12, 8) };
    let directory = usize::try_from(directory).ok()?;
    let entries = usize::try_from(number(directory, count)?).ok()?;
    let place = |entry: usize| Some(directory + count + entry.checked_mul(size)?);
    let tag = u64::from(Tag::PhotometricInterpretation.to_u16());
    let entry =
        (0..entries.min(bytes.len())).map_while(place).find(|&entry| number(entry, 2) == Some(tag))?;
    let mut changed = bytes.to_vec();
    let digits = if big_endian { photometric.to_be_bytes() } else { photometric.to_le_bytes() };
    changed.get_mut(entry + value..entry + value + 2)?.copy_from_slice(&digits);
    Some(changed)
}
