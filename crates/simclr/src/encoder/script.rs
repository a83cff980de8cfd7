//! A TorchScript module as encoder, such as a scripted or traced timm model without its classifier.

use std::path::{Path, PathBuf};

use simclr_shim::ScriptModule;
use tch::{Kind, Tensor};

use super::{Mode, layers::global_mean};
use crate::{
    ModelError,
    device::Precision,
    params::{Params, Role},
};

/// A TorchScript module that maps `[B, C, S, S]` to `[B, F]` or `[B, F, h, w]`.
///
/// bf16 uses libtorch's autocast, which keeps some operations in f32, and weights and gradients too. A traced module keeps the
/// batch-norm mode it was traced in; script it, or trace it in training mode.
#[derive(Debug)]
pub struct ScriptEncoder {
    module: ScriptModule,
    path: PathBuf,
    features: i64,
}

impl ScriptEncoder {
    /// Loads `path`, adopts its parameters and buffers under `encoder.*`, and determines F from two images of zeros.
    pub fn new(path: &Path, channels: i64, size: i64, params: &mut Params) -> Result<Self, ModelError> {
        let file_error = |reason: String| ModelError::File { path: path.to_owned(), reason };
        let unusable =
            |error: simclr_shim::ShimError| file_error(format!("not a usable TorchScript module: {error}"));
        if !path.exists() {
            return Err(file_error("no such file".into()));
        }
        let mut module = ScriptModule::load(path).map_err(unusable)?;
        module.to(params.device()).map_err(unusable)?;
        let probe = Tensor::zeros([2, channels, size, size], (Kind::Float, params.device()));
        let out = tch::no_grad(|| module.forward(&probe, false, false)).map_err(unusable)?;
        let features = match out.size()[..] {
            [2, features] | [2, features, _, _] => features,
            ref shape => {
                let wanted = "expected [2, F] or [2, F, h, w]";
                return Err(file_error(format!(
                    "two {channels}x{size}x{size} images give {shape:?}, {wanted}"
                )));
            }
        };
        let leaves = module.parameters().map_err(unusable)?;
        check_trainable(&leaves).map_err(file_error)?;
        for (name, leaf) in leaves {
            let full = format!("encoder.{name}");
            if leaf.requires_grad() {
                params.adopt(full, role_of(&name, &leaf), leaf);
            } else {
                params.adopt_frozen(full, leaf);
            }
        }
        for (name, buffer) in module.buffers().map_err(unusable)? {
            params.adopt_buffer(format!("encoder.{name}"), buffer);
        }
        Ok(Self { module, path: path.to_owned(), features })
    }

    /// h `[B, F]` in f32.
    ///
    /// # Errors
    /// Errors of the module's code.
    pub fn forward(&self, images: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let out = self.module.forward(images, mode.is_train(), precision == Precision::Bf16);
        let out =
            out.map_err(|error| ModelError::File { path: self.path.clone(), reason: error.to_string() })?;
        Ok(if out.dim() == 4 { global_mean(&out) } else { out.to_kind(Kind::Float) })
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}

/// Checks that there are weights (`torch.jit.freeze` turns them into constants) and that trainable ones are f32.
fn check_trainable(leaves: &[(String, Tensor)]) -> Result<(), String> {
    if leaves.is_empty() {
        return Err("the module has no parameters to train; save it before `torch.jit.freeze`".into());
    }
    match leaves.iter().find(|(_, leaf)| leaf.requires_grad() && leaf.kind() != Kind::Float) {
        Some((name, leaf)) => Err(format!("parameter `{name}` is {:?}, expected Float (f32)", leaf.kind())),
        None => Ok(()),
    }
}

/// The role by shape and name: weights have two or more dimensions.
fn role_of(name: &str, tensor: &Tensor) -> Role {
    if tensor.dim() >= 2 {
        Role::Weight
    } else if name.ends_with("bias") {
        Role::Bias
    } else {
        Role::NormScale
    }
}
