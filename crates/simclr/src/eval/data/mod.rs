//! data

pub mod identity;
pub mod image_labels;
pub mod label_subsets;
pub mod labelled_set;
pub mod splits;
