//! Every random choice of a view, as plain data, before any pixel is touched.

use crate::rng::Key;
use serde::{Deserialize, Serialize};

/// The augmentation as configured (section `[augment]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct AugmentConfig {}

/// All draws of one view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewParams {}

impl AugmentConfig {
    /// Draws the view `key` of an image of this size.
    pub fn draw(&self, key: Key, width: usize, height: usize) -> ViewParams {
        let _ = (key, width, height);
        todo!("helper data-augment")
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// The key, its value and the accepted range.
    pub fn validate(&self) -> Result<(), crate::DataError> {
        todo!("helper data-augment")
    }
}
