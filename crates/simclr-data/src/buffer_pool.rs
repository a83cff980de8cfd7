//! Memory of batches, reused. The operating system zeroes new pages one by one, which takes nearly as long as the augmentation
//! that fills them (240 of 300 us for a view of 224 px).

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Default)]
pub(crate) struct BufferPool<T = f32>(Mutex<Vec<Vec<T>>>);

/// Values of a batch. If dropped, its memory returns to the pool it was taken from.
#[derive(Default)]
pub struct PooledBuffer<T = f32> {
    values: Vec<T>,
    pool: Option<Arc<BufferPool<T>>>,
}

impl<T: Copy + Default> BufferPool<T> {
    /// A buffer of `len` unspecified values.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> PooledBuffer<T> {
        self.take_with_capacity(len, len)
    }

    /// As [`BufferPool::take`]; new memory gets room for `capacity` values, so that slightly larger buffers fit later.
    pub(crate) fn take_with_capacity(self: &Arc<Self>, len: usize, capacity: usize) -> PooledBuffer<T> {
        // A poisoned list is still valid: no push or pop panics halfway.
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let free = free.filter(|values| values.capacity() >= len);
        let mut values = free.unwrap_or_else(|| vec![T::default(); capacity.max(len)]);
        values.resize(len, T::default());
        PooledBuffer { values, pool: Some(Arc::clone(self)) }
    }
}

impl<T> Drop for PooledBuffer<T> {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let values = std::mem::take(&mut self.values);
            pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
    }
}

impl<T> From<Vec<T>> for PooledBuffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self { values, pool: None }
    }
}

impl<T> FromIterator<T> for PooledBuffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl<T> Deref for PooledBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T> DerefMut for PooledBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

impl<T: Clone> Clone for PooledBuffer<T> {
    fn clone(&self) -> Self {
        self.values.clone().into()
    }
}

impl<T: PartialEq> PartialEq for PooledBuffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl<T: PartialEq> PartialEq<[T]> for PooledBuffer<T> {
    fn eq(&self, other: &[T]) -> bool {
        self.values == other
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for PooledBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.values.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_return_to_their_pool_from_any_thread() {
        let pool: Arc<BufferPool> = Arc::default();
        let mut first = pool.take(100);
        first.fill(1.0);
        let address = first.as_ptr();
        let copy = first.clone();
        std::thread::spawn(move || drop(first)).join().unwrap();
        let again = pool.take(60);
        assert_eq!((again.as_ptr(), again.len()), (address, 60));
        assert!(copy.iter().all(|&value| value == 1.0), "a clone has memory of its own");
        drop((again, copy));
        assert_eq!(pool.0.lock().unwrap().len(), 1, "the clone's memory is not pooled");
        assert_eq!(*pool.take(200), [0.0; 200]);
        let last = pool.take(1);
        drop(pool);
        assert_eq!(last.len(), 1, "a buffer outlives its loader");
    }
}
