//! Classifiers on frozen features.

mod curvature; // moments of features -> preconditioner
mod feature_sets; // encoder, controls, pixels -> rows of the table
pub(crate) mod frozen; // frozen protocols -> rows
pub mod lbfgs; // convex functions -> their minima
mod line_search; // strong-Wolfe line search
pub mod linear; // features, labels -> linear classifier
mod logistic; // objective of the linear classifier
pub mod standardise; // scaling of features
pub(crate) mod transfer; // frozen features of other data sets -> rows
