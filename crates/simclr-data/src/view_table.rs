//! Images next to their augmented views, as they are drawn in training.

use crate::{
    AugmentConfig, DataError, Dataset, ViewParams,
    augment::{self, AugmentBuffers, EvalTransform},
    rng::Key,
};

/// A row for each image: the original with the transform of an evaluation, then views.
#[derive(Debug)]
pub struct ViewTable<'a> {
    /// The images.
    pub set: &'a Dataset,
    /// Of the originals; its size is also that of the views.
    pub transform: EvalTransform,
    /// Of the views: two per epoch.
    pub augment: &'a AugmentConfig,
    /// Seed of the views.
    pub seed: u64,
    /// Views of an image.
    pub views: usize,
}

/// A place of the table.
#[derive(Debug)]
pub struct Cell<'a> {
    /// Position among the rows, and 0 for the original or 1 + the number of a view.
    pub place: (usize, usize),
    /// Planes `[C, S, S]` in `[0, 1]`.
    pub pixels: &'a [f32],
    /// Parameters of a view.
    pub params: Option<&'a ViewParams>,
    /// Width and height of the stored image.
    pub stored: (usize, usize),
}

/// At most `count` images across `set`, without those that cannot be decoded.
pub fn spread(set: &Dataset, count: usize) -> Vec<usize> {
    let rows = count.min(set.len());
    let candidates = (0..rows).map(|row| row * set.len() / rows);
    candidates.filter(|&index| set.decode(index).is_ok()).collect()
}

impl ViewTable<'_> {
    /// Passes all cells of the images `indices` to `receiver`, row by row.
    ///
    /// # Errors
    /// An image that cannot be decoded; an error of `receiver`.
    pub fn each<E: From<DataError>>(
        &self,
        indices: &[usize],
        receiver: &mut dyn FnMut(&Cell<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.transform.size;
        let policies = self.augment.of_views();
        let mut pixels = vec![0.0; self.set.channels() * size * size];
        let mut buffers = AugmentBuffers::default();
        for (row, &index) in indices.iter().enumerate() {
            let image = self.set.decode(index)?;
            self.transform.apply(&image, &mut pixels, &mut buffers);
            let stored = (image.width, image.height);
            receiver(&Cell { place: (row, 0), pixels: &pixels, params: None, stored })?;
            for view in 0..self.views {
                let key = Key {
                    seed: self.seed,
                    epoch: view as u64 / 2,
                    image: index as u64,
                    view: view as u64 % 2,
                };
                let policy = &policies[view % 2];
                let params = policy.draw(key, image.width, image.height);
                augment::apply(&image, &params, policy, size, &mut pixels, &mut buffers);
                receiver(&Cell { place: (row, view + 1), pixels: &pixels, params: Some(&params), stored })?;
            }
        }
        Ok(())
    }
}
