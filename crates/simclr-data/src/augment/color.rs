//! Colour jitter and grayscale on planes, clipped to `[0, 1]` after each operation (google-research/simclr `data_util.py`).

use multiversion::multiversion;

use super::{ColorModel, Jitter, View};

/// Weights of red, green and blue in the luma (ITU-R BT.601, as rounded by TensorFlow).
pub const LUMA: [f32; 3] = [0.2989, 0.5870, 0.1140];

/// Pixels per tile; all operators run on a tile before the next one, so that it stays in the L1 cache.
const TILE: usize = 512;

/// An operator on the three channels of one pixel.
#[derive(Debug, Clone, Copy)]
enum PixelOp {
    /// x * factor + shift, one shift per channel.
    Affine {
        factor: f32,
        shifts: [f32; 3],
    },
    /// Scales the distance of every channel from the largest one. Equals HSV with S' = min(S f, 1) at constant V and H, since
    /// S' / S = min(f, V / C) with the chroma C = max - min.
    Saturation {
        factor: f32,
    },
    /// f x + (1 - f) gray: torchvision's saturation.
    Blend {
        factor: f32,
    },
    Hue {
        turns: f32,
    },
    Gray,
}

/// Applies the jitter operations in order, then grayscale if `drop_color`.
pub fn distort(view: &mut View, jitter: &[Jitter], drop_color: bool, model: ColorModel) {
    if view.channels == 3 {
        return distort_rgb(view, jitter, drop_color, model);
    }
    for &op in jitter {
        distort_any(view, op, model);
    }
    if drop_color {
        gray(view);
    }
}

/// Three channels in two passes over the pixels: up to the contrast, which needs the channel means at that point, and the
/// rest.
fn distort_rgb(view: &mut View, jitter: &[Jitter], drop_color: bool, model: ColorModel) {
    let mut pending = Vec::with_capacity(jitter.len() + 1);
    for &op in jitter {
        let next = match (op, model) {
            (Jitter::Brightness(factor), _) => PixelOp::Affine { factor, shifts: [0.0; 3] },
            (Jitter::BrightnessShift(shift), _) => PixelOp::Affine { factor: 1.0, shifts: [shift; 3] },
            (Jitter::Saturation(factor), ColorModel::Tensorflow) => PixelOp::Saturation { factor },
            (Jitter::Saturation(factor), ColorModel::Torchvision) => PixelOp::Blend { factor },
            (Jitter::Hue(turns), _) => PixelOp::Hue { turns },
            (Jitter::Contrast(factor), model) => {
                let means = apply(view, &pending, true);
                pending.clear();
                let means = match model {
                    ColorModel::Tensorflow => means,
                    ColorModel::Torchvision => {
                        [means.iter().zip(LUMA).map(|(m, weight)| m * weight).sum(); 3]
                    }
                };
                PixelOp::Affine { factor, shifts: means.map(|mean| mean - mean * factor) }
            }
        };
        pending.push(next);
    }
    pending.extend(drop_color.then_some(PixelOp::Gray));
    apply(view, &pending, false);
}

/// Applies `ops` to every pixel; returns the channel means of the result if `means`, else zeros.
fn apply(view: &mut View, ops: &[PixelOp], means: bool) -> [f32; 3] {
    let area = view.area();
    let (red, rest) = view.pixels.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    let mut sums = [0.0; 3];
    if !ops.is_empty() || means {
        for ((r, g), b) in red.chunks_mut(TILE).zip(green.chunks_mut(TILE)).zip(blue.chunks_mut(TILE)) {
            apply_to_tile(r, g, b, ops);
            if means {
                sums.iter_mut().zip([&*r, g, b]).for_each(|(all, plane)| *all += sum(plane));
            }
        }
    }
    sums.map(|sum| sum / area as f32)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn apply_to_tile(red: &mut [f32], green: &mut [f32], blue: &mut [f32], ops: &[PixelOp]) {
    for op in ops {
        match *op {
            PixelOp::Affine { factor, shifts } => {
                for (plane, shift) in [&mut *red, green, blue].into_iter().zip(shifts) {
                    plane.iter_mut().for_each(|x| *x = (*x * factor + shift).clamp(0.0, 1.0));
                }
            }
            PixelOp::Saturation { factor } => {
                each(
                    red,
                    green,
                    blue,
                    #[inline(always)]
                    |rgb| saturated(rgb, factor),
                );
            }
            PixelOp::Blend { factor } => each(
                red,
                green,
                blue,
                #[inline(always)]
                |[r, g, b]| {
                    let gray = (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b) * (1.0 - factor);
                    [r, g, b].map(|x| (x * factor + gray).clamp(0.0, 1.0))
                },
            ),
            PixelOp::Hue { turns } => {
                let sixths = 6.0 * (turns - turns.round());
                each(
                    red,
                    green,
                    blue,
                    #[inline(always)]
                    |rgb| turned(rgb, sixths),
                );
            }
            PixelOp::Gray => each(
                red,
                green,
                blue,
                #[inline(always)]
                |[r, g, b]| [(LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).clamp(0.0, 1.0); 3],
            ),
        }
    }
}

#[inline(always)]
fn each(red: &mut [f32], green: &mut [f32], blue: &mut [f32], op: impl Fn([f32; 3]) -> [f32; 3]) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        [*r, *g, *b] = op([*r, *g, *b]);
    }
}

