//! How good is h? Frozen features, kNN, a linear classifier, and three controls (spec 8, 15.0).

pub mod features; // run folder -> frozen encoder; images -> h
pub mod knn; // bank, queries -> labels by vote
pub mod lbfgs; // convex function -> its minimum
pub mod linear; // h, labels -> linear classifier
mod logistic; // the classifier's objective
pub mod protocol; // run, data -> results
pub mod results; // results -> results.json, table
mod sets; // path -> labelled training and test part
pub mod splits; // labels -> hold-outs, folds, subsets
