//! Shear, translation and rotation of 8-bit levels, as by Pillow's `Image.transform`: the nearest source pixel, black outside.

use super::levels::Levels;

/// Rows of the matrix from an output to a source pixel: source x = a x + b y + c, source y = d x + e y + f.
type Matrix = [[f64; 3]; 2];

/// Column and row of the source of every output pixel, in 16.16 fixed point as in `affine_fixed` of Pillow's `Geometry.c`. The
/// pixel of row y and column x comes from (`start` + x `across` + y `down`) / 65536, rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Source of the upper left pixel.
    pub start: [i32; 2],
    /// Step from a column to the next.
    pub across: [i32; 2],
    /// Step from a row to the next.
    pub down: [i32; 2],
}

/// Source x = x + `level` y: the official AutoAugment's matrix (1, level, 0, 0, 1, 0), about the top left corner.
pub(super) fn shear_x(level: f32) -> Affine {
    Affine::new([[1.0, f64::from(level), 0.0], [0.0, 1.0, 0.0]])
}

/// Source y = y + `level` x.
pub(super) fn shear_y(level: f32) -> Affine {
    Affine::new([[1.0, 0.0, 0.0], [f64::from(level), 1.0, 0.0]])
}

/// Moves by shares of the side, to the right and down, in whole pixels rounded towards zero.
pub(super) fn translate(side: usize, right: f32, down: f32) -> Affine {
    // torchvision computes pixels as f32; a share of an f32 may end just below a whole number.
    let pixels = |share: f32| (f64::from(share) * side as f64 + f64::from(share.signum()) * 1e-4).trunc();
    Affine::new([[1.0, 0.0, -pixels(right)], [0.0, 1.0, -pixels(down)]])
}

/// Turns anticlockwise about the centre.
pub(super) fn rotate(side: usize, degrees: f32) -> Affine {
    let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
    let centre = side as f64 / 2.0;
    let [x, y] = [centre - cos * centre + sin * centre, centre - sin * centre - cos * centre];
    Affine::new([[cos, -sin, x], [sin, cos, y]])
}

impl Affine {
    /// From pixel centre to pixel centre.
    fn new(matrix: Matrix) -> Self {
        // Saturated at 32768 pixels, which lie outside every view.
        let fixed = |value: f64| (value * 65_536.0 + 0.5).floor() as i32;
        Self {
            start: matrix.map(|[x, y, shift]| fixed(shift + 0.5 * x + 0.5 * y)),
            across: matrix.map(|[x, ..]| fixed(x)),
            down: matrix.map(|[_, y, _]| fixed(y)),
        }
    }

    pub(super) fn gather(self, levels: &mut Levels) {
        let (side, area) = (levels.side as i64, levels.area());
        let Self { start, across, down } = self;
        levels.spare.clear();
        levels.spare.resize(area, 0);
        for plane in levels.planes.chunks_exact_mut(area) {
            levels.spare.copy_from_slice(plane);
            for (y, row) in plane.chunks_exact_mut(levels.side).enumerate() {
                let line = [0, 1].map(|axis| i64::from(start[axis]) + i64::from(down[axis]) * y as i64);
                for (x, slot) in row.iter_mut().enumerate() {
                    let [x, y] = [0, 1].map(|axis| (line[axis] + i64::from(across[axis]) * x as i64) >> 16);
                    let inside = (0..side).contains(&x) && (0..side).contains(&y);
                    *slot = if inside { levels.spare[(y * side + x) as usize] } else { 0 };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(by: Affine) -> [u8; 16] {
        let (mut planes, mut spare) = ((1..=16).collect::<Vec<u8>>(), Vec::new());
        by.gather(&mut Levels { planes: &mut planes, spare: &mut spare, channels: 1, side: 4 });
        planes.try_into().unwrap()
    }

    #[test]
    fn directions_and_fill() {
        let right = moved(translate(4, 0.49, 0.0));
        assert_eq!(right, [0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15]);
        let up = moved(translate(4, 0.0, -0.5));
        assert_eq!(up, [9, 10, 11, 12, 13, 14, 15, 16, 0, 0, 0, 0, 0, 0, 0, 0]);
        let turned = moved(rotate(4, 90.0));
        assert_eq!(turned, [4, 8, 12, 16, 3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13]);
        // Row y reads 0.5 (y + 1/2) pixels further right: by 0, 0 or 1, 1, and 1 or 2.
        let sheared = moved(shear_x(0.5));
        assert_eq!(sheared[..4], [1, 2, 3, 4]);
        assert_eq!(sheared[8..12], [10, 11, 12, 0]);
    }

    #[test]
    fn nothing_moves_by_zero() {
        let still: Vec<u8> = (1..=16).collect();
        for by in [shear_x(0.0), shear_y(0.0), rotate(4, 0.0), translate(4, 0.0, 0.0)] {
            assert_eq!(moved(by)[..], still);
        }
    }

    #[test]
    fn what_comes_from_far_outside_is_black() {
        for by in [shear_x(1e30), shear_y(-1e30), translate(4, 1e30, 0.0), translate(4, 0.0, -1e30)] {
            assert_eq!(moved(by), [0; 16], "{by:?}");
        }
    }
}