/// One instruction, unlike `f32::min`, which handles NaN.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn saturated([r, g, b]: [f32; 3], factor: f32) -> [f32; 3] {
    let value = max(max(r, g), b);
    let chroma = value - min(min(r, g), b);
    let ratio = if chroma * factor > value { value / chroma } else { factor };
    [r, g, b].map(|x| max(value - (value - x) * ratio, 0.0))
}

/// RGB to HSV, H + shift, and back, without branches. With H in sixths of a turn a channel is V - C f: f is 0 over the two
/// sixths around the channel's own hue, 1 around the opposite one, and linear between them.
#[inline(always)]
fn turned([r, g, b]: [f32; 3], shift: f32) -> [f32; 3] {
    let value = max(max(r, g), b);
    let chroma = value - min(min(r, g), b);
    // Grey has no hue; its chroma is 0, so any finite value will do.
    let inverse = if chroma > 0.0 { 1.0 / chroma } else { 0.0 };
    let (from, difference) = if value == r {
        (0.0, g - b)
    } else if value == g {
        (2.0, b - r)
    } else {
        (4.0, r - g)
    };
    // In [-1 - 3, 5 + 3] before the wrap to [0, 6).
    let hue = difference * inverse + from + shift;
    let hue = if hue < 0.0 { hue + 6.0 } else { hue };
    let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
    let unit = |x| max(min(x, 1.0), 0.0);
    let f = [2.0 - (hue - 3.0).abs(), (hue - 2.0).abs() - 1.0, (hue - 4.0).abs() - 1.0];
    f.map(|f| value - chroma * unit(f))
}

