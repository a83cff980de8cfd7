//! How good is h? Frozen features, kNN, a linear classifier, and three controls (spec 8, 15.0).

pub mod features;
pub mod knn;
pub mod linear;
pub mod protocol;
