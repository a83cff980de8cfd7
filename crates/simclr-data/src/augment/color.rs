//! Colour operators on planes, clipped to `[0, 1]` after each (google-research/simclr `data_util.py`; spec 5.3).

use multiversion::multiversion;

use super::{ColorModel, Jitter, View};

/// Weights of red, green and blue in the grey value (ITU-R BT.601, as TensorFlow rounds them).
pub const LUMA: [f32; 3] = [0.2989, 0.5870, 0.1140];

/// Applies one operation of the jitter.
pub fn jitter(view: &mut View, op: Jitter, model: ColorModel) {
    match (op, model) {
        (Jitter::Brightness(factor), _) => affine(view.pixels, factor, 0.0),
        (Jitter::BrightnessShift(shift), _) => affine(view.pixels, 1.0, shift),
        (Jitter::Contrast(factor), ColorModel::Tensorflow) => contrast_by_channel(view, factor),
        (Jitter::Contrast(factor), ColorModel::Torchvision) => contrast_about_gray(view, factor),
        (Jitter::Saturation(factor), ColorModel::Tensorflow) => saturation(view, factor),
        (Jitter::Saturation(factor), ColorModel::Torchvision) => blend_with_gray(view, factor),
        (Jitter::Hue(turns), _) => hue(view, turns),
    }
}

/// x * factor + shift.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn affine(pixels: &mut [f32], factor: f32, shift: f32) {
    for x in pixels {
        *x = (*x * factor + shift).clamp(0.0, 1.0);
    }
}

fn contrast_by_channel(view: &mut View, factor: f32) {
    let area = view.area();
    for plane in view.pixels.chunks_exact_mut(area) {
        let mean = mean(plane);
        affine(plane, factor, mean - mean * factor);
    }
}

fn contrast_about_gray(view: &mut View, factor: f32) {
    let area = view.area();
    let weights = gray_weights(view.channels);
    let means = view.pixels.chunks_exact(area).map(mean);
    let mean: f32 = means.zip(&weights).map(|(mean, weight)| mean * weight).sum();
    affine(view.pixels, factor, mean - mean * factor);
}

/// Mean of a plane: 16 running sums, so that the loop vectorises and rounding stays small.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn mean(plane: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let chunks = plane.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    (sums.iter().sum::<f32>() + rest) / plane.len() as f32
}

/// Luma for three channels, else the mean of the channels.
fn gray_weights(channels: usize) -> Vec<f32> {
    if channels == 3 { LUMA.to_vec() } else { vec![1.0 / channels as f32; channels] }
}

