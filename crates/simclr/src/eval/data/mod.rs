//! Labelled images: sets and their splits, label subsets, per-image labels, identity of cached images.

pub(crate) mod identity; // set -> identity that its figures are cached under
pub(crate) mod image_labels; // labels and predictions -> the set's metric
pub(crate) mod label_subsets; // columns of the table -> labelled images
pub(crate) mod labelled_set; // path -> labelled training and test part
pub mod splits; // labels -> hold-outs, folds, subsets
