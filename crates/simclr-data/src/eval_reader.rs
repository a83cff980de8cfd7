//! Images outside training: decoded in a given order, with a deterministic transform.

use rayon::{ThreadPool, prelude::*};

use crate::{
    DataError, Dataset,
    augment::{AugmentBuffers, EvalTransform},
    loader::worker_pool,
};

/// Decodes and transforms images of a set on a thread pool of its own.
pub struct EvalReader<'a> {
    dataset: &'a Dataset,
    transform: &'a EvalTransform,
    pool: ThreadPool,
}

/// Images prepared for evaluation.
#[derive(Debug, Default)]
pub struct EvalPixels {
    /// Indices of the decoded images, in the requested order.
    pub ids: Vec<usize>,
    /// `[ids.len(), C, S, S]`.
    pub pixels: Vec<f32>,
    /// Index and reason of images that could not be decoded.
    pub failed: Vec<(usize, String)>,
}

impl<'a> EvalReader<'a> {
    /// # Errors
    /// If threads cannot be started.
    pub fn new(
        dataset: &'a Dataset,
        transform: &'a EvalTransform,
        threads: usize,
    ) -> Result<Self, DataError> {
        Ok(Self { dataset, transform, pool: worker_pool(threads)? })
    }

    /// Decodes and transforms the images `indices`.
    pub fn read(&self, indices: &[usize]) -> EvalPixels {
        let view = self.dataset.channels() * self.transform.size * self.transform.size;
        let mut result = EvalPixels { pixels: vec![0.0; indices.len() * view], ..EvalPixels::default() };
        let decoded: Vec<Result<(), DataError>> = self.pool.install(|| {
            let slots = result.pixels.par_chunks_exact_mut(view);
            indices.par_iter().zip(slots).map(|(&index, slot)| self.read_into(index, slot)).collect()
        });
        for (at, (&index, decoded)) in indices.iter().zip(decoded).enumerate() {
            match decoded {
                Ok(()) => {
                    // Closes the gaps of failed images.
                    result.pixels.copy_within(at * view..(at + 1) * view, result.ids.len() * view);
                    result.ids.push(index);
                }
                Err(error) => result.failed.push((index, error.to_string())),
            }
        }
        result.pixels.truncate(result.ids.len() * view);
        result
    }

    fn read_into(&self, index: usize, out: &mut [f32]) -> Result<(), DataError> {
        let image = self.dataset.decode(index)?;
        AugmentBuffers::with_local(|buffers| self.transform.apply(&image, out, buffers));
        image.recycle();
        Ok(())
    }
}
