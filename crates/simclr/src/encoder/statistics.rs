//! Statistics of batch norm: their scope (whole batch or chunk), their all-reduce, and the mode of a pass.

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Weight of the new batch in the running statistics: 1 - the official decay of 0.9 (google-research/simclr `resnet.py`,
/// `BATCH_NORM_DECAY`).
pub const MOMENTUM: f64 = 0.1;

/// The all-reduce of batch-norm statistics over chunks of one batch, processes, or both.
///
/// Every participant calls it the same number of times in the same order, in the forward and the backward pass, on the thread
/// that runs the pass.
pub trait AllReduce: Debug + Send + Sync {
    /// Sums `values` (`f32`, one dimension, on the model's device) over all participants, in place; bit-identical for all.
    fn all_reduce_sum(&self, values: &Tensor);
}

/// `train.batch_norm`: scope of the batch-norm statistics if a batch is encoded in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNormScope {
    /// The whole batch; loss and gradient equal those of one pass over the whole batch.
    #[default]
    Global,
    /// The chunk, which holds both views of its images.
    Chunk,
    /// The chunk, which holds first views of some images and second views of others (MoCo's shuffling BN).
    ChunkShuffled,
}

impl BatchNormScope {
    /// As written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Chunk => "chunk",
            Self::ChunkShuffled => "chunk-shuffled",
        }
    }
}

/// Options of batch statistics.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// All-reduce over the other participants.
    pub all_reduce: Option<Arc<dyn AllReduce>>,
    /// Weight of this batch in the running statistics; 0 leaves them unchanged.
    pub momentum: f64,
    /// Groups of rows with statistics of their own, see [`group_rows`]; the running statistics are those of their mean.
    pub groups: usize,
}

impl Default for BatchStatistics {
    /// Statistics of this batch only.
    fn default() -> Self {
        Self { all_reduce: None, momentum: MOMENTUM, groups: 1 }
    }
}

/// Whether batch norm uses batch statistics or running statistics.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Batch statistics; running statistics are updated.
    Train(BatchStatistics),
    /// Running statistics, not updated.
    Eval,
}

impl Mode {
    /// Training with the statistics of this batch only.
    pub fn train() -> Self {
        Self::Train(BatchStatistics::default())
    }

    /// Number of groups of rows with statistics of their own.
    pub fn groups(&self) -> usize {
        match self {
            Self::Train(statistics) => statistics.groups,
            Self::Eval => 1,
        }
    }

    /// Whether batch statistics are used.
    pub fn is_train(&self) -> bool {
        matches!(self, Self::Train(_))
    }
}

/// First row and number of rows of every nonempty group of `rows` rows. Groups are contiguous and have an even number of rows, so that
/// two views of an image that follow each other in pairs are not separated; an odd last row is in the last group.
pub fn group_rows(rows: i64, groups: usize) -> Vec<(i64, i64)> {
    let bound =
        |group: usize| if group == groups { rows } else { 2 * (rows / 2 * group as i64 / groups as i64) };
    let group = |group: usize| (bound(group), bound(group + 1) - bound(group));
    (0..groups).map(group).filter(|(_, count)| *count > 0).collect()
}

/// Weights of `count` successive updates of running statistics that together average the updates with the weight `momentum`.
pub(super) fn averaging_momenta(momentum: f64, count: usize) -> impl Iterator<Item = f64> {
    // The update g is multiplied by the product of 1 - w over later updates, which is 1 - (later updates) momentum / count.
    let share = momentum / count as f64;
    (0..count).map(move |group| share / (1.0 - share * (count - 1 - group) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_all_rows_in_even_parts() {
        assert_eq!(group_rows(16, 4), [(0, 4), (4, 4), (8, 4), (12, 4)]);
        assert_eq!(group_rows(11, 2), [(0, 4), (4, 7)]);
        assert_eq!(group_rows(2, 4), [(0, 2)]);
        for (rows, groups) in [(26, 4), (7, 3), (64, 8), (1, 5)] {
            let all = group_rows(rows, groups);
            let mut next = 0;
            for (start, count) in all {
                assert!(start == next && start % 2 == 0 && count > 0);
                next += count;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn successive_updates_average() {
        let values = [3.0, -1.0, 7.0, 4.0];
        let updates = averaging_momenta(0.3, 4).zip(values);
        let found = updates.fold(10.0, |running, (weight, value)| (1.0 - weight) * running + weight * value);
        assert!((found - (0.7 * 10.0 + 0.3 * 3.25f64)).abs() < 1e-12, "{found}");
    }
}
