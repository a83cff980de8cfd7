//! The queue of keys of earlier batches (MoCo, arXiv 1911.05722, section 3.2).

use simclr_data::rng::Key;
use tch::{Device, Tensor};

use crate::{CheckpointError, losses::l2_normalize};

/// K keys of unit length; the oldest are overwritten.
#[derive(Debug)]
pub struct Queue {
    /// `[K, D]`, f32. Its address is constant, because a captured step reads it.
    keys: Tensor,
    /// Row of the oldest key.
    pointer: i64,
}

impl Queue {
    /// `size` random directions, as in FAIR's `moco/builder.py`.
    pub fn new(size: usize, width: i64, seed: u64, device: Device) -> Self {
        let draws = Key::queue(seed).stream().normals(size * width as usize);
        let keys = l2_normalize(&Tensor::from_slice(&draws).view([size as i64, width]));
        Self { keys: keys.to_device(device), pointer: 0 }
    }

    /// `[K, D]`.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// Overwrites the oldest keys with `keys` `[n, D]` of unit length, first row first.
    pub fn enqueue(&mut self, keys: &Tensor) {
        let (size, count) = (self.keys.size()[0], keys.size()[0]);
        let mut done = 0;
        while done < count {
            let fits = (count - done).min(size - self.pointer);
            tch::no_grad(|| self.keys.narrow(0, self.pointer, fits).copy_(&keys.narrow(0, done, fits)));
            self.pointer = (self.pointer + fits) % size;
            done += fits;
        }
    }

    /// Keys and pointer, for checkpoints.
    pub fn state(&self) -> [(String, Tensor); 2] {
        let pointer = Tensor::from_slice(&[self.pointer]);
        [("moco.queue".into(), self.keys.shallow_clone()), ("moco.pointer".into(), pointer)]
    }

    /// Restores [`Queue::state`].
    ///
    /// # Errors
    /// Errors of `get`.
    pub fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let keys = get("moco.queue", &self.keys.size())?;
        self.pointer = get("moco.pointer", &[1])?.int64_value(&[0]).rem_euclid(self.keys.size()[0]);
        tch::no_grad(|| self.keys.copy_(&keys));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;

    #[test]
    fn initial_keys_have_unit_length_and_differ_by_seed() {
        let keys = |seed| Queue::new(50, 8, seed, Device::Cpu).keys.shallow_clone();
        let norms = keys(1).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        assert!((norms - 1.0).abs().max().double_value(&[]) < 1e-6);
        assert_ne!(keys(1), keys(2));
    }

    proptest! {
        /// Batches of any size, also above K, against a vector that is written key by key.
        #[test]
        fn wrap_around_is_exact(size in 1usize..12, batches in proptest::collection::vec(0usize..30, 1..12)) {
            let mut queue = Queue::new(size, 2, 0, Device::Cpu);
            let mut expected: Vec<f32> = Vec::<f32>::try_from(queue.keys.reshape([-1])).unwrap();
            let (mut written, mut pointer) = (0, 0);
            for count in batches {
                let values: Vec<f32> = (0..2 * count).map(|at| (2 * written + at) as f32).collect();
                queue.enqueue(&Tensor::from_slice(&values).view([count as i64, 2]));
                for key in values.chunks_exact(2) {
                    expected[2 * pointer..2 * pointer + 2].copy_from_slice(key);
                    pointer = (pointer + 1) % size;
                }
                written += count;
                prop_assert_eq!(&Vec::<f32>::try_from(queue.keys.reshape([-1])).unwrap(), &expected);
                prop_assert_eq!(queue.pointer, pointer as i64);
            }
        }
    }
}
