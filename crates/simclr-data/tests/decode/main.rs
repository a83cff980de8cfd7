//! Decoding: pixel values, damaged files, and TIFF in detail.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod damaged;
mod jpeg;
mod pixels;
mod tiff_pages;
mod tiff_values;
mod tiff_writer;

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ImageFormat};
use simclr_data::{DataError, decode::decode};

const WIDTH: u32 = 16;
const HEIGHT: u32 = 12;

/// A file of `reference/bad_images.py`.
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

/// Largest difference.
fn worst(found: &[u8], expected: &[u8]) -> u8 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Inserts an APP1 segment with only the orientation.
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
