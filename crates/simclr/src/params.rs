//! Named parameters (leaves that receive gradients) and buffers (batch-norm running statistics).
//!
//! A name is the checkpoint's key: `encoder.layer1.0.conv1.weight`, `head.0.weight`. Parameters are in creation order, which is
//! forward order, so it is the same in every run.

use simclr_data::rng::{Key, Stream};
use tch::{Device, Kind, Tensor};

/// Kind of a parameter. Weight decay and layer-wise adaptation depend on it (`optim::groups`), not on name patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Weight of a convolution or of a dense layer of the encoder or the projection head.
    Weight,
    /// Weight of the supervised classifier (`head_supervised` of the official code).
    Classifier,
    /// Bias of a convolution or dense layer.
    Bias,
    /// Batch-norm scale (gamma).
    NormScale,
    /// Batch-norm shift (beta).
    NormShift,
}

/// One trainable tensor, `f32`.
#[derive(Debug)]
pub struct Param {
    /// Full name with prefix.
    pub name: String,
    /// The leaf tensor (requires grad).
    pub tensor: Tensor,
    /// Kind of the parameter.
    pub role: Role,
}

/// All parameters and buffers of a model, in creation order.
#[derive(Debug)]
pub struct Params {
    device: Device,
    seed: u64,
    params: Vec<Param>,
    frozen: Vec<(String, Tensor)>,
    buffers: Vec<(String, Tensor)>,
}

impl Params {
    /// No parameters yet; `seed` determines the initial values.
    pub fn new(device: Device, seed: u64) -> Self {
        Self { device, seed, params: Vec::new(), frozen: Vec::new(), buffers: Vec::new() }
    }

    /// The random stream of the next parameter, keyed by seed and index, so that it does not depend on other threads, with
    /// which libtorch's generator is shared.
    pub fn stream(&self) -> Stream {
        Key::weights(self.seed, self.params.len() as u64).stream()
    }

    /// Device of all tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Adds a parameter with its initial value and returns a handle to the same storage.
    pub fn add(&mut self, name: impl Into<String>, role: Role, initial: Tensor) -> Tensor {
        let tensor = initial.to_device(self.device).to_kind(Kind::Float).detach().set_requires_grad(true);
        let handle = tensor.shallow_clone();
        self.params.push(Param { name: name.into(), tensor, role });
        handle
    }

    /// Adopts an existing leaf tensor (of a TorchScript module) as a parameter.
    pub fn adopt(&mut self, name: impl Into<String>, role: Role, leaf: Tensor) {
        self.params.push(Param { name: name.into(), tensor: leaf, role });
    }

    /// Adopts a parameter that its module excludes from training (`requires_grad=False`).
    pub fn adopt_frozen(&mut self, name: impl Into<String>, leaf: Tensor) {
        self.frozen.push((name.into(), leaf));
    }

    /// Adds a buffer and returns a handle to the same storage.
    pub fn add_buffer(&mut self, name: impl Into<String>, initial: Tensor) -> Tensor {
        let tensor = initial.to_device(self.device);
        let handle = tensor.shallow_clone();
        self.buffers.push((name.into(), tensor));
        handle
    }

    /// Adopts an existing buffer.
    pub fn adopt_buffer(&mut self, name: impl Into<String>, buffer: Tensor) {
        self.buffers.push((name.into(), buffer));
    }

    /// Parameters in creation order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Parameters that are not trained, in creation order: no gradient, no decay, no optimizer state.
    pub fn frozen(&self) -> &[(String, Tensor)] {
        &self.frozen
    }

    /// Buffers in creation order.
    pub fn buffers(&self) -> &[(String, Tensor)] {
        &self.buffers
    }

    /// Parameters, trained or not, and buffers by name, for checkpoints and export.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let params = self.params.iter().map(|param| (param.name.as_str(), &param.tensor));
        let others = self.frozen.iter().chain(&self.buffers);
        params.chain(others.map(|(name, tensor)| (name.as_str(), tensor)))
    }
}

/// Overwrites `targets` with the tensors that `stored` returns for their names and shapes, after all of them were found.
///
/// # Errors
/// The first error of `stored`; no target has changed then.
pub fn load_weights<'a, E>(
    targets: impl Iterator<Item = (&'a str, &'a Tensor)>,
    stored: impl Fn(&str, &[i64]) -> Result<Tensor, E>,
) -> Result<(), E> {
    let found = targets.map(|(name, target)| Ok((target.shallow_clone(), stored(name, &target.size())?)));
    let found: Vec<_> = found.collect::<Result<_, E>>()?;
    tch::no_grad(|| found.into_iter().for_each(|(mut target, value)| target.copy_(&value)));
    Ok(())
}
