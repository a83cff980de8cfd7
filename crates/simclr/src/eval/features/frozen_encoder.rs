//! Frozen encoder of a run: batch norm with running statistics, no gradients, `f32`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use simclr_data::{
    augment::{EvalTransform, TransformChange},
    decode::Decoding,
};
use tch::{Device, Tensor};

use crate::{
    EvalError, RunConfig,
    device::{DeviceChoice, Precision, choose_device},
    encoder::Mode,
    eval::layer::Layer,
    head::HeadKind,
    model::Model,
    params::load_weights,
    train::{RunFolder, state::RunState},
};

/// A model with fixed weights. Computes in `f32`, like users of an exported encoder, whatever the precision of the run.
#[derive(Debug)]
pub struct FrozenEncoder {
    model: Model,
    config: RunConfig,
    channels: i64,
    origin: Origin,
    has_head: bool,
}

/// Source of the weights of a frozen encoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// Checkpoint file; none for fresh weights.
    pub checkpoint: Option<PathBuf>,
    /// Training steps done.
    pub step: u64,
    /// Training steps planned, if recorded.
    pub total_steps: Option<u64>,
    /// A note for each newer, damaged checkpoint.
    pub passed_over: Vec<String>,
    /// Note on what the run does not record and the value assumed instead.
    pub assumed: Option<String>,
}

/// Loads the newest checkpoint of `run`.
///
/// # Errors
/// No run, no checkpoint, a damaged one, or one with tensors that do not fit the run's configuration.
pub fn load_encoder(run: &RunFolder) -> Result<FrozenEncoder, EvalError> {
    load_encoder_on(run, None)
}

/// [`load_encoder`] on another `device` than that of the run.
///
/// # Errors
/// As [`load_encoder`]; a device that is not available.
pub fn load_encoder_on(run: &RunFolder, device: Option<DeviceChoice>) -> Result<FrozenEncoder, EvalError> {
    let (mut config, assumed) = RunConfig::load_run(&run.config_file(), &[])?;
    config.train.device = device.unwrap_or(config.train.device);
    let missing = || crate::CheckpointError::Missing { folder: run.path().to_owned() };
    let (newest, passed_over) = run.newest_checkpoint()?;
    let checkpoint = newest.ok_or_else(missing)?;
    let supervised = !config.task.objective.is_contrastive();
    if supervised {
        // Its classifier is no layer of the projection head.
        config.head.kind = HeadKind::None;
    }
    let plan = read_plan(run)?;
    let channels = plan["channels"].as_i64().filter(|channels| *channels > 0);
    let channels = channels.unwrap_or(config.data.channels.max(1) as i64);
    let frozen = FrozenEncoder::random_init(&config, channels, config.train.seed)?;
    load_weights(frozen.model.params.named(), |name, shape| checkpoint.tensor(name, shape))?;
    let step = RunState::of(&checkpoint)?.step;
    let origin = Origin {
        checkpoint: Some(checkpoint.path),
        step,
        total_steps: plan["total_steps"].as_u64(),
        passed_over,
        assumed,
    };
    // An import has zero steps; its head has trained weights only if they were imported, too.
    let has_head = !supervised && (step, origin.total_steps) != (0, Some(0)) || plan["imported_head"] == true;
    Ok(FrozenEncoder { origin, has_head, ..frozen })
}

/// The run's `plan.json`, which resolves channels and number of steps.
fn read_plan(run: &RunFolder) -> Result<serde_json::Value, EvalError> {
    let path = run.plan_file();
    let text = fs_err::read_to_string(&path)?;
    serde_json::from_str(&text).map_err(|error| EvalError::File { path, reason: error.to_string() })
}

impl FrozenEncoder {
    /// The control: the same architecture with fresh weights drawn from `seed`.
    ///
    /// # Errors
    /// An encoder that cannot be built, or an unavailable device.
    pub fn random_init(config: &RunConfig, channels: i64, seed: u64) -> Result<Self, EvalError> {
        let device = choose_device(config.train.device, 0)?;
        let sides = (channels, config.train.image_size as i64);
        let model = Model::new(&config.encoder, &config.head, sides, seed, device, Precision::F32)?;
        let origin =
            Origin { checkpoint: None, step: 0, total_steps: None, passed_over: Vec::new(), assumed: None };
        Ok(Self { model, config: config.clone(), channels, origin, has_head: true })
    }

    /// With weights of a file, which were copied into [`FrozenEncoder::model`].
    pub(crate) fn of_file(mut self, file: &Path, step: u64, total_steps: Option<u64>) -> Self {
        self.origin = Origin { checkpoint: Some(file.to_owned()), step, total_steps, ..self.origin };
        self
    }

    /// The model; its parameters and buffers must not change.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The run's configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// C.
    pub fn channels(&self) -> i64 {
        self.channels
    }

