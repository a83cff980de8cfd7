//! Crop and resize: from interleaved `u8` to planar `f32` in `[0, 1]`.
//!
//! With antialiasing, a crop that shrinks is averaged over all its source pixels, as by Pillow and torchvision. That resize
//! runs on `u8` (`fast_image_resize`, SIMD) in two passes, each of which rounds to half a level of 255 and cuts the overshoot of the
//! cubic. Views filter columns first, which is faster; the input of an evaluation filters rows first, as Pillow does. Without antialiasing
//! see `sample`.

use fast_image_resize::{
    FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedImage, TypedImageRef},
    pixels::{U8, U8x2, U8x3, U8x4},
};
use multiversion::multiversion;

use super::{AugmentBuffers, Crop, Interpolation, sample};
use crate::Image;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resampling {
    pub(super) interpolation: Interpolation,
    pub(super) antialias: bool,
    /// With antialiasing; otherwise nothing is rounded between the passes.
    pub(super) rows_first: bool,
}

/// Scales the whole image so that its shorter side has `size` pixels: bicubic, same aspect ratio.
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
    resize(image, whole, (Interpolation::Bicubic, target), &mut data, &mut AugmentBuffers::default());
    Image::new(target.0, target.1, channels, data)
}

/// Resizes `crop` of `image` to planes of `size` x `size`. Without antialiasing, bicubic values may leave `[0, 1]`.
pub(super) fn crop_and_resize(
    image: &Image,
    crop: Crop,
    (Resampling { interpolation, antialias, rows_first }, size): (Resampling, usize),
    out: &mut [f32],
    buffers: &mut AugmentBuffers,
) {
    let channels = image.channels;
    if !antialias {
        return sample::resize(image, crop, (interpolation, size), out, &mut buffers.planes);
    }
    let mut resized = std::mem::take(&mut buffers.resized);
    resized.resize(size * size * channels, 0);
    let resize = if rows_first { resize_rows_first } else { resize };
    resize(image, crop, (interpolation, (size, size)), &mut resized, buffers);
    to_planes(&resized, channels, size, out);
    buffers.resized = resized;
}

impl Crop {
    /// The source pixels that a resize of this crop to `size` x `size` reads. With antialiasing the filter's support extends
    /// beyond the crop, up to the border of the image.
    pub(crate) fn support(
        self,
        image: &Image,
        (interpolation, antialias): (Interpolation, bool),
        size: usize,
    ) -> Self {
        if !antialias {
            return self;
        }
        let radius = match interpolation {
            Interpolation::Bicubic => 2.0,
            Interpolation::Bilinear => 1.0,
        };
        let along = |from: usize, length: usize, all: usize| {
            let scale = length as f64 / size as f64;
            // Counted from the centre of the first output pixel; 1 more guards against rounding.
            let beyond = (radius * scale.max(1.0) - scale / 2.0).max(0.0).ceil() as usize + 1;
            let start = from.saturating_sub(beyond);
            (start, (from + length + beyond).min(all) - start)
        };
        let (x, width) = along(self.x, self.width, image.width);
        let (y, height) = along(self.y, self.height, image.height);
        Self { x, y, width, height }
    }

    pub(crate) fn union(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let width = (self.x + self.width).max(other.x + other.width) - x;
        let height = (self.y + self.height).max(other.y + other.height) - y;
        Self { x, y, width, height }
    }
}

/// Filter, and width and height of the result.
type Target = (Interpolation, (usize, usize));

/// Resizes into `out`, interleaved.
fn resize(image: &Image, crop: Crop, target: Target, out: &mut [u8], buffers: &mut AugmentBuffers) {
    let resize_as = match image.channels {
        1 => resize_pixels::<U8>,
        2 => resize_pixels::<U8x2>,
        3 => resize_pixels::<U8x3>,
        4 => resize_pixels::<U8x4>,
        _ => return resize_by_channel(image, crop, target, out, buffers),
    };
    resize_as(image, &image.data, crop, target, out, &mut buffers.resizer);
}

