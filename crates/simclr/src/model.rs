//! The model that is trained: encoder and head over one parameter store.

use tch::{Device, Tensor};

use crate::{
    ModelError,
    device::Precision,
    encoder::{Encoder, EncoderConfig, Mode},
    head::{Head, HeadConfig},
    params::Params,
    task::TaskConfig,
};

/// f and g with their parameters.
#[derive(Debug)]
pub struct Model {
    /// f.
    pub encoder: Encoder,
    /// g.
    pub head: Head,
    /// Parameters `encoder.*`, `head.*`.
    pub params: Params,
    /// Compute type.
    pub precision: Precision,
    /// Whether f only gives features: running statistics, no gradient, nothing changed.
    pub frozen: bool,
}

impl Model {
    /// A model with fresh weights drawn from `seed`.
    ///
    /// # Errors
    /// See [`Encoder::new`].
    pub fn new(
        encoder: &EncoderConfig,
        head: &HeadConfig,
        (channels, size): (i64, i64),
        seed: u64,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let mut params = Params::new(device, seed);
        let encoder = Encoder::new(encoder, channels, size, &mut params)?;
        let head = Head::new(head, encoder.feature_dim(), &mut params);
        Ok(Self { encoder, head, params, precision, frozen: false })
    }

    /// The model of a task: [`Model::new`], or with labels the encoder under a linear classifier of `classes` outputs.
    ///
    /// # Errors
    /// See [`Encoder::new`].
    #[expect(clippy::too_many_arguments, reason = "what Model::new takes, the task, and its classes")]
    pub fn for_task(
        task: &TaskConfig,
        classes: usize,
        encoder: &EncoderConfig,
        head: &HeadConfig,
        (channels, size): (i64, i64),
        seed: u64,
        device: Device,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        if task.objective.is_contrastive() {
            return Self::new(encoder, head, (channels, size), seed, device, precision);
        }
        let mut params = Params::new(device, seed);
        let encoder = Encoder::new(encoder, channels, size, &mut params)?;
        let features = encoder.feature_dim();
        let head = Head::classifier(head, features, task.head_layers, classes as i64, &mut params);
        Ok(Self { encoder, head, params, precision, frozen: task.frozen })
    }

    /// The stages of [`Model::forward`], for a thread of its own; none of a TorchScript module.
    pub fn stages(&self) -> Option<Stages> {
        let (encoder, head) = (self.encoder.shallow_clone()?, self.head.shallow_clone());
        Some(Stages { encoder, head, precision: self.precision })
    }

    /// h `[2N, F]` and z `[2N, D]` of all views in one pass, so that batch norm sees both views together.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn forward(&self, views: &Tensor, mode: &Mode) -> Result<(Tensor, Tensor), ModelError> {
        let h = if self.frozen {
            tch::no_grad(|| self.encoder.forward(views, &Mode::Eval, self.precision))?
        } else {
            self.encoder.forward(views, mode, self.precision)?
        };
        let z = self.head.forward(&h, mode, self.precision)?;
        Ok((h, z))
    }
}

/// Handles to the parameters of a model, walked stage by stage: those of the encoder, then the head. The last but one gives
/// h, the last one z.
#[derive(Debug)]
pub struct Stages {
    encoder: Encoder,
    head: Head,
    precision: Precision,
}

impl Stages {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.encoder.stages() + 1
    }

    /// One stage: views `[B, C, S, S]` for the first, else what the one before gave.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn run(&self, index: usize, x: &Tensor, mode: &Mode) -> Result<Tensor, ModelError> {
        if index < self.encoder.stages() {
            return self.encoder.stage(index, x, mode, self.precision);
        }
        self.head.forward(x, mode, self.precision)
    }
}
