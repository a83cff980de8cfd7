//! Solarization, Sobel filter, Gaussian noise and cutout: operators of the composition study (paper 3.1), which published no
//! parameters. Ours: Sobel magnitude of the luma, cutout of a grey square of half the side.

use std::ops::Range;

use super::{Cutout, NoiseSeed, View, ViewParams, color};
use crate::rng::Key;

const CUTOUT_FILL: f32 = 0.5;

/// Applies the operators that `params` enable, in the order solarize, Sobel, noise, cutout.
pub(super) fn apply(view: &mut View, params: &ViewParams, buffer: &mut Vec<f32>) {
    if let Some(threshold) = params.solarize {
        solarize(view, threshold);
    }
    if params.sobel {
        sobel(view, buffer);
    }
    if let Some(seed) = params.noise {
        noise(view, seed);
    }
    if let Some(centre) = params.cutout {
        cutout(view, centre);
    }
}

fn solarize(view: &mut View, threshold: f32) {
    for x in view.pixels.iter_mut() {
        *x = if *x >= threshold { 1.0 - *x } else { *x };
    }
}

/// Gradient magnitude of the grey image in every channel, clipped at 1; edge pixels are replicated.
fn sobel(view: &mut View, buffer: &mut Vec<f32>) {
    let (side, area) = (view.side, view.area());
    color::gray(view);
    buffer.clear();
    buffer.extend_from_slice(&view.pixels[..area]);
    let at = |y: usize, dy: usize, x: usize, dx: usize| {
        // Offsets 0, 1, 2 mean -1, 0, +1.
        let inside = |v: usize, d: usize| (v + d).saturating_sub(1).min(side - 1);
        buffer[inside(y, dy) * side + inside(x, dx)]
    };
    for y in 0..side {
        for x in 0..side {
            let column = |dx| at(y, 0, x, dx) + 2.0 * at(y, 1, x, dx) + at(y, 2, x, dx);
            let row = |dy| at(y, dy, x, 0) + 2.0 * at(y, dy, x, 1) + at(y, dy, x, 2);
            let (horizontal, vertical) = (column(2) - column(0), row(2) - row(0));
            let magnitude = (horizontal * horizontal + vertical * vertical).sqrt().min(1.0);
            for channel in 0..view.channels {
                view.pixels[channel * area + y * side + x] = magnitude;
            }
        }
    }
}

impl NoiseSeed {
    /// Standard deviation; values lie in `[0, 1]`.
    pub fn sigma(self) -> f32 {
        self.sigma_millionths as f32 * 1e-6
    }
}

/// Pairs of draws in the order of planes. The kernel `view_noise` of `simclr-shim` repeats the stream block by block.
fn noise(view: &mut View, seed: NoiseSeed) {
    let sigma = seed.sigma();
    let mut stream = Key { seed: seed.seed, epoch: 0, image: 0, view: 0 }.stream();
    for pair in view.pixels.chunks_mut(2) {
        let (a, b) = stream.normal_pair();
        for (x, z) in pair.iter_mut().zip([a, b]) {
            *x = (*x + sigma * z).clamp(0.0, 1.0);
        }
    }
}

impl Cutout {
    /// Columns and rows covered in a view of `side` pixels: half the side around the centre, clipped at the border.
    pub fn covers(self, side: usize) -> (Range<usize>, Range<usize>) {
        let quarter = side / 4;
        let span = |share: f32| {
            let middle = (share * side as f32) as usize;
            middle.saturating_sub(quarter)..(middle + side / 2 - quarter).min(side)
        };
        (span(self.x), span(self.y))
    }
}

fn cutout(view: &mut View, centre: Cutout) {
    let (side, area) = (view.side, view.area());
    let (columns, rows) = centre.covers(side);
    for plane in view.pixels.chunks_exact_mut(area) {
        for y in rows.clone() {
            plane[y * side..][columns.clone()].fill(CUTOUT_FILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sobel_of_a_step_edge() {
        // Columns 0 0 1/8 1/8: the middle columns see (1 + 2 + 1) / 8.
        let mut pixels: Vec<f32> = [0.0, 0.0, 0.125, 0.125].repeat(4);
        sobel(&mut View { pixels: &mut pixels, channels: 1, side: 4 }, &mut Vec::new());
        assert_eq!(pixels[..4], [0.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn solarize_inverts_above_the_threshold() {
        let mut pixels = [0.25, 0.5, 0.75, 1.0];
        solarize(&mut View { pixels: &mut pixels, channels: 1, side: 2 }, 0.5);
        assert_eq!(pixels, [0.25, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn cutout_fills_a_quarter_of_the_view() {
        let mut pixels = vec![0.0; 32 * 32];
        cutout(&mut View { pixels: &mut pixels, channels: 1, side: 32 }, Cutout { x: 0.5, y: 0.5 });
        assert_eq!(pixels.iter().filter(|&&x| x == CUTOUT_FILL).count(), 16 * 16);
        cutout(&mut View { pixels: &mut pixels, channels: 1, side: 32 }, Cutout { x: 0.99, y: 0.0 });
    }

    #[test]
    fn noise_is_seeded_and_has_the_requested_deviation() {
        let make = |seed| {
            let mut pixels = vec![0.5; 10_000];
            let seed = NoiseSeed { sigma_millionths: 50_000, seed };
            noise(&mut View { pixels: &mut pixels, channels: 1, side: 100 }, seed);
            pixels
        };
        let pixels = make(1);
        let variance = pixels.iter().map(|x| (x - 0.5).powi(2)).sum::<f32>() / 1e4;
        assert!((variance.sqrt() - 0.05).abs() < 0.002, "{}", variance.sqrt());
        assert_eq!(pixels, make(1));
        assert_ne!(pixels, make(2));
    }
}