    /// Decoding of its images.
    pub fn decoding(&self) -> Decoding {
        let (jpeg, range) = (self.config.transform.jpeg, self.config.data.value_range());
        Decoding { channels: self.channels as usize, jpeg, range, pages: self.config.data.pages }
    }

    /// S.
    pub fn image_size(&self) -> usize {
        self.config.train.image_size
    }

    /// Input transform.
    pub fn transform(&self) -> EvalTransform {
        let transform = self.config.transform.to(self.image_size(), self.channels as usize);
        transform.of_range(self.config.data.value_range())
    }

    /// The same encoder with another input transform.
    ///
    /// # Errors
    /// A share out of range.
    pub fn with_transform(mut self, change: &TransformChange) -> Result<Self, EvalError> {
        self.config.transform = self.config.transform.changed(change);
        self.config.transform.validate()?;
        Ok(self)
    }

    /// F.
    pub fn feature_dim(&self) -> i64 {
        self.model.encoder.feature_dim()
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.model.params.device()
    }

    /// Source of the weights.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// 32 hex digits over architecture and weights, including batch-norm statistics and head.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(serde_json::json!(self.config.encoder).to_string().as_bytes());
        if let Some(module) = self.config.encoder.file.as_ref().and_then(|file| fs_err::read(file).ok()) {
            hash.update(blake3::hash(&module).as_bytes());
        }
        hash_tensors(&mut hash, self.model.params.named());
        hash.finalize().to_hex()[..32].to_owned()
    }

    /// Whether any weight or batch-norm statistic of the encoder differs in `model`.
    pub fn differs(&self, model: &Model) -> bool {
        let ours = self.model.params.named().filter(|(name, _)| name.starts_with("encoder."));
        let theirs: std::collections::HashMap<_, _> = model.params.named().collect();
        ours.into_iter().any(|(name, tensor)| theirs.get(name).is_none_or(|other| !other.equal(tensor)))
    }

    /// h `[B, F]` of `images` `[B, C, S, S]`, on the CPU.
    ///
    /// # Errors
    /// A TorchScript module that fails on this batch.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, EvalError> {
        let _guard = tch::no_grad_guard();
        Ok(self.model.encoder.forward(images, &Mode::Eval, Precision::F32)?.to_device(Device::Cpu))
    }
}

impl FrozenEncoder {
    /// Width of `layer`.
    ///
    /// # Errors
    /// A layer that the head does not have, or any layer of a head without trained weights, as of encoders imported without one.
    pub fn layer_dim(&self, layer: Layer) -> Result<i64, EvalError> {
        let widths = self.model.head.widths();
        let refused = |reason: String| Err(EvalError::Layer { layer: layer.to_string(), reason });
        match layer {
            Layer::H => Ok(self.feature_dim()),
            _ if !self.has_head => refused("the imported weights have no projection head; expected h".into()),
            Layer::Z => Ok(widths.last().copied().unwrap_or(self.feature_dim())),
            Layer::Head(number) => match widths.get(number - 1) {
                Some(width) => Ok(*width),
                None if widths.is_empty() => {
                    refused("the run has no projection head; expected h or z".into())
                }
                None => refused(format!("the head has {} layers; expected head.1 to head.{0}", widths.len())),
            },
        }
    }

    /// The outputs `layers` of `images` `[B, C, S, S]` from one forward pass, concatenated `[B, sum of widths]`, on the CPU.
    ///
    /// # Errors
    /// A TorchScript module that fails on this batch.
    ///
    /// # Panics
    /// If the head does not have one of the layers; see [`FrozenEncoder::layer_dim`].
    pub fn layers(&self, images: &Tensor, layers: &[Layer]) -> Result<Tensor, EvalError> {
        if layers == [Layer::H] {
            return self.forward(images);
        }
        let _guard = tch::no_grad_guard();
        let h = self.model.encoder.forward(images, &Mode::Eval, Precision::F32)?;
        let blocks = self.model.head.blocks(&h, &Mode::Eval, Precision::F32)?;
        let output = |layer: &Layer| match layer {
            Layer::H => h.shallow_clone(),
            Layer::Z => blocks.last().unwrap_or(&h).shallow_clone(),
            Layer::Head(number) => blocks[number - 1].shallow_clone(),
        };
        Ok(Tensor::cat(&layers.iter().map(output).collect::<Vec<_>>(), 1).to_device(Device::Cpu))
    }
}

/// Hashes names, types, shapes and values.
pub(crate) fn hash_tensors<'a>(
    hash: &mut blake3::Hasher,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) {
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        hash.update(format!("{name} {:?} {:?}", tensor.kind(), tensor.size()).as_bytes());
        hash.update(&bytes);
    }
}
