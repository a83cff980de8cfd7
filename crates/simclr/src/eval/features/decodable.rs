//! Decodable images of the training and the test part, to which all protocols of an evaluation are restricted.

use tch::Tensor;

use super::extract::{BadImage, label_tensor};
use crate::eval::data::LabelledSet;

/// Indices in the respective split, ascending.
pub(crate) struct DecodableImages {
    pub(crate) train: Vec<usize>,
    pub(crate) test: Vec<usize>,
    pub(crate) bad: Vec<BadImage>,
}

impl DecodableImages {
    /// All images of `set` except the indices `excluded` of the training and the test part.
    pub(crate) fn except(set: &LabelledSet, excluded: &[Vec<usize>; 2], bad: Vec<BadImage>) -> Self {
        let part = |indices: &[usize], excluded: &[usize]| {
            indices.iter().copied().filter(|index| !excluded.contains(index)).collect()
        };
        Self {
            train: part(&set.train_indices, &excluded[0]),
            test: part(&set.test_indices, &excluded[1]),
            bad,
        }
    }

    /// Labels of the training and of the test images.
    pub(crate) fn labels(&self, set: &LabelledSet) -> (Tensor, Tensor) {
        (label_tensor(&set.train_labels, &self.train), label_tensor(&set.test_labels, &self.test))
    }
}
