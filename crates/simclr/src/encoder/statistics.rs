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
    pub exchange: Option<Arc<dyn AllReduce>>,
    /// Weight of this batch in the running statistics; 0 leaves them unchanged.
    pub momentum: f64,
}

impl Default for BatchStatistics {
    /// Statistics of this batch only.
    fn default() -> Self {
        Self { exchange: None, momentum: MOMENTUM }
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

    /// Whether batch statistics are used.
    pub fn is_train(&self) -> bool {
        matches!(self, Self::Train(_))
    }
}
