//! Views as one block of pixels. The row order is defined here and used by the loss.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

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
    pub pixels: Block,
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

/// The values of a batch, a slice to everyone who looks at them. Dropped, its memory goes back to the loader, which fills it
/// with the next batch: the system hands out pages one by one and cleared, which takes nearly as long as it takes to make
/// the views that lie on them (240 us of 300 for a view of 224 px).
#[derive(Default)]
pub struct Block {
    values: Vec<f32>,
    home: Option<Arc<Spare>>,
}

/// Memory of batches that nobody looks at any more.
#[derive(Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    /// A block of `len` values, of which none may be relied on.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Block {
        // A thread that panicked here leaves a list that is still whole.
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut values = spare.filter(|values| values.capacity() >= len).unwrap_or_else(|| vec![0.0; len]);
        values.resize(len, 0.0);
        Block { values, home: Some(Arc::clone(self)) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let values = std::mem::take(&mut self.values);
            home.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
    }
}

impl From<Vec<f32>> for Block {
    fn from(values: Vec<f32>) -> Self {
        Self { values, home: None }
    }
}

impl FromIterator<f32> for Block {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        self.values.clone().into()
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl PartialEq<[f32]> for Block {
    fn eq(&self, other: &[f32]) -> bool {
        self.values == other
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_where_it_is_large_enough_and_whoever_drops_it() {
        let spare = Arc::new(Spare::default());
        let mut first = spare.take(100);
        first.fill(1.0);
        let place = first.as_ptr();
        let copy = first.clone();
        std::thread::spawn(move || drop(first)).join().unwrap();
        let again = spare.take(60);
        assert_eq!((again.as_ptr(), again.len()), (place, 60));
        assert!(copy.iter().all(|&value| value == 1.0), "a copy has memory of its own");
        drop((again, copy));
        assert_eq!(spare.0.lock().unwrap().len(), 1, "the copy's memory is not the loader's");
        assert_eq!(*spare.take(200), [0.0; 200]);
        let last = spare.take(1);
        drop(spare);
        assert_eq!(last.len(), 1, "a batch outlives its loader");
    }
}
