//! Labelled images: sets and their splits, label subsets, per-image labels, identity of cached images.

pub(crate) mod identity; // set -> identity that its figures are cached under
mod image_labels; // labels and predictions -> the set's metric
mod label_subsets; // columns of the table -> labelled images
mod labelled_set; // path -> labelled training and test part
pub mod splits; // labels -> hold-outs, folds, subsets

pub(crate) use image_labels::{GroundTruth, ImageLabels};
pub(crate) use label_subsets::{Column, LabelSubsets, list_files, name_lines};
pub(crate) use labelled_set::{LabelledSet, checksum};
