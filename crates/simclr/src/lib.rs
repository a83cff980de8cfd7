//! SimCLR (Chen et al. 2020, arXiv 2002.05709): contrastive pretraining of image encoders on libtorch.
//!
//! [`train::pretrain`] trains from a folder of images into a run folder; [`eval`] evaluates the encoder of a run;
//! [`export`] writes it to safetensors. The parts are usable on their own (`examples/`):
//!
//! ```
//! use simclr::{
//!     data::rng::Key,
//!     device::Precision,
//!     encoder::{EncoderConfig, EncoderName, Mode},
//!     head::HeadConfig,
//!     model::Model,
//!     losses::{LossConfig, contrastive_loss},
//!     optim::{OptimConfig, Optimizer},
//!     tch::{Device, Tensor},
//! };
//!
//! let encoder = EncoderConfig { name: EncoderName::ConvC3, ..EncoderConfig::default() };
//! let model = Model::new(&encoder, &HeadConfig::default(), (3, 32), 0, Device::Cpu, Precision::F32)?;
//! let mut optimizer = Optimizer::new(&OptimConfig::default(), &model.params);
//! let pixels = Key { seed: 0, epoch: 0, image: 0, view: 0 }.stream().normals(8 * 3 * 32 * 32);
//! let views = Tensor::from_slice(&pixels).view([8, 3, 32, 32]); // rows i and i + 4 are views of one image
//! let (h, z) = model.forward(&views, &Mode::train())?;
//! let loss = contrastive_loss(&z, &LossConfig::default()).loss;
//! loss.backward();
//! optimizer.step(&model.params, 0.1)?;
//! assert_eq!(h.size()[0], 8);
//! # Ok::<(), simclr::ModelError>(())
//! ```
//!
//! A module imports only modules that are declared before it: the order in which a batch passes through. This crate never prints,
//! never reads argv and never exits; progress is reported through [`train::Observer`].
//!
//! Dimensions: N images, 2N views, C channels, H height, W width, S side of a view, F features of h, D dimensions of z.

pub use simclr_data as data;
pub use tch;

pub mod error;

pub mod html; // text and tables of a page
pub mod picture; // values -> SVG
pub mod device; // CPU or GPU, precision, copies
pub mod views; // a batch -> views [2N, C, S, S] on the device
pub mod params; // named parameters and buffers
pub mod encoder; // images [B, C, S, S] -> h [B, F]
pub mod head; // h [B, F] -> z [B, D]
pub mod task; // [task]
pub mod model; // encoder + head
pub mod losses; // z [2N, D] -> loss
pub mod health; // collapse, alignment, uniformity
pub mod dist; // process group: all-reduce, all-gather, broadcast
pub mod optim; // gradients -> new weights
pub mod config; // RunConfig as written -> Plan as run
pub mod methods; // what is learned: modules, loss, state
pub mod exec; // how a step runs: eager, CUDA graph, gradient caching
pub mod checkpoint; // named tensors and JSON <-> one file, atomic
pub mod weights; // tensors of other programs -> encoder
pub mod tensor_bundle; // TensorFlow checkpoint -> named tensors, object graph
pub mod knn; // bank, queries -> labels by vote
pub mod train; // the run
pub mod eval; // frozen features -> kNN, linear probe; fine-tuning
pub mod explore; // h of a set -> neighbours, map, findings
pub mod export; // encoder -> safetensors, features -> parquet / npy
pub mod report; // run, set -> one page
pub mod study; // studies of the paper: jobs, figures, verdicts, pages

pub use config::{Plan, RunConfig};
pub use error::{BundleError, CheckpointError, ConfigError, DistError, EvalError, ModelError, TrainError};

/// Standard normal numbers of a test: libtorch's generator is shared by all threads, and tests run side by side.
#[cfg(test)]
fn test_normals(seed: u64, shape: &[i64]) -> tch::Tensor {
    let draws = data::rng::Key::weights(seed, 0).stream().normals(shape.iter().product::<i64>() as usize);
    tch::Tensor::from_slice(&draws).view(shape)
}
