//! 2N views as one block of pixels. The row order is defined here and used by the loss.

/// N images, two views each (one where labels train: then row `i` is image `ids[i]`).
///
/// Row `i` and row `i + N` are the two views of image `ids[i]`: all first views, then all second views, as
/// google-research/simclr stacks them (`model.py`).
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Step of the run that this batch belongs to, from 0.
    pub step: u64,
    /// Epoch of that step, from 0.
    pub epoch: u64,
    /// Indices of the N images in the data set.
    pub ids: Vec<usize>,
    /// `[2N, C, S, S]` (one view: `[N, C, S, S]`), `f32` in `[0, 1]`.
    pub pixels: Vec<f32>,
    /// Images of this batch that could not be decoded and were left out: index and reason.
    pub bad: Vec<(usize, String)>,
}
