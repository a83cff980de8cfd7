//! Views as one block of pixels. The row order is defined here and used by the loss.

/// The views of a batch of N images, or of a chunk of it: two of each image, one where labels train.
///
/// Rows are all first views, then all second views, as google-research/simclr stacks them (`model.py`). Of a whole batch,
/// row `i` and row `i + N` are the two views of image `ids[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Step of the run that this batch belongs to, from 0.
    pub step: u64,
    /// Epoch of that step, from 0.
    pub epoch: u64,
    /// Which part of the batch this is.
    pub chunk: Chunk,
    /// Indices in the data set of the images whose first view is here.
    pub ids: Vec<usize>,
    /// Indices of the images whose second view is here: equal to `ids` unless chunks are dealt apart; empty with one view.
    pub second: Vec<usize>,
    /// `[ids.len() + second.len(), C, S, S]`, `f32` in `[0, 1]`.
    pub pixels: Vec<f32>,
    /// Images that could not be decoded and were left out: index and reason. Named in the first chunk that misses them.
    pub bad: Vec<(usize, String)>,
}

/// Place of a chunk in the batch of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// From 0.
    pub index: usize,
    /// Chunks of the batch; 1: the batch is whole.
    pub count: usize,
    /// How often it was made before in this step: a large batch goes through the encoder twice.
    pub pass: usize,
}

impl Chunk {
    /// The only chunk of a batch that is not parted.
    pub const WHOLE: Self = Self { index: 0, count: 1, pass: 0 };

    /// Whether the pass ends with this chunk.
    pub fn is_last(self) -> bool {
        self.index + 1 == self.count
    }
}
