//! What a loss needs of the process group.

use tch::Tensor;

/// All-gather over the processes that hold a shard of the batch each.
///
/// Every process calls it the same number of times in the same order.
pub trait AllGather {
    /// Local rows `[2m, ..]`, m first views and then the m second views, to the rows of all ranks `[2N, ..]`: all first views by
    /// rank, then all second views. Not differentiable.
    fn all_gather(&self, own: &Tensor) -> Tensor;

    /// Number of images on lower ranks.
    fn first_image(&self) -> i64;
}

/// A single process that holds the whole batch.
#[derive(Debug, Clone, Copy)]
pub struct SingleProcess;

impl AllGather for SingleProcess {
    fn all_gather(&self, own: &Tensor) -> Tensor {
        own.shallow_clone()
    }

    fn first_image(&self) -> i64 {
        0
    }
}
