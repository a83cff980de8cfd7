//! probes

pub mod frozen;
pub mod lbfgs;
pub mod linear;
pub mod logistic;
pub mod transfer;
