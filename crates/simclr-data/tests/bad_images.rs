//! Images that are unusual or hostile: each gives the right picture or one clear error, never a panic.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};
use proptest::prelude::*;
use simclr_data::{
    DataError, Image,
    decode::{Decoding, Jpeg, MAX_PIXELS, decode},
};
use tiff::encoder::{TiffEncoder, colortype, colortype::ColorType};

const WIDTH: u32 = 16;
const HEIGHT: u32 = 12;

fn fixture(name: &str) -> Vec<u8> {
    fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap()
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn reason(bytes: &[u8], channels: usize) -> String {
    match decode("the/file.jpg", bytes, channels) {
        Err(DataError::Decode { name, reason }) if name == "the/file.jpg" => reason,
        other => panic!("expected a decode error, found {other:?}"),
    }
}

fn worst(found: &[u8], expected: &[u8]) -> u8 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// `reference/bad_images.py` wrote the images and PIL's reading of them.
#[test]
fn fixtures_look_as_pil_shows_them() {
    // JPEG decoders differ in the inverse transform and upsampling, WebP in upsampling: a few levels.
    let cases = [
        ("cmyk.jpg", 2),
        ("ycck.jpg", 4),
        ("progressive.jpg", 4),
        ("grey.jpg", 2),
        ("palette.png", 0),
        ("palette8.bmp", 0),
        ("lossy.webp", 2),
        ("cmyk8.tif", 2),
    ];
    for (name, tolerance) in cases {
        let image = decode(name, &fixture(name), 3).unwrap();
        assert_eq!((image.width, image.height, image.channels), (16, 12, 3), "{name}");
        let golden = fixture(&format!("{}.rgb", name.rsplit_once('.').unwrap().0));
        let worst = worst(&image.data, &golden);
        assert!(worst <= tolerance, "{name}: {worst} levels from PIL");
    }
}

/// Pillow reads through libjpeg-turbo.
#[test]
fn libjpeg_gives_the_bytes_of_pil() {
    let accurate = |channels: usize| Decoding { jpeg: Jpeg::Libjpeg, ..channels.into() };
    for name in ["progressive.jpg", "grey.jpg"] {
        let image = decode(name, &fixture(name), accurate(3)).unwrap();
        assert_eq!(image.data, fixture(&format!("{}.rgb", name.rsplit_once('.').unwrap().0)), "{name}");
    }
    let grey = decode("grey.jpg", &fixture("grey.jpg"), accurate(1)).unwrap();
    assert_eq!((grey.channels, grey.data.len()), (1, (WIDTH * HEIGHT) as usize));
    let turned = with_orientation(&fixture("progressive.jpg"), 6);
    assert_eq!(decode("turned", &turned, accurate(3)).unwrap().width, HEIGHT as usize);
    for name in ["cmyk.jpg", "ycck.jpg"] {
        let refused = decode(name, &fixture(name), accurate(3)).unwrap_err().to_string();
        assert!(refused.contains("transform.jpeg = \"zune\" does"), "{refused}");
    }
}

#[test]
fn grey_is_itself_and_luma_weighs_as_bt_601() {
    let grey = decode("grey.jpg", &fixture("grey.jpg"), 1).unwrap();
    let tripled = decode("grey.jpg", &fixture("grey.jpg"), 3).unwrap();
    assert_eq!(grey.data, tripled.data.iter().step_by(3).copied().collect::<Vec<_>>());
    for (pixel, expected) in
        [([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([255, 255, 255], 255)]
    {
        let png = encoded(&image::RgbImage::from_pixel(1, 1, image::Rgb(pixel)).into(), ImageFormat::Png);
        assert_eq!(decode("x", &png, 1).unwrap().data, [expected]);
    }
}

#[test]
fn alpha_is_dropped_not_blended() {
    let pixel = image::RgbaImage::from_pixel(2, 1, image::Rgba([200, 100, 50, 10]));
    let png = encoded(&pixel.into(), ImageFormat::Png);
    assert_eq!(decode("x", &png, 3).unwrap().data, [200, 100, 50, 200, 100, 50]);
    let pixel = image::GrayAlphaImage::from_pixel(1, 1, image::LumaA([90, 0]));
    let png = encoded(&pixel.into(), ImageFormat::Png);
    assert_eq!(decode("x", &png, 1).unwrap().data, [90]);
    assert_eq!(decode("x", &png, 3).unwrap().data, [90; 3]);
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let values = [0, 127, 129, 32_767, 32_896, 65_406, 65_407, 65_535];
    let rounded: Vec<u8> = values.iter().map(|&value| (f64::from(value) / 257.0).round() as u8).collect();
    let wide = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(8, 1, values.to_vec()).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let bytes = encoded(&DynamicImage::ImageLuma16(wide.clone()), format);
        assert_eq!(decode("x", &bytes, 1).unwrap().data, rounded, "{format:?}");
    }
}

#[test]
fn sixteen_bit_cmyk_tiff_shows_its_colours() {
    let mut bytes = Cursor::new(Vec::new());
    // White, cyan, half black, full black.
    let pixels: [u16; 16] = [0, 0, 0, 0, 65_535, 0, 0, 0, 0, 0, 0, 32_768, 0, 0, 0, 65_535];
    TiffEncoder::new(&mut bytes).unwrap().write_image::<colortype::CMYK16>(2, 2, &pixels).unwrap();
    let image = decode("x", &bytes.into_inner(), 3).unwrap();
    assert!(
        worst(&image.data, &[255, 255, 255, 0, 255, 255, 127, 127, 127, 0, 0, 0]) <= 1,
        "{:?}",
        image.data
    );
}

/// TIFF of five bands, as sensors give them.
struct FiveBands;

impl ColorType for FiveBands {
    type Inner = u8;
    const TIFF_VALUE: tiff::tags::PhotometricInterpretation =
        tiff::tags::PhotometricInterpretation::BlackIsZero;
    const BITS_PER_SAMPLE: &'static [u16] = &[8; 5];
    const SAMPLE_FORMAT: &'static [tiff::tags::SampleFormat] = &[tiff::tags::SampleFormat::Uint; 5];

    fn horizontal_predict(row: &[u8], result: &mut Vec<u8>) {
        result.extend_from_slice(row);
    }
}

#[test]
fn bands_stay_bands_and_other_numbers_are_errors() {
    let mut bytes = Cursor::new(Vec::new());
    let pixels: Vec<u8> = (0..30).collect();
    TiffEncoder::new(&mut bytes).unwrap().write_image::<FiveBands>(3, 2, &pixels).unwrap();
    let bytes = bytes.into_inner();
    assert_eq!(decode("x", &bytes, 5).unwrap(), Image::new(3, 2, 5, pixels));
    assert_eq!(simclr_data::decode::native_channels(&bytes), 5);
    assert_eq!(reason(&bytes, 3), "it has 5 channels, expected 3");
    assert_eq!(reason(&fixture("grey.jpg"), 5), "it has 3 channels, expected 5");
}

/// RGB and a fourth sample of 8 or 16 bits, as aerial images have it.
struct Four<T>(std::marker::PhantomData<T>);

macro_rules! four {
    ($kind:ty, $bits:literal) => {
        impl ColorType for Four<$kind> {
            type Inner = $kind;
            const TIFF_VALUE: tiff::tags::PhotometricInterpretation =
                tiff::tags::PhotometricInterpretation::RGB;
            const BITS_PER_SAMPLE: &'static [u16] = &[$bits; 4];
            const SAMPLE_FORMAT: &'static [tiff::tags::SampleFormat] = &[tiff::tags::SampleFormat::Uint; 4];

            fn horizontal_predict(row: &[$kind], result: &mut Vec<$kind>) {
                result.extend_from_slice(row);
            }
        }
    };
}
four!(u8, 8);
four!(u16, 16);

/// The fourth sample is near infrared where the file does not call it alpha (TIFF 6.0, ExtraSamples).
#[test]
fn a_fourth_band_is_kept_and_alpha_is_not() {
    let pixels: Vec<u8> = (0..24).collect();
    let wide: Vec<u16> = pixels.iter().map(|&value| u16::from(value) * 257).collect();
    let file = |extra: u16, deep: bool| {
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
        if deep {
            let mut image = encoder.new_image::<Four<u16>>(3, 2).unwrap();
            image.encoder().write_tag(tiff::tags::Tag::ExtraSamples, extra).unwrap();
            image.write_data(&wide).unwrap();
        } else {
            let mut image = encoder.new_image::<Four<u8>>(3, 2).unwrap();
            image.encoder().write_tag(tiff::tags::Tag::ExtraSamples, extra).unwrap();
            image.write_data(&pixels).unwrap();
        }
        bytes.into_inner()
    };
    for deep in [false, true] {
        let infrared = file(0, deep);
        assert_eq!(simclr_data::decode::native_channels(&infrared), 4, "{deep}");
        assert_eq!(decode("x", &infrared, 4).unwrap(), Image::new(3, 2, 4, pixels.clone()), "{deep}");
        assert_eq!(reason(&infrared, 3), "it has 4 channels, expected 3");
        let alpha = file(2, deep);
        assert_eq!(simclr_data::decode::native_channels(&alpha), 3, "{deep}");
        let colours: Vec<u8> = pixels.chunks(4).flat_map(|pixel| &pixel[..3]).copied().collect();
        assert_eq!(decode("x", &alpha, 3).unwrap().data, colours, "{deep}");
    }
}

/// An APP1 segment with the orientation alone, put behind the start marker of a JPEG.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
    exif[25] = orientation;
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend([0xff, 0xe1]);
    bytes.extend((exif.len() as u16 + 2).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&jpeg[2..]);
    bytes
}

/// Where EXIF (CIPA DC-008, tag 274) says row 0 and column 0 of the stored image are to be seen.
#[test]
fn all_eight_orientations_are_made_upright() {
    let stored = decode("grey.jpg", &fixture("grey.jpg"), 1).unwrap();
    let at = |image: &Image, y: usize, x: usize| image.data[y * image.width + x];
    let (w, h) = (stored.width, stored.height);
    for orientation in 1..=8 {
        let image = decode("x", &with_orientation(&fixture("grey.jpg"), orientation), 1).unwrap();
        let size = if orientation >= 5 { (h, w) } else { (w, h) };
        assert_eq!((image.width, image.height), size, "orientation {orientation}");
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let (row, column) = match orientation {
                1 => (y, x),                 // row 0 top, column 0 left
                2 => (y, w - 1 - x),         // top, right
                3 => (h - 1 - y, w - 1 - x), // bottom, right
                4 => (h - 1 - y, x),         // bottom, left
                5 => (x, y),                 // left, top
                6 => (x, h - 1 - y),         // right, top
                7 => (w - 1 - x, h - 1 - y), // right, bottom
                _ => (w - 1 - x, y),         // left, bottom
            };
            assert_eq!(
                at(&image, row, column),
                at(&stored, y, x),
                "orientation {orientation}, row {y}, column {x}"
            );
        }
    }
    let unknown = decode("x", &with_orientation(&fixture("grey.jpg"), 9), 1).unwrap();
    assert_eq!(unknown, stored);
}

