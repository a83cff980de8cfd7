//! Brightness, colour, contrast and sharpness on 8-bit levels, as by Pillow's `ImageEnhance`: every level is blended with that of
//! a degenerate image, f x + (1 - f) d, in f32 and truncated (`Blend.c`).

use super::levels::Levels;

/// Blends with black.
pub(super) fn brightness(levels: &mut Levels, factor: f32) {
    levels.map(|level| blend(0, level, factor));
}

/// Blends with the grey image.
pub(super) fn color(levels: &mut Levels, factor: f32) {
    if levels.channels == 1 {
        return;
    }
    gray(levels);
    let area = levels.area();
    for plane in levels.planes.chunks_exact_mut(area) {
        blend_all(plane, levels.spare, factor);
    }
}

/// Blends with the mean of the grey image, rounded to a level.
pub(super) fn contrast(levels: &mut Levels, factor: f32) {
    gray(levels);
    let sum: u64 = levels.spare.iter().map(|&level| u64::from(level)).sum();
    let mean = (sum as f64 / levels.area() as f64 + 0.5) as u8;
    levels.map(|level| blend(mean, level, factor));
}

/// Blends with the image smoothed by the 3 x 3 mean of which the centre counts five times (`ImageFilter.SMOOTH`); border pixels
/// are not smoothed.
pub(super) fn sharpness(levels: &mut Levels, factor: f32) {
    let (side, area) = (levels.side, levels.area());
    for plane in levels.planes.chunks_exact_mut(area) {
        levels.spare.clear();
        levels.spare.extend_from_slice(plane);
        for y in 1..side.saturating_sub(1) {
            let [above, own, below] = [y - 1, y, y + 1].map(|row| &plane[row * side..][..side]);
            let smoothed = &mut levels.spare[y * side..][1..side - 1];
            for ((slot, above), (own, below)) in
                smoothed.iter_mut().zip(above.windows(3)).zip(own.windows(3).zip(below.windows(3)))
            {
                let sum = |row: &[u8]| row.iter().map(|&level| u32::from(level)).sum::<u32>();
                let weighted = sum(above) + sum(own) + sum(below) + 4 * u32::from(own[1]);
                // Rounded: a quotient by 13 has no half.
                *slot = ((2 * weighted + 13) / 26) as u8;
            }
        }
        blend_all(plane, levels.spare, factor);
    }
}

fn blend_all(plane: &mut [u8], degenerate: &[u8], factor: f32) {
    plane.iter_mut().zip(degenerate).for_each(|(level, &other)| *level = blend(other, *level, factor));
}

fn blend(degenerate: u8, level: u8, factor: f32) -> u8 {
    let (degenerate, level) = (f32::from(degenerate), f32::from(level));
    (degenerate + factor * (level - degenerate)) as u8
}

/// The grey image, into `spare`: Pillow's luma in 16-bit fixed point (`Convert.c`) for three channels, else the rounded mean.
fn gray(levels: &mut Levels) {
    let (area, channels) = (levels.area(), levels.channels);
    let planes = &*levels.planes;
    levels.spare.clear();
    if channels == 3 {
        let (red, rest) = planes.split_at(area);
        let (green, blue) = rest.split_at(area);
        let luma = |((&r, &g), &b): ((&u8, &u8), &u8)| {
            let [r, g, b] = [r, g, b].map(u32::from);
            ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
        };
        levels.spare.extend(red.iter().zip(green).zip(blue).map(luma));
    } else {
        let mean = |at: usize| {
            let sum: usize = planes[at..].iter().step_by(area).map(|&level| usize::from(level)).sum();
            ((2 * sum + channels) / (2 * channels)) as u8
        };
        levels.spare.extend((0..area).map(mean));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enhanced(work: impl Fn(&mut Levels, f32), factor: f32, planes: &[u8], channels: usize) -> Vec<u8> {
        let side = (planes.len() / channels).isqrt();
        let (mut planes, mut spare) = (planes.to_vec(), Vec::new());
        work(&mut Levels { planes: &mut planes, spare: &mut spare, channels, side }, factor);
        planes
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        let planes: Vec<u8> = (0..75).map(|at| (at * 37 % 256) as u8).collect();
        for work in [brightness, color, contrast, sharpness] {
            assert_eq!(enhanced(work, 1.0, &planes, 3), planes);
        }
    }

    #[test]
    fn a_factor_of_zero_gives_the_degenerate_image() {
        let planes = [10, 20, 30, 40];
        assert_eq!(enhanced(brightness, 0.0, &planes, 1), [0; 4]);
        assert_eq!(enhanced(contrast, 0.0, &planes, 1), [25; 4]);
        // Two channels: the grey of a pixel is the mean of both, here 20 and 30.
        assert_eq!(enhanced(color, 0.0, &[10, 30], 2), [20, 20]);
        assert_eq!(enhanced(color, 0.0, &planes, 1), planes, "one channel has no colour");
        let spot = [0, 0, 0, 0, 130, 0, 0, 0, 0];
        assert_eq!(enhanced(sharpness, 0.0, &spot, 1), [0, 0, 0, 0, 50, 0, 0, 0, 0]);
    }
}
