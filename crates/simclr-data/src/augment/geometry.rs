//! Flip and rotation of a view.

use super::View;

pub(super) fn flip(view: &mut View) {
    view.pixels.chunks_exact_mut(view.side).for_each(<[f32]>::reverse);
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