/// As Pillow: `fast_image_resize` filters the columns of 8-bit pixels first, unless only one of both changes.
fn resize_rows_first(
    image: &Image,
    crop: Crop,
    (interpolation, (width, height)): Target,
    out: &mut [u8],
    buffers: &mut AugmentBuffers,
) {
    let read = crop.support(image, (interpolation, true), height);
    let rows = Crop { y: read.y, height: read.height, ..crop };
    let mut filtered = std::mem::take(&mut buffers.filtered_rows);
    filtered.resize(width * rows.height * image.channels, 0);
    resize(image, rows, (interpolation, (width, rows.height)), &mut filtered, buffers);
    let filtered = Image::new(width, rows.height, image.channels, filtered);
    let columns = Crop { x: 0, y: crop.y - rows.y, width, height: crop.height };
    resize(&filtered, columns, (interpolation, (width, height)), out, buffers);
    buffers.filtered_rows = filtered.data.into_vec();
}

/// Not [`Resizer::resize`], which compiles the filters of all types of pixels, and those of floats not to the same bytes each time.
fn resize_pixels<P: PixelTrait>(
    image: &Image,
    data: &[u8],
    crop: Crop,
    (interpolation, (width, height)): Target,
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
    let source = TypedImageRef::<P>::from_buffer(image.width as u32, image.height as u32, data);
    let target = TypedImage::<P>::from_buffer(width as u32, height as u32, out);
    let (source, mut target) =
        source.ok().zip(target.ok()).expect("both buffers were sized for their images");
    let resized = resizer.resize_typed(&source, &mut target, &options);
    resized.expect("the crop lies inside the image");
}

/// For more than four channels, which `fast_image_resize` does not support: one plane at a time.
fn resize_by_channel(
    image: &Image,
    crop: Crop,
    target: Target,
    out: &mut [u8],
    buffers: &mut AugmentBuffers,
) {
    let channels = image.channels;
    let (width, height) = target.1;
    let AugmentBuffers { resizer, source_plane: plane, .. } = buffers;
    let mut small = vec![0; width * height];
    for channel in 0..channels {
        plane.clear();
        plane.extend(image.data.iter().skip(channel).step_by(channels));
        resize_pixels::<U8>(image, plane, crop, target, &mut small, resizer);
        for (slot, &value) in out.iter_mut().skip(channel).step_by(channels).zip(&small) {
            *slot = value;
        }
    }
}

/// Interleaved bytes to planes in `[0, 1]`.
fn to_planes(bytes: &[u8], channels: usize, size: usize, out: &mut [f32]) {
    if channels == 3 {
        return rgb_to_planes(bytes, out);
    }
    for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
        let values = bytes.iter().skip(channel).step_by(channels);
        plane.iter_mut().zip(values).for_each(|(slot, &byte)| *slot = level(byte));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn rgb_to_planes(bytes: &[u8], out: &mut [f32]) {
    let (red, rest) = out.split_at_mut(out.len() / 3);
    let (green, blue) = rest.split_at_mut(rest.len() / 2);
    for (((rgb, r), g), b) in bytes.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
        [*r, *g, *b] = rgb.map(level);
    }
}

/// byte / 255, correctly rounded, without a division: 1 / 255 is split into two terms, and the product with the first, which
/// has few bits, is exact.
#[inline(always)]
pub(super) fn level(byte: u8) -> f32 {
    const HIGH: f32 = 257.0 / 65_536.0;
    const LOW: f32 = 1.0 / (255.0 * 65_536.0);
    let byte = f32::from(byte);
    byte * HIGH + byte * LOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_equals_the_correctly_rounded_quotient() {
        for byte in 0..=u8::MAX {
            assert_eq!(level(byte), f32::from(byte) / 255.0, "{byte}");
        }
    }
}
