//! Flip and rotation of a view.

use super::View;

pub(super) fn flip(view: &mut View) {
    view.pixels.chunks_exact_mut(view.side).for_each(<[f32]>::reverse);
}

/// Swaps top and bottom.
pub(super) fn flip_vertically(view: &mut View) {
    let (side, area) = (view.side, view.area());
    for plane in view.pixels.chunks_exact_mut(area) {
        let (upper, lower) = plane.split_at_mut(side / 2 * side);
        let lower = lower.chunks_exact_mut(side).rev();
        upper.chunks_exact_mut(side).zip(lower).for_each(|(row, other)| row.swap_with_slice(other));
    }
}

/// Rotates by quarter turns, anticlockwise.
pub(super) fn rotate(view: &mut View, quarter_turns: u8, buffer: &mut Vec<f32>) {
    let side = view.side;
    for _ in 0..quarter_turns % 4 {
        for plane in view.pixels.chunks_exact_mut(side * side) {
            buffer.clear();
            buffer.extend_from_slice(plane);
            for (at, slot) in plane.iter_mut().enumerate() {
                let (y, x) = (at / side, at % side);
                *slot = buffer[x * side + (side - 1 - y)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_vertical_flips_are_the_identity_and_one_and_a_mirror_half_a_turn() {
        for side in [1, 2, 5] {
            let original: Vec<f32> = (0..2 * side * side).map(|at| at as f32).collect();
            let (mut pixels, mut turned) = (original.clone(), original.clone());
            let mut view = View { pixels: &mut pixels, channels: 2, side };
            flip_vertically(&mut view);
            flip(&mut view);
            rotate(&mut View { pixels: &mut turned, channels: 2, side }, 2, &mut Vec::new());
            assert_eq!(pixels, turned);
            let mut view = View { pixels: &mut pixels, channels: 2, side };
            flip(&mut view);
            flip_vertically(&mut view);
            flip_vertically(&mut view);
            flip_vertically(&mut view);
            assert_eq!(pixels, original);
        }
    }

    #[test]
    fn quarter_turns_are_anticlockwise_and_four_are_the_identity() {
        let mut pixels = [1.0, 2.0, 3.0, 4.0];
        let turn = |pixels: &mut [f32], turns| {
            rotate(&mut View { pixels, channels: 1, side: 2 }, turns, &mut Vec::new())
        };
        turn(&mut pixels, 1);
        assert_eq!(pixels, [2.0, 4.0, 1.0, 3.0]);
        turn(&mut pixels, 3);
        assert_eq!(pixels, [1.0, 2.0, 3.0, 4.0]);
    }
}
