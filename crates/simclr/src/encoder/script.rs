//! Any other network as encoder: a TorchScript module, such as a scripted or traced timm model without its classifier.

use std::path::Path;

use simclr_shim::ScriptModule;
use tch::{Kind, Tensor};

use super::{Mode, layers::global_mean};
use crate::{
    ModelError,
    device::Precision,
    params::{Params, Role},
};

/// A TorchScript module that maps `[B, C, S, S]` to `[B, F]` or `[B, F, h, w]`.
#[derive(Debug)]
pub struct ScriptEncoder {
    module: ScriptModule,
    features: i64,
}

impl ScriptEncoder {
    /// Loads `path`, adopts its parameters and buffers under `encoder.*`, and finds F by one image of zeros.
    pub fn new(path: &Path, channels: i64, size: i64, params: &mut Params) -> Result<Self, ModelError> {
        let refused = |reason: String| ModelError::File { path: path.to_owned(), reason };
        let said = |error: simclr_shim::ShimError| refused(format!("not a usable TorchScript module: {error}"));
        if !path.exists() {
            return Err(refused("no such file".into()));
        }
        let mut module = ScriptModule::load(path).map_err(said)?;
        module.to(params.device()).map_err(said)?;
        let probe = Tensor::zeros([1, channels, size, size], (Kind::Float, params.device()));
        let out = tch::no_grad(|| module.forward(&probe, false, false)).map_err(said)?;
        let features = match out.size()[..] {
            [1, features] | [1, features, _, _] => features,
            ref shape => {
                let wanted = "expected [1, F] or [1, F, h, w]";
                return Err(refused(format!("one {channels}x{size}x{size} image gives {shape:?}, {wanted}")));
            }
        };
        for (name, leaf) in module.parameters().map_err(said)? {
            let role = role_of(&name, &leaf);
            params.adopt(format!("encoder.{name}"), role, leaf.set_requires_grad(true));
        }
        for (name, buffer) in module.buffers().map_err(said)? {
            params.adopt_buffer(format!("encoder.{name}"), buffer);
        }
        Ok(Self { module, features })
    }

    /// h `[B, F]` in f32.
    ///
    /// # Panics
    /// If the module, which has run once in `new`, raises an error for a batch of the same image shape.
    pub fn forward(&self, images: &Tensor, mode: Mode, precision: Precision) -> Tensor {
        let out = self.module.forward(images, mode == Mode::Train, precision == Precision::Bf16);
        let out = out.unwrap_or_else(|error| panic!("the TorchScript encoder failed on a batch: {error}"));
        if out.dim() == 4 { global_mean(&out) } else { out.to_kind(Kind::Float) }
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}

/// A foreign module tells no roles: kernels have two dimensions or more, the rest goes by name.
fn role_of(name: &str, tensor: &Tensor) -> Role {
    if tensor.dim() >= 2 {
        Role::Kernel
    } else if name.ends_with("bias") {
        Role::Bias
    } else {
        Role::NormScale
    }
}
