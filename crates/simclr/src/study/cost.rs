//! Estimated duration of the runs of a study: steps of each configuration, timed on this machine.

use std::{collections::HashMap, sync::Arc, time::Instant};

use simclr_data::{Loader, LoaderConfig, rng::Key};
use tch::Tensor;

use super::{
    arm::{How, Probe, Run, has_second_network},
    images::ImageSet,
    workspace::Workspace,
};
use crate::{
    EvalError, RunConfig,
    device::{choose_device, choose_precision},
    encoder::Mode,
    losses::{LossConfig, contrastive_loss},
    model::Model,
};

/// Images of the two timed steps.
const TIMED: [usize; 2] = [4, 64];
/// Forward passes of a second network in units of a step, forward and backward, of the first.
const SECOND_NETWORK: f64 = 4.0 / 3.0;
/// Images that are decoded and augmented to time the loader.
const LOADED: usize = 128;

/// Seconds of a step of n images: `fixed + n * per_image`.
#[derive(Debug, Clone, Copy)]
struct StepSeconds {
    fixed: f64,
    per_image: f64,
}

/// Times configurations, each once.
pub struct Cost<'a> {
    workspace: &'a Workspace,
    steps: HashMap<String, StepSeconds>,
    loader: Option<f64>,
}

impl<'a> Cost<'a> {
    /// Nothing is timed yet.
    pub fn new(workspace: &'a Workspace) -> Self {
        Self { workspace, steps: HashMap::new(), loader: None }
    }

    /// Seconds of the training of `run`, without that of the runs it starts from.
    ///
    /// # Errors
    /// An invalid configuration, an encoder that cannot be built.
    pub fn training(&mut self, run: &Run, seed: u64) -> Result<f64, EvalError> {
        let config = run.config(&self.workspace.scale, seed)?;
        let images = self.workspace.chosen(&run.images).len();
        let step = self.step(&config)?;
        let loader = self.loader(&config)?;
        let passes = |images: usize, batch: usize, epochs: f64| {
            let steps = epochs * (images / batch.max(1)).max(1) as f64;
            steps * step.fixed + steps * batch as f64 * (step.per_image + loader)
        };
        Ok(match &run.how {
            How::Fresh => 0.0,
            How::Fit | How::Distill { .. } => {
                let has_teacher = matches!(run.how, How::Distill { .. });
                let second = if has_teacher || has_second_network(&config) { SECOND_NETWORK } else { 1.0 };
                second * passes(images, config.train.batch, config.train.epochs)
            }
            How::Finetune { labels, .. } => {
                let count = (labels * images as f64) as usize;
                // As the presets of fine-tuning: a quarter of the labels per step, at most 256; one view.
                let batch = (count / 4).clamp(2, 256);
                0.5 * passes(count, batch, if *labels < 0.05 { 60.0 } else { 30.0 })
            }
        })
    }

    /// Seconds of a measurement: forward passes of training and test images, and classifiers.
    ///
    /// # Errors
    /// As [`Cost::training`].
    pub fn measuring(&mut self, run: &Run, probe: &Probe, seed: u64) -> Result<f64, EvalError> {
        let config = run.config(&self.workspace.scale, seed)?;
        let test = self.workspace.test_part(&run.images).indices.len() as f64;
        let train = self.workspace.chosen(&run.images).len() as f64;
        let (step, loader) = (self.step(&config)?, self.loader(&config)?);
        // A forward pass of one view is a sixth of a step with two.
        let read = step.per_image / 6.0 + 0.5 * loader;
        // Classifiers, by measurement on 10,000 images of 128 features; wider features in proportion.
        let classify = |features: f64| 2e-4 * features / 128.0;
        Ok(match probe {
            Probe::Frozen => (train + test) * (read + classify(256.0)),
            Probe::Classifier | Probe::Projection => test * read,
            Probe::FewLabels(_) => test * read + 5.0,
            Probe::Transfer(..) => (train + test) * (read + classify(512.0)),
            Probe::Transformations => 24_000.0 * read + 8.0,
            Probe::Pixels => 60.0,
            Probe::Spectrum | Probe::Entropy | Probe::Histograms => 1.0,
        })
    }

    fn step(&mut self, config: &RunConfig) -> Result<StepSeconds, EvalError> {
        let contrastive = config.task.objective.is_contrastive();
        let key = serde_json::json!([config.encoder, config.head, config.train.image_size, contrastive]);
        if let Some(found) = self.steps.get(&key.to_string()) {
            return Ok(*found);
        }
        let found = timed(config, self.workspace.decoding(ImageSet::Given).channels)?;
        self.steps.insert(key.to_string(), found);
        Ok(found)
    }

    /// Seconds of decoding and augmenting an image twice, on all threads.
    fn loader(&mut self, config: &RunConfig) -> Result<f64, EvalError> {
        if let Some(found) = self.loader {
            return Ok(found);
        }
        let images = self.workspace.scale.given();
        let chosen = self.workspace.chosen(&images);
        let set = self.workspace.opened(images.set).set.train.subset(&chosen[..LOADED.min(chosen.len())]);
        let count = set.len();
        let loader = LoaderConfig { batch: count, size: config.train.image_size, ..LoaderConfig::default() };
        let loader = Loader::new(Arc::new(set), config.augment.clone(), loader)?;
        let begin = Instant::now();
        loader.batches(0, 2)?.for_each(drop);
        let seconds = begin.elapsed().as_secs_f64() / (2 * count) as f64;
        self.loader = Some(seconds);
        Ok(seconds)
    }
}

/// Times forward and backward passes over noise.
fn timed(config: &RunConfig, channels: usize) -> Result<StepSeconds, EvalError> {
    let device = choose_device(config.train.device, 0)?;
    let precision = choose_precision(config.train.precision, device);
    let side = config.train.image_size as i64;
    let shape = (channels as i64, side);
    let model = Model::new(&config.encoder, &config.head, shape, 0, device, precision)?;
    let views = config.task.objective.views() as i64;
    let seconds = |images: usize| -> Result<f64, EvalError> {
        let count = views * images as i64;
        let noise = Key::weights(0, 0).stream().normals((count * shape.0 * side * side) as usize);
        let pixels = Tensor::from_slice(&noise).view([count, shape.0, side, side]).to_device(device);
        let step = || -> Result<f64, EvalError> {
            let begin = Instant::now();
            let (h, z) = model.forward(&pixels, &Mode::train())?;
            let loss = if views == 2 {
                contrastive_loss(&z, &LossConfig::default()).loss
            } else {
                h.mean(tch::Kind::Float)
            };
            loss.backward();
            // Waits for the device.
            let _ = loss.double_value(&[]);
            Ok(begin.elapsed().as_secs_f64())
        };
        step()?;
        Ok(step()?.min(step()?))
    };
    let [few, many] = TIMED;
    let (short, long) = (seconds(few)?, seconds(many)?);
    let per_image = ((long - short) / (many - few) as f64).max(0.5 * long / many as f64);
    Ok(StepSeconds { fixed: (long - per_image * many as f64).max(0.0), per_image })
}
