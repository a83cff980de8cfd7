//! Motion blur: the mean of a view over its shifts along a line.
//!
//! The paper adds it in appendix B.2 without parameters; kernel, range of lengths and uniform directions are ours. For a length L
//! the kernel has n = ceil(L) equal points, at equal distances on a line of length L - 1 (n pixel centres in a row, if L is whole)
//! about the origin. A point between pixels is shared among the four around it with bilinear weights. Pixels outside the view are
//! those of its edge, so constant views stay as they are.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::View;

/// Parameters of a motion blur.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MotionBlur {
    /// L in pixels of the view, at least 1, which blurs nothing.
    pub length: f32,
    /// Direction, anticlockwise from the rows, in `[0, 180)`.
    pub degrees: f32,
}

/// A weight and its offset in columns and rows.
type Tap = (isize, isize, f32);

/// Smaller weights are left out: they change values in `[0, 1]` by less than a fiftieth of the `f32` epsilon.
const NEGLIGIBLE: f64 = 1e-9;
/// Width of the vectorised sums.
const LANES: usize = 32;

impl MotionBlur {
    /// Unit vector of the direction: columns to the right, rows down.
    pub fn direction(self) -> (f64, f64) {
        let (sin, cos) = f64::from(self.degrees).to_radians().sin_cos();
        (cos, -sin)
    }

    /// The largest offset, and the weights that are not negligible, row by row. They sum to 1.
    fn taps(self) -> (usize, Vec<Tap>) {
        let length = f64::from(self.length).max(1.0);
        let (count, reach) = (length.ceil() as usize, (length - 1.0) / 2.0);
        let radius = reach.ceil() as isize;
        let side = 2 * radius + 2;
        let mut weights = vec![0.0; (side * side) as usize];
        let (right, down) = self.direction();
        for point in 0..count {
            let at = 2.0 * reach * point as f64 / (count - 1).max(1) as f64 - reach;
            let (x, y) = (at * right, at * down);
            let (column, row) = (x.floor(), y.floor());
            for (dx, dy, share) in corners(x - column, y - row) {
                let place = (row as isize + radius + dy) * side + column as isize + radius + dx;
                weights[place as usize] += share / count as f64;
            }
        }
        let kept = weights.iter().enumerate().filter(|(_, weight)| **weight > NEGLIGIBLE);
        let tap = |(at, &weight): (usize, &f64)| {
            (at as isize % side - radius, at as isize / side - radius, weight as f32)
        };
        (radius as usize, kept.map(tap).collect())
    }
}

/// The four pixels around a point (columns, rows) and their bilinear weights.
fn corners(x: f64, y: f64) -> [(isize, isize, f64); 4] {
    [(0, 0, (1.0 - x) * (1.0 - y)), (1, 0, x * (1.0 - y)), (0, 1, (1.0 - x) * y), (1, 1, x * y)]
}

/// Blurs every plane; `buffer` holds a plane with its margin. With `alike` all planes are equal (a grey view): one is blurred
/// and copied.
pub(super) fn apply(view: &mut View, blur: MotionBlur, alike: bool, buffer: &mut Vec<f32>) {
    let (side, area) = (view.side, view.area());
    let (radius, taps) = blur.taps();
    let distinct = if alike { area } else { view.pixels.len() };
    let (blurred, copies) = view.pixels.split_at_mut(distinct);
    for plane in blurred.chunks_exact_mut(area) {
        let width = pad(plane, side, radius, buffer);
        convolve(plane, (side, radius), buffer, width, &taps);
    }
    copies.chunks_exact_mut(area).for_each(|plane| plane.copy_from_slice(&blurred[..area]));
}

