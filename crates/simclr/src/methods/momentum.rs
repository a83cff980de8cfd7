//! The momentum encoder: an exponential moving average of the trained model (MoCo, arXiv 1911.05722, equation 2).

use tch::{Kind, Tensor};

use crate::{CheckpointError, losses::l2_normalize, model::Model};

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
        named.map(|(name, tensor)| (format!("momentum.{name}"), tensor.shallow_clone())).collect()
    }

    /// Restores [`MomentumEncoder::state`].
    ///
    /// # Errors
    /// Errors of `get`; then nothing is changed.
    pub fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut values = Vec::new();
        for (name, mut tensor) in self.state() {
            let value = get(&name, &tensor.size())?;
            values.push(move || tensor.copy_(&value));
        }
        tch::no_grad(|| values.into_iter().for_each(|mut copy| copy()));
        Ok(())
    }
}

/// Unit keys of `z` `[n, D]` in f32, without gradient.
pub fn keys_of(z: &Tensor) -> Tensor {
    l2_normalize(&z.detach().to_kind(Kind::Float)).contiguous()
}
