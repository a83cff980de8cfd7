//! Encoder and head over one parameter store.

use tch::{Device, Tensor};

use crate::{
    ModelError,
    device::Precision,
    encoder::{Encoder, EncoderConfig, Mode},
    head::{Head, HeadConfig},
    params::Params,
    task::TaskConfig,
};

/// Encoder f and head g with their parameters.
#[derive(Debug)]
pub struct Model {
    /// Images `[B, C, S, S]` to h `[B, F]`.
    pub encoder: Encoder,
    /// h to z `[B, D]`, or to logits `[B, K]`.
    pub head: Head,
    /// z to the query `[B, D]`, in training only (MoCo v3).
    pub predictor: Option<Head>,
    /// Parameters and buffers `encoder.*`, `head.*`, `predictor.*`, `classifier.*`.
    pub params: Params,
    /// Type of convolutions and matrix products.
    pub precision: Precision,
    /// Whether the encoder always runs in evaluation mode and without gradient.
    pub frozen: bool,
}

impl Model {
    /// Draws the initial weights from `seed`.
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
        Ok(Self { encoder, head, predictor: None, params, precision, frozen: false })
    }

    /// Appends a predictor of `hidden` units; its output takes the place of z.
    #[must_use]
    pub fn with_predictor(mut self, head: &HeadConfig, hidden: i64) -> Self {
        let width = self.embedding_dim();
        self.predictor = Some(Head::predictor(head, hidden, width, &mut self.params));
        self
    }

    /// [`Model::new`] for contrastive tasks; for supervised ones, the encoder with a linear classifier of `classes` outputs.
    ///
    /// # Errors
    /// See [`Encoder::new`].
    #[expect(clippy::too_many_arguments, reason = "the arguments of Model::new, the task, and its classes")]
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
        Ok(Self { encoder, head, predictor: None, params, precision, frozen: task.frozen })
    }

    /// The stages of [`Model::forward`], usable on another thread; `None` for a TorchScript module.
    pub fn stages(&self) -> Option<Stages> {
        Some(Stages {
            encoder: self.encoder.shallow_clone()?,
            head: self.head.shallow_clone(),
            predictor: self.predictor.as_ref().map(Head::shallow_clone),
            precision: self.precision,
        })
    }

    /// Width D of z.
    pub fn embedding_dim(&self) -> i64 {
        self.head.widths().last().copied().unwrap_or_else(|| self.encoder.feature_dim())
    }

    /// h `[2N, F]` and z `[2N, D]` of all views in one pass, so that batch norm covers both views of an image.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn forward(&self, views: &Tensor, mode: &Mode) -> Result<(Tensor, Tensor), ModelError> {
        let h = if self.frozen {
            tch::no_grad(|| self.encoder.forward(views, &Mode::Eval, self.precision))?
        } else {
            self.encoder.forward(views, mode, self.precision)?
        };
        let z = project(&self.head, self.predictor.as_ref(), &h, mode, self.precision)?;
        Ok((h, z))
    }
}

/// The output of `head`, and of `predictor` if there is one, in f32.
fn project(
    head: &Head,
    predictor: Option<&Head>,
    h: &Tensor,
    mode: &Mode,
    precision: Precision,
) -> Result<Tensor, ModelError> {
    let z = head.forward(h, mode, precision)?;
    predictor.map_or(Ok(z.shallow_clone()), |predictor| predictor.forward(&z, mode, precision))
}

/// A model as a sequence of stages: those of the encoder, the last of which returns h, and the head with the predictor, which returns
/// z. Shares the parameters of its [`Model`].
#[derive(Debug)]
pub struct Stages {
    encoder: Encoder,
    head: Head,
    predictor: Option<Head>,
    precision: Precision,
}

impl Stages {
    /// Stages of the encoder, plus one for the head.
    pub fn count(&self) -> usize {
        self.encoder.stages() + 1
    }

    /// Runs a stage on views `[B, C, S, S]` (the first) or on the output of the stage before it.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn run(&self, index: usize, x: &Tensor, mode: &Mode) -> Result<Tensor, ModelError> {
        if index < self.encoder.stages() {
            return self.encoder.stage(index, x, mode, self.precision);
        }
        project(&self.head, self.predictor.as_ref(), x, mode, self.precision)
    }
}
