//! Images that cannot be decoded, or only look so.

use fs_err as fs;

use super::{
    Place, jpeg, png,
    support::{execute, pretrain, simclr},
};

#[test]
fn empty_file() {
    Place::new().is_skipped("empty.jpg", b"", "the file is empty");
}

#[test]
fn text_with_the_extension_of_an_image() {
    Place::new().is_skipped(
        "notes.png",
        b"these are notes, not pixels",
        "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM or PGM image",
    );
}

#[test]
fn truncated_jpeg() {
    let whole = jpeg();
    Place::new().is_skipped("cut.jpg", &whole[..whole.len() * 2 / 3], "cut short");
}

#[test]
fn truncated_png() {
    let whole = png();
    Place::new().is_skipped("cut.png", &whole[..whole.len() * 2 / 3], "cut.png");
}

/// A PNG header that declares 60,000 x 60,000 pixels must be refused before the allocation.
#[test]
fn decompression_bomb() {
    let mut bomb = png();
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    Place::new().is_skipped("bomb.png", &bomb, "60000x60000");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// 16-bit CMYK, uncompressed: a quarter of each ink is (1 - 1/4)^2 of white.
#[test]
fn sixteen_bit_cmyk_tiff() {
    let entry = |tag: u16, kind: u16, count: u32, value: u32| {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let entries = [
        entry(256, 3, 1, 2),
        entry(257, 3, 1, 2),
        entry(258, 3, 4, 122),
        entry(259, 3, 1, 1),
        entry(262, 3, 1, 5),
        entry(273, 4, 1, 130),
        entry(277, 3, 1, 4),
        entry(278, 3, 1, 2),
        entry(279, 4, 1, 32),
    ];
    tiff.extend((entries.len() as u16).to_le_bytes());
    tiff.extend(entries.concat());
    tiff.extend([0; 4]);
    assert_eq!(tiff.len(), 122);
    tiff.extend([16u16; 4].iter().flat_map(|bits| bits.to_le_bytes()));
    tiff.extend([0x40; 32]);
    let read = simclr::data::decode::decode("print.tif", &tiff, 3).unwrap();
    assert_eq!((read.width, read.height), (2, 2));
    let expected = 255.0 * 0.75 * 0.75;
    assert!(read.data.iter().all(|&value| (f64::from(value) - expected).abs() < 2.0), "{:?}", read.data);
}

#[test]
fn one_pixel_images_and_wrong_extensions_are_read() {
    let place = Place::new();
    let data = place.images();
    image::RgbImage::from_pixel(1, 1, image::Rgb([9, 9, 9])).save(data.join("class-0/dot.png")).unwrap();
    fs::write(data.join("class-0/really-a-png.jpg"), png()).unwrap();
    let output = execute(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    output.succeeds();
    assert!(output.out.contains("42 images"), "{}", output.out);
}

#[test]
fn more_failed_images_than_allowed() {
    let place = Place::new();
    let data = place.images();
    for index in 0..10 {
        fs::write(data.join(format!("class-1/bad-{index}.jpg")), b"no").unwrap();
    }
    let output = execute(&mut pretrain(&data, &place.path("run"), &["--batch", "50"]));
    output.refuses(&["10 of 50 images could not be decoded", "more than the 5 ", "0.01"]);
    output.hints("bad_files.txt");
}

#[test]
fn no_decodable_image() {
    let place = Place::new();
    let data = place.path("images");
    fs::create_dir(&data).unwrap();
    (0..20).for_each(|index| fs::write(data.join(format!("{index}.jpg")), b"no").unwrap());
    execute(&mut pretrain(&data, &place.path("run"), &[])).refuses(&["fewer than two images"]);
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_and_dangling_links() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let data = place.images();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
    fs::write(data.join("class-0").join(name), png()).unwrap();
    std::os::unix::fs::symlink("nowhere.png", data.join("class-0/link.png")).unwrap();
    let output = execute(&mut simclr(&["inspect", "--data", data.to_str().unwrap()]));
    output.refuses(&["1 images cannot be decoded"]);
    assert!(
        output.out.contains("42 images") && output.out.contains("link.png") && output.out.contains("nowhere"),
        "{}",
        output.out
    );
}
