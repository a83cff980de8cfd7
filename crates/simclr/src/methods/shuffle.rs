//! The permutation of shuffling BN (MoCo, arXiv 1911.05722, section 3.3): the momentum encoder sees the images of a batch in another
//! order, so that a query and its positive key are normalised with the statistics of different groups.

use simclr_data::rng::Key;
use tch::{Device, Tensor};

/// The permutation of the current step.
#[derive(Debug)]
pub struct Shuffle {
    seed: u64,
    /// Of a full batch.
    permutation: Vec<usize>,
    /// `permutation` and its inverse on the device, i64, at constant addresses, because a captured step reads them.
    full: [Tensor; 2],
}

impl Shuffle {
    /// For batches of up to `images` images; the permutation is that of step 0.
    pub fn new(images: usize, seed: u64, device: Device) -> Self {
        let identity = || Tensor::arange(images as i64, (tch::Kind::Int64, device));
        let mut shuffle = Self { seed, permutation: Vec::new(), full: [identity(), identity()] };
        shuffle.permutation = vec![0; images];
        shuffle.set_step(0);
        shuffle
    }

    /// Draws the permutation of `step`.
    pub fn set_step(&mut self, step: u64) {
        self.permutation = Key::shuffle(self.seed, step).stream().permutation(self.permutation.len());
        for (tensor, order) in self.full.iter_mut().zip(with_inverse(&self.permutation)) {
            // From pinned memory: the host does not wait for the device.
            let order = simclr_shim::upload(&order, tensor.device()).expect("as much memory as before");
            tensor.copy_(&order);
        }
    }

    /// The permutation of `rows` rows and its inverse, `[rows]`, i64: for fewer rows than a full batch (images that failed to
    /// decode), that of the full batch without the missing rows.
    pub fn order(&self, rows: i64) -> [Tensor; 2] {
        if rows == self.full[0].size()[0] {
            return [0, 1].map(|at| self.full[at].shallow_clone());
        }
        let some: Vec<usize> = self.permutation.iter().copied().filter(|&row| row < rows as usize).collect();
        let some = if some.len() as i64 == rows { some } else { (0..rows as usize).collect() };
        with_inverse(&some).map(|order| Tensor::from_slice(&order).to_device(self.full[0].device()))
    }
}

/// A permutation and its inverse.
fn with_inverse(order: &[usize]) -> [Vec<i64>; 2] {
    let mut inverse = vec![0; order.len()];
    for (at, &row) in order.iter().enumerate() {
        inverse[row] = at as i64;
    }
    [order.iter().map(|&row| row as i64).collect(), inverse]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_is_undone_exactly_and_changes_with_the_step() {
        let mut shuffle = Shuffle::new(37, 5, Device::Cpu);
        let rows = crate::test_normals(0, &[37, 3]);
        let mut orders = Vec::new();
        for step in 0..4 {
            shuffle.set_step(step);
            for count in [37, 30, 1] {
                let some = rows.narrow(0, 0, count);
                let [order, inverse] = shuffle.order(count);
                let shuffled = some.index_select(0, &order);
                assert_eq!(shuffled.index_select(0, &inverse), some);
                assert!(count == 1 || shuffled != some);
            }
            orders.push(Vec::<i64>::try_from(&shuffle.order(37)[0]).unwrap());
        }
        orders.dedup();
        assert_eq!(orders.len(), 4);
        shuffle.set_step(1);
        assert_eq!(Vec::<i64>::try_from(&shuffle.order(37)[0]).unwrap(), orders[1], "a function of the step");
    }
}
