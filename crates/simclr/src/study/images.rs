//! Which images a run trains on.

use serde::Serialize;

/// A set of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSet {
    /// `--data`.
    Given,
    /// Synthetic ([`simclr_data::tinted_shapes`]).
    Tinted,
}

/// The training images of a run: a class-balanced choice, the same for every seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Images {
    /// Of this set.
    pub set: ImageSet,
    /// Number of images, or all of a smaller set.
    pub count: usize,
    /// Of these classes.
    pub classes: Classes,
}

/// Classes of a set in label order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Classes {
    /// All.
    All,
    /// The first half.
    First,
    /// The second half.
    Second,
}
