//! Shards of a batch on several ranks against the whole batch.

use std::sync::{Barrier, Mutex};

use simclr::losses::{AllGather, ContrastiveLoss, LossConfig, contrastive_loss, contrastive_loss_sharded};
use tch::Tensor;

use super::{
    cases, chooses, has_steps, loss,
    oracle::{both, relative, rows_off},
    pairs,
};

/// An all-gather over threads.
struct ThreadRank<'a> {
    own: usize,
    images: &'a [i64],
    slots: &'a Mutex<Vec<Option<Tensor>>>,
    barrier: &'a Barrier,
}

impl AllGather for ThreadRank<'_> {
    fn all_gather(&self, own: &Tensor) -> Tensor {
        self.slots.lock().unwrap()[self.own] = Some(own.shallow_clone());
        self.barrier.wait();
        let side = |view: i64| {
            let slots = self.slots.lock().unwrap();
            let parts = slots.iter().zip(self.images);
            parts.map(|(part, &m)| part.as_ref().unwrap().narrow(0, view * m, m)).collect::<Vec<_>>()
        };
        let all = Tensor::cat(&[side(0), side(1)].into_iter().flatten().collect::<Vec<_>>(), 0);
        self.barrier.wait();
        all
    }

    fn first_image(&self) -> i64 {
        self.images[..self.own].iter().sum()
    }
}

/// Sums of loss and accuracy, and the gradient at `z`, of ranks with these numbers of images.
fn over_ranks(z: &Tensor, config: &LossConfig, images: &[i64]) -> ([f64; 2], Tensor) {
    let n: i64 = images.iter().sum();
    let (slots, barrier) = (Mutex::new(images.iter().map(|_| None).collect()), Barrier::new(images.len()));
    let shares: Vec<_> = std::thread::scope(|scope| {
        let start = |own: usize| {
            let rank = ThreadRank { own, images, slots: &slots, barrier: &barrier };
            let rows = [0, n].map(|side| z.narrow(0, side + rank.first_image(), images[own]));
            let (rows, config) = (Tensor::cat(&rows, 0), config.clone());
            scope.spawn(move || {
                let rows = rows.detach().set_requires_grad(true);
                let ContrastiveLoss { loss, accuracy } = contrastive_loss_sharded(&rows, &config, &rank);
                loss.backward();
                ([loss.double_value(&[]), accuracy.double_value(&[])], rows.grad())
            })
        };
        let started: Vec<_> = (0..images.len()).map(start).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sums = [0, 1].map(|index| shares.iter().map(|(scalars, _)| scalars[index]).sum::<f64>());
    let side = |view: i64| shares.iter().zip(images).map(move |(share, &m)| share.1.narrow(0, view * m, m));
    (sums, Tensor::cat(&side(0).chain(side(1)).collect::<Vec<_>>(), 0))
}

/// Loss and accuracy of ranks with equal or unequal shares of the batch add up to those of the batch; gradients are equal.
fn assert_shards_equal_the_whole(keys: &str, config: &LossConfig, images: &[i64]) {
    let n: i64 = images.iter().sum();
    let z = pairs(n, 16, 91, 1.5);
    let (value, gradient) = both(&z, config);
    let accuracy = contrastive_loss(&z, config).accuracy.double_value(&[]);
    let (sums, found) = over_ranks(&z, config, images);
    let case = format!("{keys}, {images:?}");
    assert!((sums[0] - value).abs() < 1e-5 * value.abs().max(1.0), "{case}: {} {value}", sums[0]);
    assert!((sums[1] - accuracy).abs() < 1e-6, "{case}: {} {accuracy}", sums[1]);
    assert!(accuracy > 0.05 && accuracy <= 1.0, "{accuracy}");
    let error = relative(&found, &gradient);
    // Products of other shapes may round differently, and a comparison may then turn out differently.
    if chooses(config) {
        assert!(rows_off(&found, &gradient) <= 6, "{case}: {} rows", rows_off(&found, &gradient));
    } else {
        assert!(error < if has_steps(config) { 1e-4 } else { 2e-6 }, "{case}: {error:e}");
    }
}

#[test]
fn sharded_losses_equal_the_whole_batch() {
    for (keys, config) in cases() {
        for images in [&[5i64, 5][..], &[3, 1, 6], &[12, 20, 9, 15]] {
            assert_shards_equal_the_whole(&keys, &config, images);
        }
    }
}

#[test]
fn sharded_losses_equal_the_whole_batch_across_tiles() {
    for keys in [
        "temperature = 0.2",
        "decoupled = true, decoupled_weight_sigma = 0.5, temperature = 0.2",
        "hard_beta = 1.0, debias_prior = 0.1, temperature = 0.5",
        "kind = \"nt-logistic\", negatives = \"other-view\", temperature = 0.5",
        "kind = \"margin\", margin = 0.4",
        "semi_hard = true, temperature = 0.5",
    ] {
        assert_shards_equal_the_whole(keys, &loss(keys), &[1030, 200, 1100, 7]);
    }
}
