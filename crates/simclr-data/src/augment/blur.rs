//! Gaussian blur: separable, zero padding at the edges, which darken (google-research/simclr `data_util.py`
//! `gaussian_blur`; spec 5.4). The official code draws one sigma per device batch; here every view has its own.

use multiversion::multiversion;

use super::View;

/// Normalised weights of a Gaussian for a view of `side` pixels: size 2 r + 1, r = (side / 10) / 2, at least 1.
///
/// 224 px: 23 weights; 32 and 28 px: 3.
pub fn kernel(side: usize, sigma: f32) -> Vec<f32> {
    let radius = (side / 10 / 2).max(1) as i32;
    let weight = |x: i32| (-f64::from(x * x) / (2.0 * f64::from(sigma) * f64::from(sigma))).exp();
    let sum: f64 = (-radius..=radius).map(weight).sum();
    (-radius..=radius).map(|x| (weight(x) / sum) as f32).collect()
}

/// Blurs every plane, rows first; `buffer` holds one plane between the passes.
pub fn gaussian(view: &mut View, sigma: f32, buffer: &mut Vec<f32>) {
    let (side, area) = (view.side, view.area());
    let kernel = kernel(side, sigma);
    buffer.resize(area, 0.0);
    for plane in view.pixels.chunks_exact_mut(area) {
        along_rows(plane, buffer, side, &kernel);
        along_columns(buffer, plane, side, &kernel);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn along_rows(source: &[f32], target: &mut [f32], side: usize, kernel: &[f32]) {
    let radius = kernel.len() / 2;
    for (row, out) in source.chunks_exact(side).zip(target.chunks_exact_mut(side)) {
        out.fill(0.0);
        for (tap, &weight) in kernel.iter().enumerate() {
            // Output x reads input x + tap - radius, where that lies inside the row.
            let (from, to) = (radius.saturating_sub(tap), (side + radius - tap).min(side));
            if from >= to {
                continue;
            }
            let start = from + tap - radius;
            for (sum, x) in out[from..to].iter_mut().zip(&row[start..]) {
                *sum += weight * x;
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn along_columns(source: &[f32], target: &mut [f32], side: usize, kernel: &[f32]) {
    let radius = kernel.len() / 2;
    for (y, out) in target.chunks_exact_mut(side).enumerate() {
        out.fill(0.0);
        for (tap, &weight) in kernel.iter().enumerate() {
            let Some(row) = (y + tap).checked_sub(radius).filter(|&row| row < side) else { continue };
            for (sum, x) in out.iter_mut().zip(&source[row * side..(row + 1) * side]) {
                *sum += weight * x;
            }
        }
        out.iter_mut().for_each(|x| *x = x.clamp(0.0, 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernel checks of spec 5.4.
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
    fn the_middle_keeps_a_constant_and_edges_darken() {
        let mut pixels = vec![0.5; 64];
        gaussian(&mut View { pixels: &mut pixels, channels: 1, side: 8 }, 1.0, &mut Vec::new());
        assert!((pixels[8 * 4 + 4] - 0.5).abs() < 1e-6);
        assert!((pixels[4] - 0.5 * (1.0 - 0.274_069)).abs() < 1e-5, "{}", pixels[4]);
    }
}
