//! Seconds of a step in larger groups, from the compute, the messages and the link of this one.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{Communicator, ProcessGroup};

/// Collectives of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Number of collectives.
    pub count: usize,
    /// Bytes that this rank contributed.
    pub bytes: usize,
}

impl Messages {
    fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// Collectives of a rank on its training thread, which waits for each. Those of gradients are [`Bucket`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sums over all ranks: batch-norm statistics, loss.
    pub sums: Messages,
    /// All-gathers: embeddings, indices of images.
    pub gathered: Messages,
}

impl Traffic {
    pub(super) fn count_sum(&mut self, communicator: Communicator, bytes: usize) {
        if communicator != Communicator::Gradients {
            self.sums.add(bytes);
        }
    }

    pub(super) fn count_gathered(&mut self, bytes: usize) {
        self.gathered.add(bytes);
    }
}

/// A bucket of gradients of the last step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Bytes of its gradients.
    pub bytes: usize,
    /// Seconds between its last gradient and the end of the backward pass.
    pub ready_before_end: f64,
}

/// Messages between neighbours of a ring, the algorithm of Gloo. With another one (MPI, NCCL) the latency grows less with the ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Seconds of a message without content.
    pub latency: f64,
    /// Bytes per second of a rank.
    pub rate: f64,
}

/// All-reduces that are timed: of one number and of 1 MiB.
const TIMED: [(usize, usize); 2] = [(1, 31), (256 * 1024, 9)];

impl Link {
    /// Times all-reduces of f32 numbers in the memory of `device`; `None` in a group of one. Collective.
    pub fn measure(group: &ProcessGroup, device: Device) -> Option<Self> {
        let ranks = group.count();
        if ranks == 1 {
            return None;
        }
        let [short, long] = TIMED.map(|(length, runs)| {
            let values = Tensor::zeros([length as i64], (Kind::Float, device));
            let run = || {
                let start = Instant::now();
                let sum = group.all_reduce(&values);
                // Waits for the device.
                let _ = sum.get(0).double_value(&[]);
                start.elapsed().as_secs_f64()
            };
            median((0..runs).map(|_| run()).collect())
        });
        let [hops, share] = ring(ranks);
        let bytes = share * 4.0 * TIMED[1].0 as f64;
        Some(Self { latency: short / hops, rate: bytes / (long - short).max(1e-9) })
    }

    /// Seconds of a sum of `bytes` over `ranks`.
    pub fn all_reduce(&self, bytes: usize, ranks: usize) -> f64 {
        let [hops, share] = ring(ranks);
        hops * self.latency + share * bytes as f64 / self.rate
    }

    /// Seconds until every one of `ranks` has the `bytes` of all others.
    pub fn all_gather(&self, bytes: usize, ranks: usize) -> f64 {
        let others = ranks as f64 - 1.0;
        // Their lengths are gathered first.
        others * (2.0 * self.latency + bytes as f64 / self.rate)
    }
}

/// The upper one of an even number.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of a ring all-reduce: messages one after the other, and bytes that a rank sends by the bytes of the sum (Thakur et al. 2005).
fn ring(ranks: usize) -> [f64; 2] {
    let others = ranks as f64 - 1.0;
    [2.0 * others, 2.0 * others / ranks as f64]
}

/// A step as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct StepParts {
    /// Seconds without communication.
    pub alone: f64,
    /// Messages that the training thread waits for.
    pub traffic: Traffic,
    /// In the order of reduction.
    pub buckets: Vec<Bucket>,
}

impl StepParts {
    /// Seconds of a step of `ranks` with the same images each. `loss` is what the loss over the larger batch adds to `alone`.
    pub fn seconds(&self, link: &Link, ranks: usize, loss: f64) -> f64 {
        if ranks == 1 {
            return self.alone;
        }
        let Traffic { sums, gathered } = self.traffic;
        let of = |messages: Messages, seconds: f64| messages.count as f64 * seconds;
        let mean = |messages: Messages| messages.bytes / messages.count.max(1);
        let sums = of(sums, link.all_reduce(mean(sums), ranks));
        let gathered = of(gathered, link.all_gather(mean(gathered), ranks));
        self.alone + loss + sums + gathered + self.gradients_after_backward(link, ranks)
    }

    /// Seconds between the end of the backward pass and that of the last bucket; buckets are reduced one after the other.
    fn gradients_after_backward(&self, link: &Link, ranks: usize) -> f64 {
        let end = self.buckets.iter().fold(f64::NEG_INFINITY, |end, bucket| {
            end.max(-bucket.ready_before_end) + link.all_reduce(bucket.bytes, ranks)
        });
        end.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { latency: 1e-3, rate: 1e6 };

    fn parts(buckets: &[(usize, f64)]) -> StepParts {
        let traffic = Traffic {
            sums: Messages { count: 10, bytes: 5_000 },
            gathered: Messages { count: 2, bytes: 4_000 },
        };
        let bucket = |&(bytes, ready_before_end)| Bucket { bytes, ready_before_end };
        StepParts { alone: 1.0, traffic, buckets: buckets.iter().map(bucket).collect() }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    }

    #[test]
    fn a_ring_sends_each_number_twice() {
        close(LINK.all_reduce(0, 4), 6e-3);
        close(LINK.all_reduce(1_000_000, 2), 2e-3 + 1.0);
        close(LINK.all_reduce(1_000_000, 4), 6e-3 + 1.5);
        close(LINK.all_gather(1_000, 4), 3.0 * (2e-3 + 1e-3));
        close(LINK.all_reduce(1_000_000, 1), 0.0);
    }

    #[test]
    fn buckets_overlap_with_the_backward_pass_and_not_with_each_other() {
        let after = |buckets: &[(usize, f64)]| parts(buckets).gradients_after_backward(&LINK, 2);
        let one = 2e-3 + 0.1;
        close(after(&[(100_000, 0.0)]), one);
        close(after(&[(100_000, 1.0)]), 0.0);
        close(after(&[(100_000, 0.05)]), one - 0.05);
        // The second waits for the first, which is not done when the second is ready.
        close(after(&[(100_000, 0.05), (100_000, 0.0)]), 2.0 * one - 0.05);
        close(after(&[(100_000, 1.0), (100_000, 0.0)]), one);
        close(after(&[]), 0.0);
    }

    #[test]
    fn a_step_is_compute_and_what_it_waits_for() {
        let step = parts(&[(100_000, 0.0)]);
        let expected = 1.0 + 0.25 + 10.0 * (2e-3 + 500e-6) + 2.0 * (2e-3 + 2_000e-6) + 2e-3 + 0.1;
        close(step.seconds(&LINK, 2, 0.25), expected);
        close(step.seconds(&LINK, 1, 0.0), 1.0);
    }

    #[test]
    fn a_group_of_one_has_no_link() {
        assert!(Link::measure(&ProcessGroup::alone(), Device::Cpu).is_none());
    }
}
