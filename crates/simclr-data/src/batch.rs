//! Views as one block of pixels. The row order is defined here and used by the loss.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use crate::deferred::DeferredViews;

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
    pub second_view_ids: Vec<usize>,
    /// Of `ids.len() + second.len()` rows.
    pub views: Views,
    /// Images that could not be decoded and were left out: index and reason. Named in the first chunk that misses them.
    pub failed: Vec<(usize, String)>,
}

/// The views of a batch, or what they are made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Views {
    /// `[rows, C, S, S]`, `f32` in `[0, 1]`.
    Pixels(Block),
    /// For whoever makes pixels elsewhere: images and dice.
    Deferred(DeferredViews),
}

impl Default for Views {
    fn default() -> Self {
        Self::Pixels(Block::default())
    }
}

impl<T: Into<Block>> From<T> for Views {
    fn from(pixels: T) -> Self {
        Self::Pixels(pixels.into())
    }
}

impl Batch {
    /// Its pixels `[rows, C, S, S]`.
    ///
    /// # Panics
    /// If it holds recipes.
    pub fn pixels(&self) -> &[f32] {
        match &self.views {
            Views::Pixels(pixels) => pixels,
            Views::Deferred(_) => panic!("a batch of recipes has no pixels"),
        }
    }
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
pub struct Block<T = f32> {
    values: Vec<T>,
    home: Option<Arc<Spare<T>>>,
}

/// Memory of batches that nobody looks at any more.
#[derive(Default)]
pub(crate) struct Spare<T = f32>(Mutex<Vec<Vec<T>>>);

impl<T: Copy + Default> Spare<T> {
    /// A block of `len` values, of which none may be relied on.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Block<T> {
        self.take_with_room(len, len)
    }

    /// The same; new memory has room for `room` values, so that it serves larger blocks, too.
    pub(crate) fn take_with_room(self: &Arc<Self>, len: usize, room: usize) -> Block<T> {
        // A thread that panicked here leaves a list that is still whole.
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let spare = spare.filter(|values| values.capacity() >= len);
        let mut values = spare.unwrap_or_else(|| vec![T::default(); room.max(len)]);
        values.resize(len, T::default());
        Block { values, home: Some(Arc::clone(self)) }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let values = std::mem::take(&mut self.values);
            home.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
    }
}

impl<T> From<Vec<T>> for Block<T> {
    fn from(values: Vec<T>) -> Self {
        Self { values, home: None }
    }
}

impl<T> FromIterator<T> for Block<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl<T> Deref for Block<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

impl<T: Clone> Clone for Block<T> {
    fn clone(&self) -> Self {
        self.values.clone().into()
    }
}

impl<T: PartialEq> PartialEq for Block<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl<T: PartialEq> PartialEq<[T]> for Block<T> {
    fn eq(&self, other: &[T]) -> bool {
        self.values == other
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Block<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_where_it_is_large_enough_and_whoever_drops_it() {
        let spare: Arc<Spare> = Arc::default();
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
