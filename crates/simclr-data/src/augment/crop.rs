//! Crop, resize and flip: from interleaved `u8` to planar `f32` in `[0, 1]`.
//!
//! With antialiasing the resize runs on `u8` with SIMD (`fast_image_resize`), so a value may be off by half a level of 255
//! against an exact computation; it averages over all source pixels where a crop shrinks, as PIL and torchvision's
//! `antialias` do. Without, it is TensorFlow's (`sample`).

use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use multiversion::multiversion;

use super::{Crop, Interpolation, Scratch, sample};
use crate::Image;

/// How pixels of a view come from those of a crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resampling {
    pub(super) interpolation: Interpolation,
    pub(super) antialias: bool,
}

/// The whole image with a shorter side of `size` pixels, both sides scaled alike, bicubic.
///
/// # Panics
/// If `size` is 0.
pub fn shrink(image: &Image, size: usize) -> Image {
    let (width, height, channels) = (image.width, image.height, image.channels);
    let shorter = width.min(height);
    let scaled = |side: usize| ((side * size) as f64 / shorter as f64).round().max(1.0) as usize;
    let target = (scaled(width), scaled(height));
    let mut data = vec![0; target.0 * target.1 * channels];
    let whole = Crop { x: 0, y: 0, width, height };
    resize(image, whole, (Interpolation::Bicubic, target), &mut data, &mut Scratch::default());
    Image::new(target.0, target.1, channels, data)
}

/// Resizes `crop` of `image` to `size` x `size`, mirrored if `flip`, into planes. Without antialiasing a cubic may leave
/// `[0, 1]`.
pub(super) fn crop_and_resize(
    image: &Image,
    crop: Crop,
    flip: bool,
    (Resampling { interpolation, antialias }, size): (Resampling, usize),
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let channels = image.channels;
    if !antialias {
        sample::resize(image, crop, (interpolation, size), out, &mut scratch.planes);
        if flip {
            mirror(out, size);
        }
        return;
    }
    let mut resized = std::mem::take(&mut scratch.resized);
    resized.resize(size * size * channels, 0);
    resize(image, crop, (interpolation, (size, size)), &mut resized, scratch);
    to_planes(&resized, channels, size, flip, out);
    scratch.resized = resized;
}

impl Crop {
    /// What a resize of this crop to `size` x `size` looks at: with antialiasing its filter reaches beyond the crop, where the
    /// image goes on.
    pub(crate) fn seen(
        self,
        image: &Image,
        (interpolation, antialias): (Interpolation, bool),
        size: usize,
    ) -> Self {
        if !antialias {
            return self;
        }
        let support = match interpolation {
            Interpolation::Bicubic => 2.0,
            Interpolation::Bilinear => 1.0,
        };
        let along = |from: usize, length: usize, all: usize| {
            let scale = length as f64 / size as f64;
            // From the centre of the first pixel, half a pixel of the view inside; 1 more, so that no rounding matters.
            let beyond = (support * scale.max(1.0) - scale / 2.0).max(0.0).ceil() as usize + 1;
            let start = from.saturating_sub(beyond);
            (start, (from + length + beyond).min(all) - start)
        };
        let ((x, width), (y, height)) =
            (along(self.x, self.width, image.width), along(self.y, self.height, image.height));
        Self { x, y, width, height }
    }

    /// The smallest crop that holds both.
    pub(crate) fn around(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = (self.x + self.width).max(other.x + other.width) - x;
        let height = (self.y + self.height).max(other.y + other.height) - y;
        Self { x, y, width, height }
    }
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

/// How a crop is resized: filter, and width and height of the result.
type How = (Interpolation, (usize, usize));

/// Resizes into `out`, interleaved.
fn resize(image: &Image, crop: Crop, how: How, out: &mut [u8], scratch: &mut Scratch) {
    match pixel_type(image.channels) {
        Some(kind) => resize_pixels(kind, image, &image.data, crop, how, out, &mut scratch.resizer),
        None => resize_by_channel(image, crop, how, out, scratch),
    }
}

fn resize_pixels(
    kind: PixelType,
    image: &Image,
    data: &[u8],
    crop: Crop,
    (interpolation, (width, height)): How,
    out: &mut [u8],
    resizer: &mut Resizer,
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
    let target = images::Image::from_slice_u8(width as u32, height as u32, out, kind);
    let (source, mut target) =
        source.ok().zip(target.ok()).expect("both buffers were sized for their images");
    let resized = resizer.resize(&source, &mut target, &options);
    resized.expect("the crop lies inside the image and both images have one pixel type");
}

/// More than four channels: one plane at a time.
fn resize_by_channel(image: &Image, crop: Crop, how: How, out: &mut [u8], scratch: &mut Scratch) {
    let (channels, (width, height)) = (image.channels, how.1);
    let Scratch { resizer, source_plane: plane, .. } = scratch;
    let mut small = vec![0; width * height];
    for channel in 0..channels {
        plane.clear();
        plane.extend(image.data.iter().skip(channel).step_by(channels));
        resize_pixels(PixelType::U8, image, plane, crop, how, &mut small, resizer);
        for (slot, &value) in out.iter_mut().skip(channel).step_by(channels).zip(&small) {
            *slot = value;
        }
    }
}

/// Interleaved bytes to planes in `[0, 1]`, rows mirrored if `flip`.
fn to_planes(bytes: &[u8], channels: usize, size: usize, flip: bool, out: &mut [f32]) {
    if channels == 3 {
        rgb_to_planes(bytes, out);
    } else {
        for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
            let values = bytes.iter().skip(channel).step_by(channels);
            plane.iter_mut().zip(values).for_each(|(slot, &byte)| *slot = level(byte));
        }
    }
    if flip {
        mirror(out, size);
    }
}

fn mirror(planes: &mut [f32], size: usize) {
    planes.chunks_exact_mut(size).for_each(<[f32]>::reverse);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn rgb_to_planes(bytes: &[u8], out: &mut [f32]) {
    let (red, rest) = out.split_at_mut(out.len() / 3);
    let (green, blue) = rest.split_at_mut(rest.len() / 2);
    for (((rgb, r), g), b) in bytes.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
        [*r, *g, *b] = rgb.map(level);
    }
}

/// byte / 255, correctly rounded, without the slow division: 1 / 255 in two parts, of which the first has so few bits that
/// its product is exact.
#[inline(always)]
fn level(byte: u8) -> f32 {
    const HIGH: f32 = 257.0 / 65_536.0;
    const LOW: f32 = 1.0 / (255.0 * 65_536.0);
    let byte = f32::from(byte);
    byte * HIGH + byte * LOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_rounded_quotients() {
        for byte in 0..=u8::MAX {
            assert_eq!(level(byte), f32::from(byte) / 255.0, "{byte}");
        }
    }
}
