//! SimCLR (Chen et al. 2020, arXiv 2002.05709): contrastive pretraining of image encoders on libtorch.
//!
//! The modules stand in the order in which a batch passes through them. This crate never prints, never reads argv
//! and never exits; progress goes out through [`train::Observer`].
//!
//! Dimension alphabet: N images, 2N views, C channels, H height, W width, S side of a view, F features of h,
//! D dimensions of z.

pub use simclr_data as data;

pub mod error;

pub mod checkpoint; // named tensors and JSON <-> one file, atomic
pub mod config; // RunConfig as written -> Plan as run
pub mod device; // the only file that names a backend
pub mod dist; // the processes of a run
pub mod encoder; // images [B, C, S, S] -> h [B, F]
pub mod eval; // frozen features -> kNN, linear classifier
pub mod export; // encoder -> safetensors, features -> parquet / npy
pub mod head; // h [B, F] -> z [B, D]
pub mod health; // is it learning, in plain words
pub mod knn; // bank, queries -> labels by vote
pub mod model; // encoder + head
pub mod nt_xent; // z [2N, D] -> loss
pub mod objective; // z or logits -> what a step minimises
pub mod optim; // who decays, how to step, how fast
pub mod params; // named parameters and buffers
pub mod train; // the run
pub mod views; // a batch -> views [2N, C, S, S] on the device

pub use config::{Plan, RunConfig};
pub use error::{CheckpointError, ConfigError, DistError, EvalError, ModelError, TrainError};

/// Standard normal numbers of a test: libtorch's generator is shared by all threads, and tests run side by side.
#[cfg(test)]
fn test_normals(seed: u64, shape: &[i64]) -> tch::Tensor {
    let draws = data::rng::Key::weights(seed, 0).stream().normals(shape.iter().product::<i64>() as usize);
    tch::Tensor::from_slice(&draws).view(shape)
}
