//! Where batch norm takes its statistics from: the one place in which the batch of other chunks or processes comes in.

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Weight of the new batch in the running statistics: 1 - the official decay of 0.9 (google-research/simclr `resnet.py`,
/// `BATCH_NORM_DECAY`).
pub const MOMENTUM: f64 = 0.1;

/// Those who share the statistics of a batch norm: chunks of one batch, processes, or both.
///
/// Every member calls it the same number of times in the same order, in the forward pass and in the backward pass, from
/// whichever thread that pass runs on.
pub trait AllReduce: Debug + Send + Sync {
    /// Adds `values` (`f32`, one dimension, on the model's device) up over all members, in place; every member receives the
    /// same bits.
    fn all_reduce_sum(&self, values: &Tensor);
}

/// `train.batch_norm`: whose statistics batch norm takes where a batch goes through the encoder in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNormScope {
    /// Those of the whole batch: loss and gradient are those of the whole batch at once.
    #[default]
    Global,
    /// Those of the chunk, which holds both views of its images.
    Chunk,
    /// Those of the chunk, which holds first views of some images and second views of others (MoCo's shuffling BN).
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

/// What batch norm normalises with while training.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Whose activations are counted besides the own ones.
    pub exchange: Option<Arc<dyn AllReduce>>,
    /// Weight of this batch in the running statistics; 0 leaves them as they are.
    pub momentum: f64,
}

impl Default for BatchStatistics {
    /// The statistics of the batch at hand alone.
    fn default() -> Self {
        Self { exchange: None, momentum: MOMENTUM }
    }
}

/// Whether batch norm takes the batch's statistics (and updates its running ones) or the running ones.
#[derive(Debug, Clone)]
pub enum Mode {
    /// Batch statistics; running statistics are updated.
    Train(BatchStatistics),
    /// Running statistics; nothing is changed.
    Eval,
}

impl Mode {
    /// Training on the statistics of the batch at hand.
    pub fn train() -> Self {
        Self::Train(BatchStatistics::default())
    }

    /// Whether batch statistics are taken.
    pub fn is_train(&self) -> bool {
        matches!(self, Self::Train(_))
    }
}