/// Scales the distance of every channel from the largest one, which is what a change of S in HSV does with V and H kept:
/// S' = min(S f, 1), and S' / S = min(f, V / C) with the chroma C = max - min.
fn saturation(view: &mut View, factor: f32) {
    let area = view.area();
    match view.channels {
        1 => {}
        3 => {
            let (red, rest) = view.pixels.split_at_mut(area);
            let (green, blue) = rest.split_at_mut(area);
            saturation_rgb(red, green, blue, factor);
        }
        _ => saturation_any(view.pixels, area, factor),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn saturation_rgb(red: &mut [f32], green: &mut [f32], blue: &mut [f32], factor: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let value = r.max(*g).max(*b);
        let chroma = value - r.min(*g).min(*b);
        let ratio = if chroma * factor > value { value / chroma } else { factor };
        *r = (value - (value - *r) * ratio).clamp(0.0, 1.0);
        *g = (value - (value - *g) * ratio).clamp(0.0, 1.0);
        *b = (value - (value - *b) * ratio).clamp(0.0, 1.0);
    }
}

fn saturation_any(pixels: &mut [f32], area: usize, factor: f32) {
    for at in 0..area {
        let values = pixels[at..].iter().step_by(area);
        let value = values.clone().fold(0.0f32, |a, &b| a.max(b));
        let chroma = value - values.fold(1.0f32, |a, &b| a.min(b));
        let ratio = if chroma * factor > value { value / chroma } else { factor };
        for x in pixels[at..].iter_mut().step_by(area) {
            *x = (value - (value - *x) * ratio).clamp(0.0, 1.0);
        }
    }
}

/// f x + (1 - f) gray, torchvision's saturation.
fn blend_with_gray(view: &mut View, factor: f32) {
    let (area, weights) = (view.area(), gray_weights(view.channels));
    if view.channels == 1 {
        return;
    }
    for at in 0..area {
        let gray = weighted(&view.pixels[at..], area, &weights) * (1.0 - factor);
        for x in view.pixels[at..].iter_mut().step_by(area) {
            *x = (*x * factor + gray).clamp(0.0, 1.0);
        }
    }
}

fn weighted(pixels: &[f32], area: usize, weights: &[f32]) -> f32 {
    pixels.iter().step_by(area).zip(weights).map(|(x, weight)| x * weight).sum()
}

/// Copies the grey value to every channel.
pub fn gray(view: &mut View) {
    let area = view.area();
    match view.channels {
        1 => {}
        3 => {
            let (red, rest) = view.pixels.split_at_mut(area);
            let (green, blue) = rest.split_at_mut(area);
            gray_rgb(red, green, blue);
        }
        channels => {
            let weights = gray_weights(channels);
            for at in 0..area {
                let value = weighted(&view.pixels[at..], area, &weights).clamp(0.0, 1.0);
                view.pixels[at..].iter_mut().step_by(area).for_each(|x| *x = value);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn gray_rgb(red: &mut [f32], green: &mut [f32], blue: &mut [f32]) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let value = (LUMA[0] * *r + LUMA[1] * *g + LUMA[2] * *b).clamp(0.0, 1.0);
        (*r, *g, *b) = (value, value, value);
    }
}

/// Shifts the hue by a share of a turn; only three channels have one.
fn hue(view: &mut View, turns: f32) {
    if view.channels != 3 {
        return;
    }
    let area = view.area();
    let (red, rest) = view.pixels.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    hue_rgb(red, green, blue, turns);
}

/// RGB to HSV, H + turns, back, without branches: with H in sixths of a turn, channel n is
/// V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6, n = 5, 3, 1 for red, green, blue.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn hue_rgb(red: &mut [f32], green: &mut [f32], blue: &mut [f32], turns: f32) {
    let shift = turns * 6.0;
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let value = r.max(*g).max(*b);
        let chroma = value - r.min(*g).min(*b);
        // Grey has no hue: any finite number will do, since the chroma that multiplies it is 0.
        let inverse = if chroma > 0.0 { 1.0 / chroma } else { 0.0 };
        let from_red = (*g - *b) * inverse;
        let from_green = (*b - *r) * inverse + 2.0;
        let from_blue = (*r - *g) * inverse + 4.0;
        let sixths = if value == *r {
            from_red
        } else if value == *g {
            from_green
        } else {
            from_blue
        } + shift;
        // In [-1 - 3, 5 + 3] before; 6 and n up to 5 more keep k's argument positive.
        let channel = |n: f32| {
            let k = sixths + (n + 6.0);
            let k = k - 6.0 * ((k * (1.0 / 6.0)) as i32 as f32);
            (value - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).clamp(0.0, 1.0)
        };
        (*r, *g, *b) = (channel(5.0), channel(3.0), channel(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(op: Jitter, model: ColorModel) -> [f32; 3] {
        let mut pixels = [0.2, 0.4, 0.6];
        jitter(&mut View { pixels: &mut pixels, channels: 3, side: 1 }, op, model);
        pixels
    }

    fn close(got: [f32; 3], expected: [f32; 3]) {
        let far = got.iter().zip(expected).any(|(a, b)| (a - b).abs() > 2e-6);
        assert!(!far, "{got:?}, expected {expected:?}");
    }

    /// The test pixel of spec 5.3.
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
    fn brightness_by_factor_and_by_shift_clip() {
        close(pixel(Jitter::Brightness(2.0), ColorModel::Tensorflow), [0.4, 0.8, 1.0]);
        close(pixel(Jitter::BrightnessShift(-0.3), ColorModel::Tensorflow), [0.0, 0.1, 0.3]);
    }

    #[test]
    fn contrast_means_differ_between_the_models() {
        let mut planes = [0.0, 1.0, 0.2, 0.4];
        contrast_by_channel(&mut View { pixels: &mut planes[..], channels: 1, side: 2 }, 0.5);
        let expected = [0.2, 0.7, 0.3, 0.4];
        assert!(planes.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{planes:?}");
        // One pixel: its own mean per channel, so nothing changes; the grey mean pulls all channels.
        close(pixel(Jitter::Contrast(0.5), ColorModel::Tensorflow), [0.2, 0.4, 0.6]);
        close(pixel(Jitter::Contrast(0.5), ColorModel::Torchvision), [0.281_49, 0.381_49, 0.481_49]);
    }

    #[test]
    fn hue_keeps_grey_and_comes_round_after_a_full_turn() {
        let mut grey = [0.3, 0.3, 0.3];
        hue(&mut View { pixels: &mut grey, channels: 3, side: 1 }, 0.2);
        close(grey, [0.3; 3]);
        let mut pixels = [0.2, 0.4, 0.6];
        for _ in 0..5 {
            hue(&mut View { pixels: &mut pixels, channels: 3, side: 1 }, 0.2);
        }
        assert!(pixels.iter().zip([0.2, 0.4, 0.6]).all(|(a, b)| (a - b).abs() < 1e-5), "{pixels:?}");
    }

    #[test]
    fn one_channel_has_neither_hue_nor_saturation() {
        for op in [Jitter::Hue(0.1), Jitter::Saturation(0.2)] {
            let mut plane = [0.1, 0.9, 0.5, 0.3];
            jitter(&mut View { pixels: &mut plane, channels: 1, side: 2 }, op, ColorModel::Tensorflow);
            assert_eq!(plane, [0.1, 0.9, 0.5, 0.3]);
        }
    }
}
