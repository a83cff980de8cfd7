//! MoCo v3 (Chen et al. 2021, arXiv 2104.02057; facebookresearch/moco-v3 `builder.py`): InfoNCE of predicted queries against the
//! momentum encoder's keys of the other views of the batch, in both directions and without a queue.

use tch::Tensor;

use super::{
    BatchSlice, LossOutput, Method, MethodTraits,
    branches::{Branches, Target},
    momentum::{MomentumEncoder, keys_of},
    simclr::describe_projection,
};
use crate::{
    CheckpointError, RunConfig,
    losses::{AllGather, NegativeKeys, info_nce},
    model::Model,
};

/// Encoder, head and predictor, and the momentum encoder of encoder and head.
#[derive(Debug)]
pub struct MocoV3 {
    model: Model,
    encoder: MomentumEncoder,
    temperature: f64,
}

impl MocoV3 {
    /// `model` has a predictor.
    pub fn new(model: Model, encoder: MomentumEncoder, temperature: f64) -> Self {
        Self { model, encoder, temperature }
    }
}

impl Method for MocoV3 {
    fn model(&self) -> &Model {
        &self.model
    }

    fn target(&self) -> Option<Target<'_>> {
        Some(Target { model: self.encoder.model(), shuffle: None, is_fixed: false })
    }

    fn branches(&self) -> Branches {
        Branches::Symmetric
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: true, has_pairs: true }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        let hidden = config.moco.predictor_hidden;
        format!("{}, predictor of {hidden} hidden units", describe_projection(&config.head))
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        let (images, momentum) = (config.train.batch, config.moco.momentum);
        format!(
            "InfoNCE of predictions against the {images} keys of the other views, sum of both directions times 2 tau, temperature \
             {}, momentum {momentum}; at chance {:.3}",
            self.temperature,
            self.chance_loss(images)
        )
    }

    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let (queries, keys) = self.branches().split(z);
        let keys = keys_of(&slice.group.all_gather(&keys_of(&keys)));
        let (own, all) = (z.size()[0] / 2, keys.size()[0] / 2);
        let first = slice.group.first_image();
        let outputs = [0, 1].map(|view| {
            let others = keys.narrow(0, (1 - view) * all, all);
            let negatives = [NegativeKeys { keys: &others, excluded: &[first] }];
            let queries = queries.narrow(0, view * own, own);
            info_nce(&queries, &others.narrow(0, first, own), &negatives, self.temperature)
        });
        let [first, second] = outputs;
        let images = all as f64;
        LossOutput {
            loss: (first.loss + second.loss) * (2.0 * self.temperature / images),
            accuracy: (first.right + second.right) / (2.0 * images),
        }
    }

    fn chance_loss(&self, images: usize) -> f64 {
        self.loss_scale() * (images as f64).ln()
    }

    fn loss_scale(&self) -> f64 {
        4.0 * self.temperature
    }

    fn positive_pairs(&self, z: &Tensor) -> Tensor {
        self.branches().positive_pairs(z)
    }

    fn after_step(&mut self, step: u64, _: &Tensor, _: &dyn AllGather) {
        self.encoder.update(&self.model, step);
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        self.encoder.state()
    }

    fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.encoder.load_state(get)
    }
}
