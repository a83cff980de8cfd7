//! Frozen networks and their features.

use std::collections::HashMap;

use simclr_data::{
    Image, ViewParams,
    augment::{AugmentBuffers, AugmentConfig, apply},
};
use tch::{Device, Tensor};

use super::super::{
    arm::{How, Run},
    workspace::{Part, Workspace},
};
use crate::{
    EvalError,
    device::to_device,
    eval::{
        features::{FrozenEncoder, ReadOptions, extract, load_encoder},
        layer::Layer,
    },
    train::{Observer, RunFolder},
};

/// Images per forward pass.
const BATCH: usize = 256;

/// A frozen network of a study.
pub(super) struct Network<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) encoder: FrozenEncoder,
}

/// Features with labels.
pub(super) struct Labelled {
    /// `[n, F]` each, f32 on the CPU.
    pub(super) features: Vec<Tensor>,
    /// `[n]` i64.
    pub(super) labels: Tensor,
    pub(super) classes: i64,
}

impl<'a> Network<'a> {
    /// The newest checkpoint of `run`, or its initial weights.
    pub(super) fn load(workspace: &'a Workspace, run: &Run, seed: u64) -> Result<Self, EvalError> {
        let encoder = if run.how == How::Fresh {
            let channels = workspace.decoding(run.images.set).channels as i64;
            FrozenEncoder::random_init(&run.config(&workspace.scale, seed)?, channels, seed)?
        } else {
            let folder = RunFolder::open(&workspace.run_folder(run, seed)?).map_err(Box::new)?;
            load_encoder(&folder)?
        };
        Ok(Self { workspace, encoder })
    }

    /// h and z of a part.
    pub(super) fn h_and_z(
        &self,
        part: &Part<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Labelled, EvalError> {
        self.extract(part, &|pixels| self.both(pixels), observer)
    }

    /// Features of a part, split into h and the rest.
    pub(super) fn extract(
        &self,
        part: &Part<'_>,
        features: &dyn Fn(&Tensor) -> Result<Tensor, EvalError>,
        observer: &mut dyn Observer,
    ) -> Result<Labelled, EvalError> {
        let options = ReadOptions::of(&self.encoder, BATCH, 0);
        let mut progress = |done, of| observer.progress("features", done, of);
        let mut read = extract(part.set, &part.indices, &options, &[features], &mut progress)?;
        let labels: HashMap<usize, i64> = part.indices.iter().copied().zip(part.labels.clone()).collect();
        let labels: Vec<i64> = read.indices.iter().map(|index| labels[index]).collect();
        let features = self.split(&read.features.remove(0));
        Ok(Labelled { features, labels: Tensor::from_slice(&labels), classes: part.classes })
    }

    /// h and z of `pixels`, side by side.
    pub(super) fn both(&self, pixels: &Tensor) -> Result<Tensor, EvalError> {
        self.encoder.layers(pixels, &[Layer::H, Layer::Z])
    }

    /// h, and z unless there is none.
    pub(super) fn split(&self, both: &Tensor) -> Vec<Tensor> {
        let h = self.encoder.feature_dim();
        let rest = both.size()[1] - h;
        let parts =
            [Some(both.narrow(1, 0, h.min(both.size()[1]))), (rest > 0).then(|| both.narrow(1, h, rest))];
        parts.into_iter().flatten().collect()
    }

    /// h and z of `images` as augmented by parameters of our choice.
    pub(super) fn of_views(&self, images: &[(Image, ViewParams)]) -> Result<Vec<Tensor>, EvalError> {
        let mut rows = Vec::new();
        for chunk in images.chunks(BATCH) {
            rows.push(self.both(&self.pixels(chunk)?)?);
        }
        Ok(self.split(&Tensor::cat(&rows, 0)))
    }

    fn pixels(&self, images: &[(Image, ViewParams)]) -> Result<Tensor, EvalError> {
        let (side, channels) = (self.encoder.image_size(), self.encoder.channels() as usize);
        let (config, mut buffers) = (AugmentConfig::nothing(), AugmentBuffers::default());
        let mut pixels = vec![0.0; images.len() * channels * side * side];
        for ((image, params), out) in images.iter().zip(pixels.chunks_exact_mut(channels * side * side)) {
            apply(image, params, &config, side, out, &mut buffers);
        }
        let shape = [images.len(), channels, side, side].map(|size| size as i64);
        Ok(to_device(&pixels, shape, self.encoder.device())?)
    }

    /// Pixels `[n, C, S, S]` of a training batch of `run`: n / 2 images in two views.
    pub(super) fn views(&self, pixels: &[f32]) -> Result<Tensor, EvalError> {
        let (side, channels) = (self.encoder.image_size(), self.encoder.channels() as usize);
        let rows = pixels.len() / (channels * side * side);
        let shape = [rows, channels, side, side].map(|size| size as i64);
        Ok(to_device(pixels, shape, self.encoder.device())?)
    }
}

/// `tensor` as rows of numbers.
pub(super) fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    let tensor = tensor.to_device(Device::Cpu).to_kind(tch::Kind::Double).contiguous();
    let width = tensor.size().get(1).map_or(1, |width| *width as usize);
    let flat: Vec<f64> = Vec::try_from(tensor.view([-1])).unwrap_or_default();
    flat.chunks(width).map(<[f64]>::to_vec).collect()
}