/// Copies a plane with `radius` replicated pixels around it; rows are as long as the sums of [`LANES`] read. Returns their length.
fn pad(plane: &[f32], side: usize, radius: usize, buffer: &mut Vec<f32>) -> usize {
    let width = side.next_multiple_of(LANES) + 2 * radius;
    buffer.resize(width * (side + 2 * radius), 0.0);
    for (y, out) in buffer.chunks_exact_mut(width).enumerate() {
        let row = &plane[y.saturating_sub(radius).min(side - 1) * side..][..side];
        out[..radius].fill(row[0]);
        out[radius..][..side].copy_from_slice(row);
        out[radius + side..].fill(row[side - 1]);
    }
    width
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn convolve(plane: &mut [f32], (side, radius): (usize, usize), padded: &[f32], width: usize, taps: &[Tap]) {
    for (y, row) in plane.chunks_exact_mut(side).enumerate() {
        for (block, out) in row.chunks_mut(LANES).enumerate() {
            let centre = (y + radius) * width + radius + block * LANES;
            let mut sums = [0.0; LANES];
            for &(dx, dy, weight) in taps {
                let from = centre.wrapping_add_signed(dy * width as isize + dx);
                for (sum, value) in sums.iter_mut().zip(&padded[from..][..LANES]) {
                    *sum += weight * value;
                }
            }
            out.iter_mut().zip(sums).for_each(|(slot, sum)| *slot = sum.clamp(0.0, 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(length: f32, degrees: f32) -> Vec<Tap> {
        MotionBlur { length, degrees }.taps().1
    }

    #[track_caller]
    fn close(found: &[Tap], expected: &[Tap]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (a, b) in found.iter().zip(expected) {
            assert!((a.0, a.1) == (b.0, b.1) && (a.2 - b.2).abs() < 1e-6, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn whole_lengths_along_rows_and_columns_are_boxes() {
        let third = 1.0 / 3.0;
        close(&kernel(3.0, 0.0), &[(-1, 0, third), (0, 0, third), (1, 0, third)]);
        close(&kernel(3.0, 90.0), &[(0, -1, third), (0, 0, third), (0, 1, third)]);
        // Two points half a pixel to the left and to the right.
        close(&kernel(2.0, 0.0), &[(-1, 0, 0.25), (0, 0, 0.5), (1, 0, 0.25)]);
        close(&kernel(1.0, 77.0), &[(0, 0, 1.0)]);
    }

    /// Three points, the outer ones sqrt(1/2) pixels right and up, left and down.
    #[test]
    fn a_diagonal_line_rises_to_the_right() {
        let found = kernel(3.0, 45.0);
        let s = 0.5f32.sqrt();
        let at = |x, y| found.iter().find(|tap| (tap.0, tap.1) == (x, y)).map_or(0.0, |tap| tap.2);
        assert!((at(1, -1) - s * s / 3.0).abs() < 1e-6 && at(1, 1) == 0.0, "{found:?}");
        assert!((at(0, 0) - (1.0 + 2.0 * (1.0 - s) * (1.0 - s)) / 3.0).abs() < 1e-6);
    }

    #[test]
    fn weights_sum_to_one_and_are_symmetric() {
        for (length, degrees) in [(4.4, 17.0), (9.0, 120.0), (15.0, 45.0), (100.0, 3.0)] {
            let taps = kernel(length, degrees);
            let sum: f32 = taps.iter().map(|tap| tap.2).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            let mirrored: Vec<Tap> = taps.iter().rev().map(|&(x, y, weight)| (-x, -y, weight)).collect();
            close(&taps, &mirrored);
        }
    }

    #[test]
    fn constant_views_stay_and_grey_planes_are_copied() {
        let blur = MotionBlur { length: 30.0, degrees: 25.0 };
        let mut pixels = vec![0.25; 3 * 81];
        apply(&mut View { pixels: &mut pixels, channels: 3, side: 9 }, blur, false, &mut Vec::new());
        assert!(pixels.iter().all(|value| (value - 0.25).abs() < 1e-6));
        let plane: Vec<f32> = (0..81).map(|at| (at * 7 % 81) as f32 / 81.0).collect();
        let [mut alike, mut each] = [plane.repeat(3), plane.repeat(3)];
        apply(&mut View { pixels: &mut alike, channels: 3, side: 9 }, blur, true, &mut Vec::new());
        apply(&mut View { pixels: &mut each, channels: 3, side: 9 }, blur, false, &mut Vec::new());
        assert_eq!(alike, each);
    }
}
