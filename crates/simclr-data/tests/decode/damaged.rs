//! Damaged and hostile files: each gives an image or one clear error, never a panic.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};
use proptest::prelude::*;
use simclr_data::decode::{Decoding, Jpeg, MAX_PIXELS, decode};
use tiff::encoder::{TiffEncoder, colortype};

use super::{HEIGHT, WIDTH, encoded, fixture, reason, with_orientation};

/// A PNG that declares this size, with a correct checksum of the header.
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

/// A JPEG that declares this size.
fn jpeg_of(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = fixture("grey.jpg");
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// A TIFF that declares this width and height.
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
fn decompression_bombs_are_refused_by_their_headers() {
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
fn damaged_files_are_one_line_errors() {
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

fn lossless() -> image::RgbImage {
    image::RgbImage::from_fn(WIDTH, HEIGHT, |x, y| image::Rgb([x as u8 * 9, y as u8 * 7, 3]))
}

/// Valid files of all formats, for mutation.
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
    fn mutated_files_never_panic(
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
        // A changed header may declare a large image that is still allowed; that only takes time.
        if let Ok(image) = decode("changed", &bytes, Decoding { jpeg, ..channels.into() }) {
            prop_assert_eq!(image.channels, channels);
            prop_assert_eq!(image.data.len(), image.width * image.height * channels);
        }
    }
}
