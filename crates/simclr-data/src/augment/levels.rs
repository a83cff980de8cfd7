//! Operators on 8-bit levels, as by Pillow's `ImageOps`: a table of 256 levels per channel.

use super::{View, crop};

/// Output level of every input level.
type Table = [u8; 256];
/// Number of pixels of every level.
type Histogram = [usize; 256];

/// A view as bytes: `channels` planes of `side` x `side` levels.
pub(super) struct Levels<'a> {
    pub(super) planes: &'a mut Vec<u8>,
    /// Memory for operators that cannot work in place.
    pub(super) spare: &'a mut Vec<u8>,
    pub(super) channels: usize,
    pub(super) side: usize,
}

impl Levels<'_> {
    pub(super) fn area(&self) -> usize {
        self.side * self.side
    }

    /// Maps every level of every channel.
    pub(super) fn map(&mut self, to: impl Fn(u8) -> u8) {
        let table: Table = std::array::from_fn(|level| to(level as u8));
        self.planes.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
    }

    /// Maps every channel by the table of its histogram.
    pub(super) fn map_by_histogram(&mut self, table: impl Fn(&Histogram) -> Table) {
        let area = self.area();
        for plane in self.planes.chunks_exact_mut(area) {
            let table = table(&histogram(plane.iter().copied()));
            plane.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
        }
    }
}

/// Rounds `view` to levels, lets `work` change them, and writes them back.
pub(super) fn on_levels(
    view: &mut View,
    (planes, spare): (&mut Vec<u8>, &mut Vec<u8>),
    work: impl FnOnce(&mut Levels),
) {
    planes.clear();
    planes.extend(view.pixels.iter().map(|&value| nearest(value)));
    let mut levels = Levels { planes, spare, channels: view.channels, side: view.side };
    work(&mut levels);
    view.pixels.iter_mut().zip(&*levels.planes).for_each(|(value, &level)| *value = crop::level(level));
}

/// Equalizes the histogram of every channel of `view`, after rounding to levels (Pillow's `ImageOps.equalize`).
pub(super) fn equalize(view: &mut View) {
    let area = view.area();
    for plane in view.pixels.chunks_exact_mut(area) {
        let table = equalizing(&histogram(plane.iter().map(|&value| nearest(value))));
        plane.iter_mut().for_each(|value| *value = crop::level(table[usize::from(nearest(*value))]));
    }
}

/// Clamps to `[0, 255]`; halves are rounded up.
fn nearest(value: f32) -> u8 {
    (value * 255.0 + 0.5) as u8
}

fn histogram(levels: impl Iterator<Item = u8>) -> Histogram {
    let mut counts = [0; 256];
    levels.for_each(|level| counts[usize::from(level)] += 1);
    counts
}

/// Pillow's `ImageOps.equalize`: with n pixels, of which m have the highest level, a step is (n - m) / 255 pixels, and a level
/// with k pixels below it becomes (step / 2 + k) / step, all in integers.
pub(super) fn equalizing(histogram: &Histogram) -> Table {
    let highest = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or_default();
    let step = (histogram.iter().sum::<usize>() - highest) / 255;
    let mut below = step / 2;
    std::array::from_fn(|level| {
        let mapped = below.checked_div(step).map_or(level, |quotient| quotient.min(255));
        below += histogram[level];
        mapped as u8
    })
}

/// Pillow's `ImageOps.autocontrast` without a cutoff: the lowest and the highest level that occur become 0 and 255.
pub(super) fn stretching(histogram: &Histogram) -> Table {
    let lowest = histogram.iter().position(|&count| count > 0).unwrap_or_default();
    let highest = histogram.iter().rposition(|&count| count > 0).unwrap_or_default();
    let scale = 255.0 / highest.saturating_sub(lowest) as f64;
    let shift = -(lowest as f64) * scale;
    std::array::from_fn(
        |level| {
            if highest > lowest { (level as f64 * scale + shift) as u8 } else { level as u8 }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_its_own_nearest_level() {
        for level in 0..=u8::MAX {
            assert_eq!(nearest(crop::level(level)), level);
        }
        assert_eq!([nearest(-0.3), nearest(1.2), nearest(0.4999 / 255.0)], [0, 255, 0]);
    }

    #[test]
    fn a_uniform_histogram_is_not_changed_by_equalizing() {
        let table = equalizing(&[7; 256]);
        assert!(table.iter().enumerate().all(|(level, &mapped)| usize::from(mapped) == level));
    }

    /// Two levels with half of the pixels each: a step of (200 - 100) / 255 = 0 leaves them, one of 2 spreads them to both ends.
    #[test]
    fn two_levels_are_spread_once_there_is_a_pixel_per_level() {
        let two = |count| {
            let mut histogram = [0; 256];
            (histogram[100], histogram[101]) = (count, count);
            let table = equalizing(&histogram);
            (table[100], table[101])
        };
        assert_eq!(two(100), (100, 101));
        assert_eq!(two(510), (0, 255));
    }

    #[test]
    fn stretching_reaches_both_ends_and_leaves_a_single_level() {
        let mut histogram = [0; 256];
        (histogram[50], histogram[101]) = (1, 1);
        let table = stretching(&histogram);
        assert_eq!((table[50], table[51], table[101], table[200], table[3]), (0, 5, 255, 255, 0));
        histogram[101] = 0;
        assert_eq!(stretching(&histogram)[50], 50);
    }
}
