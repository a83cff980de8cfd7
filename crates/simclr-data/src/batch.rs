//! Batches and the order of their rows, on which the loss relies.

use crate::{buffer_pool::PooledBuffer, deferred::DeferredViews};

/// The views of a batch of N images, or of a chunk of it: two per image, or one for training with labels.
///
/// Rows are all first views, then all second views, as in google-research/simclr (`model.py`). In a whole batch, rows `i` and
/// `i + N` are the two views of image `ids[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Step of the run, from 0.
    pub step: u64,
    /// Epoch of that step, from 0.
    pub epoch: u64,
    /// Position within the batch of the step.
    pub chunk: Chunk,
    /// Indices in the data set of the images of the first views.
    pub ids: Vec<usize>,
    /// Indices of the images of the second views: equal to `ids` unless views are shuffled over chunks; empty with one view.
    pub second_view_ids: Vec<usize>,
    /// `ids.len() + second_view_ids.len()` rows.
    pub views: Views,
    /// Index and reason of images that could not be decoded and are left out; listed in the first chunk that lacks them.
    pub failed: Vec<(usize, String)>,
}

/// The views of a batch as pixels, or as inputs for another device.
#[derive(Debug, Clone, PartialEq)]
pub enum Views {
    /// `[rows, C, S, S]`, `f32` in `[0, 1]`.
    Pixels(PooledBuffer),
    /// Images and augmentation parameters.
    Deferred(DeferredViews),
}

impl Default for Views {
    fn default() -> Self {
        Self::Pixels(PooledBuffer::default())
    }
}

impl<T: Into<PooledBuffer>> From<T> for Views {
    fn from(pixels: T) -> Self {
        Self::Pixels(pixels.into())
    }
}

impl Batch {
    /// The pixels `[rows, C, S, S]`.
    ///
    /// # Panics
    /// For deferred views.
    pub fn pixels(&self) -> &[f32] {
        match &self.views {
            Views::Pixels(pixels) => pixels,
            Views::Deferred(_) => panic!("a batch of deferred views has no pixels"),
        }
    }
}

/// Position of a chunk in the batch of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// From 0.
    pub index: usize,
    /// Chunks of the batch; 1 for a whole batch.
    pub count: usize,
    /// From 0; gradient caching takes the chunks of a step twice.
    pub pass: usize,
}

impl Chunk {
    /// The only chunk of a whole batch.
    pub const WHOLE: Self = Self { index: 0, count: 1, pass: 0 };

    /// Whether the pass ends with this chunk.
    pub fn is_last(self) -> bool {
        self.index + 1 == self.count
    }
}
