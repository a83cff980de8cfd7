//! The momentum encoder: an exponential moving average of the trained model (MoCo, arXiv 1911.05722, equation 2).

use std::f64::consts::PI;

use tch::{Kind, Tensor};

use super::{branches::Branches, queue::Queue};
use crate::{
    CheckpointError,
    losses::{AllGather, l2_normalize},
    model::Model,
    params::load_weights,
    task::{MocoConfig, MomentumSchedule},
};

/// A model of the same architecture as the trained one, without gradient and with running statistics of its own.
#[derive(Debug)]
pub struct MomentumEncoder {
    model: Model,
    momentum: Momentum,
}

/// m by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// At the start.
    start: f64,
    /// Length of a half cosine to 1; 0: m is constant.
    rising_steps: u64,
}

impl Momentum {
    /// `moco.momentum` by `moco.momentum_schedule` in a run of `total_steps`.
    pub fn new(config: &MocoConfig, total_steps: u64) -> Self {
        let rises = config.momentum_schedule == MomentumSchedule::Cosine;
        Self { start: config.momentum, rising_steps: if rises { total_steps } else { 0 } }
    }

    /// m of the update before step `step` (MoCo v3, `adjust_moco_momentum`).
    pub fn before_step(self, step: u64) -> f64 {
        if self.rising_steps == 0 {
            return self.start;
        }
        let progress = step as f64 / self.rising_steps as f64;
        1.0 - (1.0 - self.start) * (1.0 + (PI * progress).cos()) / 2.0
    }
}

impl MomentumEncoder {
    /// `model` is built with the configuration of `online`, but without its predictor, and takes over its parameters and buffers.
    pub fn new(model: Model, online: &Model, momentum: Momentum) -> Self {
        let (target, source) = (&model.params, &online.params);
        // Both are in the order of creation, and the predictor comes last.
        let params = target.params().iter().zip(source.params()).map(|(a, b)| (&a.tensor, &b.tensor));
        let frozen = target.frozen().iter().zip(source.frozen());
        let others = frozen.chain(target.buffers().iter().zip(source.buffers())).map(|(a, b)| (&a.1, &b.1));
        tch::no_grad(|| {
            params.chain(others).for_each(|(target, source)| target.shallow_clone().copy_(source))
        });
        for param in model.params.params() {
            let _ = param.tensor.set_requires_grad(false);
        }
        Self { model, momentum }
    }

    /// Encoder and head of the keys.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// m k + (1 - m) q for every parameter after step `step`. Buffers are not averaged (FAIR's `moco/builder.py`).
    pub fn update(&self, online: &Model, step: u64) {
        let weight = 1.0 - self.momentum.before_step(step + 1);
        let pairs = self.model.params.params().iter().zip(online.params.params());
        tch::no_grad(|| {
            for (key, query) in pairs {
                let _ = key.tensor.shallow_clone().lerp_(&query.tensor, weight);
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
    /// A queue of `config.queue` keys of `width` values, at first drawn from `seed`.
    pub fn new(encoder: MomentumEncoder, config: &MocoConfig, width: i64, seed: u64) -> Self {
        let queue = Queue::new(config.queue, width, seed, encoder.model().params.device());
        Self { encoder, queue }
    }

    /// After step `step`: moves the encoder towards `online`, and enqueues the keys of the embedding `z` over all processes.
    pub fn update(
        &mut self,
        online: &Model,
        branches: Branches,
        (step, z): (u64, &Tensor),
        group: &dyn AllGather,
    ) {
        self.encoder.update(online, step);
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
