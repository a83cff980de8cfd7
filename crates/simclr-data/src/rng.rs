//! Counter-based random numbers: every key has a stream of its own, without shared state.
//!
//! ChaCha8 in counter mode. Its 256-bit key consists of the four numbers (seed, epoch, image, view), so that no two of them share
//! a stream and a checkpoint needs no generator state.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Identifies a stream of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Index of the image in its data set; the largest values are reserved for [`Key::order`] and below.
    pub image: u64,
    /// View of the image, 0 or 1; the step for [`Key::chunking`], the parameter for [`Key::weights`].
    pub view: u64,
}

impl Key {
    /// For the order of the images of an epoch.
    pub fn order(seed: u64, epoch: u64) -> Self {
        Self { seed, epoch, image: u64::MAX, view: 0 }
    }

    /// For the partition of a step's batch into chunks.
    pub fn chunking(seed: u64, epoch: u64, step: u64) -> Self {
        Self { seed, epoch, image: u64::MAX - 1, view: step }
    }

    /// For the initial values of a model's parameter.
    pub fn weights(seed: u64, parameter: u64) -> Self {
        Self { seed, epoch: 0, image: u64::MAX - 2, view: parameter }
    }

    /// For the permutation of a step's batch in the key encoder (shuffling BN).
    pub fn shuffle(seed: u64, step: u64) -> Self {
        Self { seed, epoch: 0, image: u64::MAX - 3, view: step }
    }

    /// For the initial keys of a queue.
    pub fn queue(seed: u64) -> Self {
        Self { seed, epoch: 0, image: u64::MAX - 4, view: 0 }
    }

    /// For a choice of images to look at, outside training.
    pub fn choice(seed: u64, number: u64) -> Self {
        Self { seed, epoch: 0, image: u64::MAX - 5, view: number }
    }

    /// The generator of this key.
    pub fn stream(self) -> Stream {
        let mut key = [0; 32];
        for (slot, word) in key.chunks_exact_mut(8).zip([self.seed, self.epoch, self.image, self.view]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        Stream(ChaCha8Rng::from_seed(key))
    }

    /// Generator `number` of this key, from 1: independent of [`Key::stream`] and of the generators with other numbers.
    pub fn substream(self, number: u64) -> Stream {
        let Stream(mut generator) = self.stream();
        generator.set_stream(number);
        Stream(generator)
    }
}

/// Random numbers of one key, the same on every platform.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)` with 24 bits, exact in `f32`.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in `[low, high)`; `low` if both are equal.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// Uniform integer in `0..n` by the multiply-shift method (bias below n / 2^64).
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "an empty range has no element");
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A uniform permutation of `0..n` (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }

    /// Two standard normal numbers (Box-Muller).
    pub fn normal_pair(&mut self) -> (f32, f32) {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let angle = std::f32::consts::TAU * self.unit();
        (radius * angle.cos(), radius * angle.sin())
    }

    /// `n` standard normal numbers.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        let mut draws: Vec<f32> =
            (0..n.div_ceil(2)).flat_map(|_| <[f32; 2]>::from(self.normal_pair())).collect();
        draws.truncate(n);
        draws
    }

    /// `n` standard normal numbers, truncated at two sigma by rejection.
    pub fn cut_normals(&mut self, n: usize) -> Vec<f32> {
        let pairs = std::iter::repeat_with(|| <[f32; 2]>::from(self.normal_pair()));
        pairs.flatten().filter(|draw| draw.abs() <= 2.0).take(n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_streams_and_every_field_matters() {
        let key = Key { seed: 1, epoch: 2, image: 3, view: 0 };
        let first = key.stream().bits();
        assert_eq!(first, key.stream().bits());
        for other in
            [Key { seed: 2, ..key }, Key { epoch: 3, ..key }, Key { image: 4, ..key }, Key { view: 1, ..key }]
        {
            assert_ne!(first, other.stream().bits(), "{other:?}");
        }
    }

    #[test]
    fn substreams_differ_from_the_stream_and_from_each_other() {
        let key = Key { seed: 1, epoch: 2, image: 3, view: 0 };
        let first = |mut stream: Stream| stream.bits();
        let all = [first(key.stream()), first(key.substream(1)), first(key.substream(2))];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert_eq!(first(key.substream(0)), all[0], "number 0 is the stream itself");
        assert_ne!(first(Key { view: 1, ..key }.substream(1)), all[1]);
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = Key::order(0, 0).stream().permutation(1000);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
    }

    #[test]
    fn moments_of_uniform_and_normal_draws() {
        let mut stream = Key { seed: 9, epoch: 0, image: 0, view: 0 }.stream();
        let n = 100_000;
        let mean = (0..n).map(|_| f64::from(stream.unit())).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0 / f64::from(n)).sqrt(), "{mean}");
        let squares: f64 =
            (0..n / 2).map(|_| stream.normal_pair()).map(|(a, b)| f64::from(a * a + b * b)).sum();
        assert!((squares / f64::from(n) - 1.0).abs() < 4.0 * (2.0 / f64::from(n)).sqrt(), "{squares}");
    }
}
