//! Resize without antialiasing, as by `tf.image.resize(antialias=False)` in the official code: four (bicubic) or two (bilinear)
//! source pixels per direction, whatever the scale, computed in `f32` and not clipped.

use multiversion::multiversion;

use super::{Crop, Interpolation};
use crate::Image;

/// Index and weight of the source pixels of one output pixel, in one direction.
type Taps = [(usize, f32); 4];

/// TensorFlow looks up bicubic weights in a table with this resolution (`resize_bicubic_op.cc` `kTableSize`).
const STEPS_PER_PIXEL: f32 = 1024.0;

/// Resizes `crop` of `image` to planes of `size` x `size`; pixels outside the crop are not read.
pub(super) fn resize(
    image: &Image,
    crop: Crop,
    (interpolation, size): (Interpolation, usize),
    out: &mut [f32],
    buffer: &mut Vec<f32>,
) {
    let channels = image.channels;
    let stride = image.width * channels;
    let columns = taps(crop.width, size, interpolation);
    let rows = taps(crop.height, size, interpolation);
    buffer.resize(crop.width * channels, 0.0);
    for (y, taps) in rows.iter().enumerate() {
        let row =
            |at: usize| &image.data[(crop.y + at) * stride + crop.x * channels..][..crop.width * channels];
        blend(taps.map(|(at, _)| row(at)), taps.map(|(_, weight)| weight), buffer);
        for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
            let value = |taps: &Taps| -> f32 {
                taps.iter().map(|(at, weight)| weight * buffer[at * channels + channel]).sum()
            };
            plane[y * size..][..size].iter_mut().zip(&columns).for_each(|(slot, taps)| *slot = value(taps));
        }
    }
}

/// Weighted sum of four rows of bytes, in `[0, 1]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn blend([a, b, c, d]: [&[u8]; 4], weights: [f32; 4], out: &mut [f32]) {
    let weights = weights.map(|weight| weight / 255.0);
    for ((((slot, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        let [a, b, c, d] = [a, b, c, d].map(f32::from);
        *slot = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
    }
}

/// The taps of all `to` output pixels over `from` source pixels, with half-pixel centres. Pixels beyond the edge have weight
/// 0, the other weights are normalised to 1 (`image_resizer_state.h`, `resize_bicubic_op.cc` `GetWeightsAndIndices`).
fn taps(from: usize, to: usize, interpolation: Interpolation) -> Vec<Taps> {
    let scale = from as f32 / to as f32;
    let taps = |pixel: usize| {
        let centre = (pixel as f32 + 0.5) * scale - 0.5;
        let first = centre.floor();
        let weights = match interpolation {
            Interpolation::Bicubic => cubic(centre - first),
            Interpolation::Bilinear => [0.0, 1.0 - (centre - first), centre - first, 0.0],
        };
        let places = [-1, 0, 1, 2].map(|offset| first as i64 + offset);
        let inside = |at: i64| (0..from as i64).contains(&at);
        let kept = [0, 1, 2, 3].map(|tap| if inside(places[tap]) { weights[tap] } else { 0.0 });
        let sum: f32 = kept.iter().sum();
        [0, 1, 2, 3].map(|tap| (places[tap].clamp(0, from as i64 - 1) as usize, kept[tap] / sum))
    };
    (0..to).map(taps).collect()
}

/// Weights of Keys' cubic, a = -0.5, at `offset` pixels after the second of four source pixels.
fn cubic(offset: f32) -> [f32; 4] {
    let step = (offset * STEPS_PER_PIXEL).round_ties_even() / STEPS_PER_PIXEL;
    let near = |x: f32| (1.5 * x - 2.5) * x * x + 1.0;
    let far = |x: f32| ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    [far(1.0 + step), near(step), near(1.0 - step), far(2.0 - step)]
}