/// Sums in 16 accumulators, so that the loop vectorises and rounding errors stay small.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Applies one operation to any number of channels.
fn distort_any(view: &mut View, op: Jitter, model: ColorModel) {
    match (op, model) {
        (Jitter::Brightness(factor), _) => affine(view.pixels, factor, 0.0),
        (Jitter::BrightnessShift(shift), _) => affine(view.pixels, 1.0, shift),
        (Jitter::Contrast(factor), model) => contrast(view, factor, model),
        (Jitter::Saturation(_), _) if view.channels == 1 => {}
        (Jitter::Saturation(factor), ColorModel::Tensorflow) => saturation(view, factor),
        (Jitter::Saturation(factor), ColorModel::Torchvision) => blend_with_gray(view, factor),
        // Hue is defined for RGB only.
        (Jitter::Hue(_), _) => {}
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn affine(pixels: &mut [f32], factor: f32, shift: f32) {
    for x in pixels {
        *x = (*x * factor + shift).clamp(0.0, 1.0);
    }
}

fn contrast(view: &mut View, factor: f32, model: ColorModel) {
    let area = view.area();
    let channels = view.channels as f32;
    // Summed in tiles as in `apply`, for the same rounding.
    let mean = |plane: &[f32]| plane.chunks(TILE).map(sum).sum::<f32>() / area as f32;
    let gray = view.pixels.chunks_exact(area).map(mean).sum::<f32>() / channels;
    for plane in view.pixels.chunks_exact_mut(area) {
        let mean = if model == ColorModel::Tensorflow { mean(plane) } else { gray };
        affine(plane, factor, mean - mean * factor);
    }
}

fn saturation(view: &mut View, factor: f32) {
    let area = view.area();
    for at in 0..area {
        let values = view.pixels[at..].iter().step_by(area);
        let value = values.clone().fold(f32::MIN, |a, &b| a.max(b));
        let chroma = value - values.fold(f32::MAX, |a, &b| a.min(b));
        let ratio = if chroma * factor > value { value / chroma } else { factor };
        for x in view.pixels[at..].iter_mut().step_by(area) {
            *x = (value - (value - *x) * ratio).clamp(0.0, 1.0);
        }
    }
}

fn blend_with_gray(view: &mut View, factor: f32) {
    let area = view.area();
    for at in 0..area {
        let gray = mean_of_channels(view, at) * (1.0 - factor);
        for x in view.pixels[at..].iter_mut().step_by(area) {
            *x = (*x * factor + gray).clamp(0.0, 1.0);
        }
    }
}

/// Replaces every channel by the grey value: the luma of three channels, else the mean of all.
pub fn gray(view: &mut View) {
    let area = view.area();
    match view.channels {
        1 => {}
        3 => {
            apply(view, &[PixelOp::Gray], false);
        }
        _ => {
            for at in 0..area {
                let value = mean_of_channels(view, at).clamp(0.0, 1.0);
                view.pixels[at..].iter_mut().step_by(area).for_each(|x| *x = value);
            }
        }
    }
}

fn mean_of_channels(view: &View, at: usize) -> f32 {
    view.pixels[at..].iter().step_by(view.area()).sum::<f32>() / view.channels as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(op: Jitter, model: ColorModel) -> [f32; 3] {
        let mut pixels = [0.2, 0.4, 0.6];
        distort(&mut View { pixels: &mut pixels, channels: 3, side: 1 }, &[op], false, model);
        pixels
    }

    fn close(got: [f32; 3], expected: [f32; 3]) {
        let far = got.iter().zip(expected).any(|(a, b)| (a - b).abs() > 2e-6);
        assert!(!far, "{got:?}, expected {expected:?}");
    }

    #[test]
    fn published_values_of_one_pixel() {
        close(pixel(Jitter::Saturation(1.5), ColorModel::Tensorflow), [0.0, 0.3, 0.6]);
        close(pixel(Jitter::Hue(0.1), ColorModel::Tensorflow), [0.24, 0.2, 0.6]);
        close(pixel(Jitter::Saturation(1.5), ColorModel::Torchvision), [0.118_51, 0.418_51, 0.718_51]);
        let mut pixels = [0.2, 0.4, 0.6];
        gray(&mut View { pixels: &mut pixels, channels: 3, side: 1 });
        close(pixels, [0.362_98; 3]);
    }

    #[test]
    fn brightness_is_clipped() {
        close(pixel(Jitter::Brightness(2.0), ColorModel::Tensorflow), [0.4, 0.8, 1.0]);
        close(pixel(Jitter::BrightnessShift(-0.3), ColorModel::Tensorflow), [0.0, 0.1, 0.3]);
    }

    #[test]
    fn color_models_differ_in_the_mean_of_contrast() {
        let mut planes = [0.0, 1.0, 0.2, 0.4];
        contrast(&mut View { pixels: &mut planes[..], channels: 1, side: 2 }, 0.5, ColorModel::Tensorflow);
        let expected = [0.2, 0.7, 0.3, 0.4];
        assert!(planes.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{planes:?}");
        // One pixel is its own channel mean, so that only torchvision's grey mean has an effect.
        close(pixel(Jitter::Contrast(0.5), ColorModel::Tensorflow), [0.2, 0.4, 0.6]);
        close(pixel(Jitter::Contrast(0.5), ColorModel::Torchvision), [0.281_49, 0.381_49, 0.481_49]);
    }

    #[test]
    fn hue_keeps_grey_and_is_periodic() {
        let mut grey = [0.3, 0.3, 0.3];
        let hue = |pixels: &mut [f32]| {
            distort(
                &mut View { pixels, channels: 3, side: 1 },
                &[Jitter::Hue(0.2)],
                false,
                ColorModel::Tensorflow,
            );
        };
        hue(&mut grey);
        close(grey, [0.3; 3]);
        let mut pixels = [0.2, 0.4, 0.6];
        for _ in 0..5 {
            hue(&mut pixels);
        }
        assert!(pixels.iter().zip([0.2, 0.4, 0.6]).all(|(a, b)| (a - b).abs() < 1e-5), "{pixels:?}");
    }

    #[test]
    fn one_channel_has_neither_hue_nor_saturation() {
        for op in [Jitter::Hue(0.1), Jitter::Saturation(0.2)] {
            let mut plane = [0.1, 0.9, 0.5, 0.3];
            distort(
                &mut View { pixels: &mut plane, channels: 1, side: 2 },
                &[op],
                false,
                ColorModel::Tensorflow,
            );
            assert_eq!(plane, [0.1, 0.9, 0.5, 0.3]);
        }
    }
}