/// A PNG header of that size with a correct checksum, and nothing else of substance.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&[0; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

/// A JPEG whose frame header claims that size.
fn jpeg_of(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = fixture("grey.jpg");
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// A TIFF whose tags of width and height claim `side`.
fn tiff_of(side: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    TiffEncoder::new(&mut bytes).unwrap().write_image::<colortype::RGB8>(1, 1, &[1, 2, 3]).unwrap();
    let mut bytes = bytes.into_inner();
    let directory = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let entries = u16::from_le_bytes(bytes[directory..directory + 2].try_into().unwrap());
    for entry in (0..usize::from(entries)).map(|entry| directory + 2 + entry * 12) {
        if matches!(u16::from_le_bytes(bytes[entry..entry + 2].try_into().unwrap()), 256 | 257) {
            bytes[entry + 2..entry + 4].copy_from_slice(&4u16.to_le_bytes());
            bytes[entry + 8..entry + 12].copy_from_slice(&side.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn bombs_are_refused_by_their_headers() {
    const { assert!(100_000u64 * 100_000 > MAX_PIXELS) };
    for (kind, bytes) in [
        ("png", png_of(100_000, 100_000)),
        ("png, widest", png_of(0x7fff_ffff, 0x7fff_ffff)),
        ("jpeg", jpeg_of(65_535, 65_535)),
        ("tiff", tiff_of(100_000)),
    ] {
        let reason = reason(&bytes, 3);
        let clear =
            ["more than", "limit", "large", "big"].iter().any(|word| reason.to_lowercase().contains(word));
        assert!(clear, "{kind}: {reason}");
    }
}

#[test]
fn hostile_files_are_one_clear_error_each() {
    let (jpeg, progressive) = (fixture("cmyk.jpg"), fixture("progressive.jpg"));
    let png =
        encoded(&image::RgbImage::from_pixel(WIDTH, HEIGHT, image::Rgb([1, 2, 3])).into(), ImageFormat::Png);
    let mut flipped = png.clone();
    flipped[45] ^= 0x40;
    let mut no_frame = jpeg.clone();
    no_frame.drain(2..jpeg.len() - 2);
    let webp = fixture("lossy.webp");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("one byte", vec![0xff]),
        ("text", b"<html><body>404 not found</body></html>".to_vec()),
        ("gif", b"GIF89a\x01\0\x01\0\0\0\0;".to_vec()),
        ("zeros", vec![0; 4096]),
        ("jpeg, start alone", jpeg[..3].to_vec()),
        ("jpeg, start and end alone", no_frame),
        ("jpeg, half", jpeg[..jpeg.len() / 2].to_vec()),
        ("jpeg, end marker lost", jpeg[..jpeg.len() - 2].to_vec()),
        ("progressive jpeg, three quarters", progressive[..progressive.len() * 3 / 4].to_vec()),
        ("jpeg, no pixels", jpeg_of(0, 0)),
        ("png, half", png[..png.len() / 2].to_vec()),
        ("png, signature alone", png[..8].to_vec()),
        ("png, flipped bit", flipped),
        ("png, no pixels", png_of(0, 12)),
        ("webp, half", webp[..webp.len() / 2].to_vec()),
        ("bmp, half", fixture("palette8.bmp")[..200].to_vec()),
        ("tiff, half", fixture("cmyk8.tif")[..400].to_vec()),
        ("tiff, no pixels", tiff_of(0)),
        ("tiff, more pixels than can be counted", tiff_of(u32::MAX)),
    ];
    for (kind, bytes) in cases {
        let reason = reason(&bytes, 3);
        assert!(!reason.is_empty() && !reason.contains('\n'), "{kind}: {reason:?}");
    }
}

#[test]
fn content_counts_not_the_ending_and_one_pixel_is_an_image() {
    let png = encoded(&image::RgbImage::from_pixel(1, 1, image::Rgb([7, 8, 9])).into(), ImageFormat::Png);
    assert_eq!(decode("named.jpg", &png, 3).unwrap(), Image::new(1, 1, 3, vec![7, 8, 9]));
}

const DECODERS: [Jpeg; 3] = [Jpeg::Zune, Jpeg::Libjpeg, Jpeg::LibjpegFast];
const END: [u8; 2] = [0xff, 0xd9];

/// How a JPEG of [`written`] is made.
#[derive(Debug, Clone, Copy)]
struct DeferredView {
    picture: usize,
    size: (usize, usize),
    quality: f32,
    progressive: bool,
    own_codes: bool,
    /// Pixels to a chroma sample, across and down; `None` is a grey file.
    chroma: Option<(u8, u8)>,
}

/// Waves and noise; or that above a lower half of grey or white; or a ramp; or nothing but grey.
fn picture(kind: usize, (width, height): (usize, usize)) -> Vec<u8> {
    let mut noise = 7u32;
    let mut pixels = Vec::new();
    for (y, x, channel) in
        (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| (y, x, channel))))
    {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let wave = 60.0 * (x as f32 / 7.0 + channel as f32).sin() + 40.0 * (y as f32 / 5.0).cos();
        pixels.push(match kind {
            1 if y >= height / 2 => 128,
            2 if y >= height / 2 => 255,
            0..=2 => (120.0 + wave + (noise >> 28) as f32) as u8,
            3 => (x * 5) as u8,
            _ => 128,
        });
    }
    pixels
}

fn written(recipe: &DeferredView) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(recipe.size.0, recipe.size.1);
    encoder.set_fastest_defaults();
    match recipe.chroma {
        Some(pixels) => encoder.set_chroma_sampling_pixel_sizes(pixels, pixels),
        None => encoder.set_color_space(mozjpeg::ColorSpace::JCS_GRAYSCALE),
    }
    encoder.set_quality(recipe.quality);
    encoder.set_optimize_coding(recipe.own_codes);
    if recipe.progressive {
        encoder.set_progressive_mode();
    }
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(&picture(recipe.picture, recipe.size)).unwrap();
    encoder.finish().unwrap()
}

fn recipes() -> impl Iterator<Item = DeferredView> {
    let sizes = [(40, 40), (37, 51), (8, 8)];
    let chroma = [Some((1, 1)), Some((2, 1)), Some((2, 2)), None];
    (0..480).map(move |index| DeferredView {
        picture: index % 5,
        size: sizes[index / 5 % 3],
        chroma: chroma[index / 15 % 4],
        progressive: index / 60 % 2 == 1,
        own_codes: index / 120 % 2 == 1,
        quality: [40.0, 92.0][index / 240],
    })
}

/// Where the entropy-coded data of the first scan start.
fn data_start(jpeg: &[u8]) -> usize {
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + 2;
    scan + usize::from(u16::from_be_bytes([jpeg[scan], jpeg[scan + 1]]))
}

/// The pixels of a JPEG with its data from `at` on cut off, or replaced by zeros; `None` if it is refused.
fn without(jpeg: &[u8], at: usize, zeroed: bool, decoder: Jpeg) -> Option<Vec<u8>> {
    let mut damaged = jpeg[..at].to_vec();
    if zeroed {
        damaged.resize(jpeg.len() - 2, 0);
    }
    damaged.extend(END);
    match decode("x", &damaged, Decoding { jpeg: decoder, ..3.into() }) {
        Ok(image) => Some(image.data.to_vec()),
        Err(DataError::Decode { reason, .. }) => {
            assert!(!reason.is_empty());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn half_of_the_data_may_not_be_cut_off_or_zeroed() {
    for recipe in recipes().filter(|recipe| recipe.picture < 3 && recipe.size.0 > 8) {
        let jpeg = written(&recipe);
        let half = usize::midpoint(data_start(&jpeg), jpeg.len());
        for (decoder, zeroed) in DECODERS.into_iter().flat_map(|decoder| [(decoder, false), (decoder, true)])
        {
            let found = without(&jpeg, half, zeroed, decoder);
            assert!(found.is_none(), "{recipe:?}, {decoder:?}, zeroed: {zeroed}");
        }
    }
}

/// Zeros are codes too. Those that by chance end with the image cannot be recognised.
#[test]
fn zeros_in_the_place_of_data_are_found_but_for_chance() {
    let (mut tried, mut missed) = (0, 0);
    for recipe in recipes().step_by(7) {
        let jpeg = written(&recipe);
        let whole = decode("x", &jpeg, 3).unwrap().data;
        for at in (data_start(&jpeg)..jpeg.len() - 2 - 16).step_by(31) {
            let found = without(&jpeg, at, true, Jpeg::Zune);
            tried += 1;
            missed += usize::from(found.is_some_and(|found| whole != found));
        }
    }
    assert!(tried > 500 && missed * 100 <= tried, "{missed} of {tried}");
}

#[test]
fn a_scan_may_not_lack() {
    for chroma in [Some((2, 2)), None] {
        let jpeg = written(&DeferredView { progressive: true, chroma, ..recipes().next().unwrap() });
        let scans: Vec<usize> = (1..jpeg.len() - 1).filter(|&at| jpeg[at..at + 2] == [0xff, 0xda]).collect();
        assert!(scans.len() > 4);
        for (&at, decoder) in scans[1..].iter().flat_map(|at| DECODERS.map(|decoder| (at, decoder))) {
            let cut = [&jpeg[..at], &END].concat();
            let refused = decode("x", &cut, Decoding { jpeg: decoder, ..3.into() }).unwrap_err().to_string();
            assert!(refused.contains("lacks scans"), "{refused}");
        }
    }
}

/// What the decoders make of a JPEG by themselves.
fn plainly(jpeg: &[u8], decoder: Jpeg) -> Vec<u8> {
    if decoder == Jpeg::Zune {
        return zune_jpeg::JpegDecoder::new(zune_core::bytestream::ZCursor::new(jpeg)).decode().unwrap();
    }
    let mut plain = mozjpeg::Decompress::new_mem(jpeg).unwrap();
    plain.dct_method(match decoder {
        Jpeg::LibjpegFast => mozjpeg::DctMethod::IntegerFast,
        _ => mozjpeg::DctMethod::IntegerSlow,
    });
    plain.rgb().unwrap().read_scanlines().unwrap()
}

/// Files that are whole though odd: more behind the end marker, or between the last code and the end marker.
fn odd_but_whole(jpeg: &[u8]) -> Vec<Vec<u8>> {
    let data = &jpeg[..jpeg.len() - 2];
    let behind = |bytes: &[u8]| [jpeg, bytes].concat();
    let before = |bytes: &[u8]| [data, bytes, &END].concat();
    let mut with_thumbnail = vec![0xff, 0xd8, 0xff, 0xe1];
    with_thumbnail.extend((jpeg.len() as u16 + 8).to_be_bytes());
    with_thumbnail.extend(b"Exif\0\0");
    with_thumbnail.extend(jpeg);
    with_thumbnail.extend(&jpeg[2..]);
    let mut all =
        vec![jpeg.to_vec(), behind(&[0; 40]), behind(b"more\xff\xd9"), behind(jpeg), with_thumbnail];
    all.extend([&[0xff; 3][..], &[0x55; 30], &[0xff, 0xfe, 0, 4, 0, 0]].map(before));
    // Behind codes of zeros alone, as encoders choose them for flat areas, zeros to pad look like lost data.
    if !data.ends_with(&[0; 2]) {
        all.extend([&[0; 1][..], &[0; 60]].map(before));
    }
    all
}

#[test]
fn whole_jpegs_are_what_the_decoders_make_of_them() {
    let mut whole: Vec<_> = recipes().step_by(2).map(|recipe| written(&recipe)).collect();
    // Pillow 13: `save(name, quality=60, restart_marker_rows=1)`; `restart_marker_blocks=3, progressive=True`.
    whole.extend(["restarts.jpg", "restarts_progressive.jpg", "progressive.jpg"].map(fixture));
    for jpeg in whole {
        for (file, decoder) in
            odd_but_whole(&jpeg).iter().flat_map(|file| DECODERS.map(|decoder| (file, decoder)))
        {
            let image = decode("x", file, Decoding { jpeg: decoder, ..3.into() }).unwrap();
            let plain = plainly(&jpeg, decoder);
            let grey = plain.len() * 3 == image.data.len();
            let plain = if grey { plain.iter().flat_map(|&grey| [grey; 3]).collect() } else { plain };
            assert!(image.data == plain, "{decoder:?}, {} bytes", file.len());
        }
    }
}

fn lossless() -> image::RgbImage {
    image::RgbImage::from_fn(WIDTH, HEIGHT, |x, y| image::Rgb([x as u8 * 9, y as u8 * 7, 3]))
}

/// Valid files of every kind, for mutation.
fn seeds() -> Vec<Vec<u8>> {
    let names =
        ["cmyk.jpg", "ycck.jpg", "progressive.jpg", "grey.jpg", "palette.png", "palette8.bmp", "lossy.webp"];
    let mut seeds: Vec<_> = names.iter().map(|name| fixture(name)).collect();
    seeds.push(fixture("cmyk8.tif"));
    seeds.push(encoded(&lossless().into(), ImageFormat::Gif));
    seeds.push(encoded(&lossless().into(), ImageFormat::Pnm));
    seeds.push(with_orientation(&fixture("progressive.jpg"), 6));
    let wide =
        DynamicImage::ImageRgba16(image::ImageBuffer::from_pixel(9, 5, image::Rgba([9, 999, 9999, 65_000])));
    seeds.extend([ImageFormat::Png, ImageFormat::Tiff].map(|format| encoded(&wide, format)));
    seeds.extend([ImageFormat::WebP, ImageFormat::Bmp].map(|format| encoded(&lossless().into(), format)));
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_and_cut_files_never_panic(
        seed in 0usize..15,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        channels in prop::sample::select(vec![1usize, 3, 4, 5]),
        jpeg in prop::sample::select(vec![Jpeg::Zune, Jpeg::Libjpeg, Jpeg::LibjpegFast]),
    ) {
        let mut bytes = seeds().swap_remove(seed);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        // A changed header may claim a large image that is still allowed; those only cost time here.
        if let Ok(image) = decode("changed", &bytes, Decoding { jpeg, ..channels.into() }) {
            prop_assert_eq!(image.channels, channels);
            prop_assert_eq!(image.data.len(), image.width * image.height * channels);
        }
    }

    #[test]
    fn cut_jpegs_are_refused_or_lose_nothing(
        recipe in prop::sample::select(recipes().collect::<Vec<_>>()),
        cut in any::<prop::sample::Index>(),
        decoder in prop::sample::select(DECODERS.to_vec()),
    ) {
        let jpeg = written(&recipe);
        let lost = 1 + cut.index(jpeg.len() - 2 - data_start(&jpeg));
        if let Some(found) = without(&jpeg, jpeg.len() - 2 - lost, false, decoder) {
            let whole = decode("x", &jpeg, Decoding { jpeg: decoder, ..3.into() }).unwrap();
            // The last bytes of a progressive file may be correction bits, which zune reads past the end. A level or two.
            let corrections = decoder == Jpeg::Zune && recipe.progressive && lost < 8;
            let allowed = if corrections { 16 } else { 0 };
            prop_assert!(worst(&found, &whole.data) <= allowed);
        }
    }
}
