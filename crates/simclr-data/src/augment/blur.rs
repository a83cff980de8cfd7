//! Separable Gaussian blur with zero padding, which darkens the edges (google-research/simclr `data_util.py`
//! `gaussian_blur`). The official code draws one sigma per device batch; here every view has its own.

use multiversion::multiversion;

use super::View;

/// Normalised weights for a view of `side` pixels: 2 r + 1 of them, with r = (side / 10) / 2, at least 1.
///
/// 224 px: 23 weights; 32 and 28 px: 3.
pub fn kernel(side: usize, sigma: f32) -> Vec<f32> {
    let radius = (side / 10 / 2).max(1) as i32;
    let weight = |x: i32| (-f64::from(x * x) / (2.0 * f64::from(sigma) * f64::from(sigma))).exp();
    let sum: f64 = (-radius..=radius).map(weight).sum();
    (-radius..=radius).map(|x| (weight(x) / sum) as f32).collect()
}

/// Smaller weights are left out: they change values in `[0, 1]` by less than a fiftieth of the `f32` epsilon. Narrow Gaussians
/// have many of them, on average half of the work.
const NEGLIGIBLE: f32 = 1e-9;
/// Width of the vectorised sums.
const LANES: usize = 32;

/// Blurs every plane; `buffer` holds the rows between the two passes. With `alike` all planes are equal (a grey view): one is
/// blurred and copied.
pub fn gaussian(view: &mut View, sigma: f32, alike: bool, buffer: &mut Vec<f32>) {
    let (side, area) = (view.side, view.area());
    let kernel = kernel(side, sigma);
    let outer = kernel.iter().take_while(|&&weight| weight < NEGLIGIBLE).count();
    let kernel = &kernel[outer..kernel.len() - outer];
    if !alike {
        view.pixels.chunks_exact_mut(area).for_each(|plane| blur(plane, side, kernel, buffer));
        return;
    }
    let (first, rest) = view.pixels.split_at_mut(area);
    blur(first, side, kernel, buffer);
    rest.chunks_exact_mut(area).for_each(|plane| plane.copy_from_slice(first));
}

/// Both passes in one walk: after the horizontal pass of a row, the row `radius` above has all its inputs for the vertical
/// pass, still in the L1 cache.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn blur(plane: &mut [f32], side: usize, kernel: &[f32], buffer: &mut Vec<f32>) {
    let radius = kernel.len() / 2;
    let width = side.next_multiple_of(LANES);
    // One zero-padded row of the plane, then all rows after the horizontal pass, zero-padded above and below.
    buffer.resize((width + 2 * radius) + (side + 2 * radius) * width, 0.0);
    let (padded, rows) = buffer.split_at_mut(width + 2 * radius);
    padded.fill(0.0);
    rows[..radius * width].fill(0.0);
    rows[(radius + side) * width..].fill(0.0);
    for y in 0..side + radius {
        if y < side {
            padded[radius..][..side].copy_from_slice(&plane[y * side..][..side]);
            let row = &mut rows[(radius + y) * width..][..width];
            for (x, out) in row.chunks_exact_mut(LANES).enumerate() {
                out.copy_from_slice(&weighted(&padded[x * LANES..], 1, kernel));
            }
        }
        let Some(target) = y.checked_sub(radius) else { continue };
        for (x, out) in plane[target * side..][..side].chunks_mut(LANES).enumerate() {
            let sums = weighted(&rows[target * width + x * LANES..], width, kernel);
            out.iter_mut().zip(sums).for_each(|(slot, sum)| *slot = sum.clamp(0.0, 1.0));
        }
    }
}

/// Weighted sum of `values[k * step..][..LANES]` over the taps k.
#[inline(always)]
fn weighted(values: &[f32], step: usize, kernel: &[f32]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for (tap, weight) in kernel.iter().enumerate() {
        for (sum, value) in sums.iter_mut().zip(&values[tap * step..][..LANES]) {
            *sum += weight * value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_weights_and_sizes() {
        for (sigma, expected) in [
            (0.5, [0.106_507, 0.786_986, 0.106_507]),
            (1.0, [0.274_069, 0.451_863, 0.274_069]),
            (2.0, [0.319_168, 0.361_664, 0.319_168]),
        ] {
            let got = kernel(32, sigma);
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{sigma}: {got:?}");
        }
        assert_eq!((kernel(224, 1.0).len(), kernel(28, 1.0).len()), (23, 3));
    }

    #[test]
    fn constant_images_keep_their_value_but_for_darkened_edges() {
        let mut pixels = vec![0.5; 64];
        gaussian(&mut View { pixels: &mut pixels, channels: 1, side: 8 }, 1.0, false, &mut Vec::new());
        assert!((pixels[8 * 4 + 4] - 0.5).abs() < 1e-6);
        assert!((pixels[4] - 0.5 * (1.0 - 0.274_069)).abs() < 1e-5, "{}", pixels[4]);
    }
}
