//! The momentum encoder: an exponential moving average of the trained model (MoCo, arXiv 1911.05722, equation 2).

use tch::{Kind, Tensor};

use super::{branches::Branches, queue::Queue};
use crate::{
    CheckpointError,
    losses::{AllGather, l2_normalize},
    model::Model,
    params::load_weights,
    task::MocoConfig,
};

/// A model of the same architecture as the trained one, without gradient and with running statistics of its own.
#[derive(Debug)]
pub struct MomentumEncoder {
    model: Model,
    /// m.
    momentum: f64,
}

impl MomentumEncoder {
    /// `model` is built with the configuration of `online` and takes over its parameters and buffers.
    pub fn new(model: Model, online: &Model, momentum: f64) -> Self {
        for ((_, target), (_, source)) in model.params.named().zip(online.params.named()) {
            tch::no_grad(|| target.shallow_clone().copy_(source));
        }
        for param in model.params.params() {
            let _ = param.tensor.set_requires_grad(false);
        }
        Self { model, momentum }
    }

    /// Encoder and head of the keys.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// m k + (1 - m) q for every parameter. Buffers are not averaged (FAIR's `moco/builder.py`).
    pub fn update(&self, online: &Model) {
        let pairs = self.model.params.params().iter().zip(online.params.params());
        tch::no_grad(|| {
            for (key, query) in pairs {
                let _ = key.tensor.shallow_clone().lerp_(&query.tensor, 1.0 - self.momentum);
            }
        });
    }

    /// Parameters and buffers by name, for checkpoints.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = self.model.params.named();
        named.map(|(name, tensor)| (stored_name(name), tensor.shallow_clone())).collect()
    }

    /// Restores [`MomentumEncoder::state`].
    ///
    /// # Errors
    /// Errors of `get`; then nothing is changed.
    pub fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        load_weights(self.model.params.named(), |name, shape| get(&stored_name(name), shape))
    }
}

/// Name in a checkpoint of the parameter or buffer `name`.
fn stored_name(name: &str) -> String {
    format!("momentum.{name}")
}

/// Momentum encoder and queue: the state of a method beyond the trained model.
#[derive(Debug)]
pub struct KeyMemory {
    /// Encoder of the keys.
    pub encoder: MomentumEncoder,
    /// Keys of earlier batches.
    pub queue: Queue,
}

impl KeyMemory {
    /// `target` is built with the configuration of `online`, the initial keys are drawn from `seed`.
    pub fn new(target: Model, online: &Model, config: &MocoConfig, seed: u64) -> Self {
        let queue = Queue::new(config.queue, online.embedding_dim(), seed, online.params.device());
        Self { encoder: MomentumEncoder::new(target, online, config.momentum), queue }
    }

    /// After a step: moves the encoder towards `online`, and enqueues the keys of the embedding `z` over all processes.
    pub fn update(&mut self, online: &Model, branches: Branches, z: &Tensor, group: &dyn AllGather) {
        self.encoder.update(online);
        let (_, keys) = branches.split(&group.all_gather(&z.to_kind(Kind::Float)));
        self.queue.enqueue(&keys_of(&keys));
    }

    /// See [`super::Method::state`].
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.encoder.state().into_iter().chain(self.queue.state()).collect()
    }

    /// Restores [`KeyMemory::state`].
    ///
    /// # Errors
    /// Errors of `get`.
    pub fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.encoder.load_state(get)?;
        self.queue.load_state(get)
    }
}

/// Unit keys of `z` `[n, D]` in f32, without gradient.
pub fn keys_of(z: &Tensor) -> Tensor {
    l2_normalize(&z.detach().to_kind(Kind::Float)).contiguous()
}
