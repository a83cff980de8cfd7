//! Crop, resize and flip: from interleaved `u8` to planar `f32` in `[0, 1]`.
//!
//! The resize runs on `u8` with SIMD (`fast_image_resize`), so a value may be off by half a level of 255 against an
//! exact computation; it averages over all source pixels where a crop shrinks, as PIL and torchvision's `antialias` do.

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, images};

use super::{Crop, Interpolation, Scratch};
use crate::Image;

/// Share of the shorter side that an evaluation view shows (google-research/simclr `data_util.py` `CROP_PROPORTION`).
pub const EVALUATION_SHARE: f64 = 0.875;
/// Largest side whose evaluation view is the whole image (official code: CIFAR is not cropped).
const SMALL_SIDE: usize = 32;

/// The view for evaluation: no randomness (spec 5.6). Sides up to 32 px: the whole image, resized where its size
/// differs; larger: the central square of 87.5 % of the shorter side, bicubic.
///
/// # Panics
/// If `out` is not `C * size * size` long.
pub fn evaluation_view(image: &Image, size: usize, out: &mut [f32], scratch: &mut Scratch) {
    evaluation_view_of(image, (size, EVALUATION_SHARE), out, scratch);
}

/// The same with another `share` of the shorter side: 1 in the transfer protocol (paper B.8.1).
///
/// # Panics
/// As [`evaluation_view`].
pub fn evaluation_view_of(
    image: &Image,
    (size, share): (usize, f64),
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    assert_eq!(out.len(), image.channels * size * size, "the view fills its slot");
    let (width, height) = (image.width, image.height);
    let crop = if size <= SMALL_SIDE {
        Crop { x: 0, y: 0, width, height }
    } else {
        let side = ((width.min(height) as f64 * share).round() as usize).max(1);
        Crop { x: (width - side) / 2, y: (height - side) / 2, width: side, height: side }
    };
    crop_and_resize(image, crop, false, (Interpolation::Bicubic, size), out, scratch);
}

/// Resizes `crop` of `image` to `size` x `size`, mirrored if `flip`, into planes.
pub fn crop_and_resize(
    image: &Image,
    crop: Crop,
    flip: bool,
    (interpolation, size): (Interpolation, usize),
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let channels = image.channels;
    let mut resized = std::mem::take(&mut scratch.resized);
    resized.resize(size * size * channels, 0);
    match pixel_type(channels) {
        Some(kind) => resize(scratch, kind, image, &image.data, crop, (interpolation, size), &mut resized),
        None => resize_by_channel(scratch, image, crop, (interpolation, size), &mut resized),
    }
    to_planes(&resized, channels, size, flip, out);
    scratch.resized = resized;
}

fn pixel_type(channels: usize) -> Option<PixelType> {
    match channels {
        1 => Some(PixelType::U8),
        2 => Some(PixelType::U8x2),
        3 => Some(PixelType::U8x3),
        4 => Some(PixelType::U8x4),
        _ => None,
    }
}

fn resize(
    scratch: &mut Scratch,
    kind: PixelType,
    image: &Image,
    data: &[u8],
    crop: Crop,
    (interpolation, size): (Interpolation, usize),
    out: &mut [u8],
) {
    let filter = match interpolation {
        Interpolation::Bicubic => FilterType::CatmullRom, // Keys' cubic with a = -0.5
        Interpolation::Bilinear => FilterType::Bilinear,
    };
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(crop.x as f64, crop.y as f64, crop.width as f64, crop.height as f64)
        .use_alpha(false);
    let source = images::ImageRef::new(image.width as u32, image.height as u32, data, kind);
    let target = images::Image::from_slice_u8(size as u32, size as u32, out, kind);
    let (source, mut target) =
        source.ok().zip(target.ok()).expect("both buffers were sized for their images");
    let resized = scratch.resizer.resize(&source, &mut target, &options);
    resized.expect("the crop lies inside the image and both images have one pixel type");
}

/// More than four channels: one plane at a time.
fn resize_by_channel(
    scratch: &mut Scratch,
    image: &Image,
    crop: Crop,
    how: (Interpolation, usize),
    out: &mut [u8],
) {
    let channels = image.channels;
    let mut plane = std::mem::take(&mut scratch.source_plane);
    let mut small = vec![0; how.1 * how.1];
    for channel in 0..channels {
        plane.clear();
        plane.extend(image.data.iter().skip(channel).step_by(channels));
        resize(scratch, PixelType::U8, image, &plane, crop, how, &mut small);
        for (slot, &value) in out.iter_mut().skip(channel).step_by(channels).zip(&small) {
            *slot = value;
        }
    }
    scratch.source_plane = plane;
}

/// Interleaved bytes to planes in `[0, 1]`, rows mirrored if `flip`.
fn to_planes(bytes: &[u8], channels: usize, size: usize, flip: bool, out: &mut [f32]) {
    for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
        for (row, line) in plane.chunks_exact_mut(size).zip(bytes.chunks_exact(size * channels)) {
            let values = line.iter().skip(channel).step_by(channels).map(|&byte| f32::from(byte) / 255.0);
            if flip {
                row.iter_mut().rev().zip(values).for_each(|(slot, value)| *slot = value);
            } else {
                row.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
            }
        }
    }
}
