//! SimCLR v2's memory (Chen et al. 2020b, arXiv 2006.10029, section 2; google-research/simclr issue 115): NT-Xent with contrasting
//! examples from a momentum encoder, of the current batch and of a queue.
//!
//! The queries are the embeddings of both views by the trained network. The positive of a query is the key of the other view; its
//! negatives are the keys of both views of the other images of the batch and the queue. Whether embeddings by the trained network
//! stay negatives, too, is not documented: here they do not, as in MoCo, with which issue 115 calls the memory consistent.

use tch::Tensor;

use super::{
    BatchSlice, LossOutput, Method, MethodTraits,
    branches::{Branches, Target},
    momentum::{KeyMemory, MomentumEncoder, keys_of},
    simclr::describe_projection,
};
use crate::{
    CheckpointError, RunConfig,
    losses::{AllGather, LossConfig, NegativeKeys, info_nce},
    model::Model,
    task::MocoConfig,
};

/// Encoder and head, their momentum encoder, and the queue.
#[derive(Debug)]
pub struct SimClrMomentum {
    model: Model,
    memory: KeyMemory,
    loss: LossConfig,
}

impl SimClrMomentum {
    /// The initial keys are drawn from `seed`.
    pub fn new(
        model: Model,
        encoder: MomentumEncoder,
        config: &MocoConfig,
        loss: LossConfig,
        seed: u64,
    ) -> Self {
        let memory = KeyMemory::new(encoder, config, model.embedding_dim(), seed);
        Self { model, memory, loss }
    }

    /// Positive and negatives of a query.
    fn candidates(&self, images: usize) -> usize {
        2 * images - 1 + self.memory.queue.keys().size()[0] as usize
    }
}

impl Method for SimClrMomentum {
    fn model(&self) -> &Model {
        &self.model
    }

    fn target(&self) -> Option<Target<'_>> {
        Some(Target { model: self.memory.encoder.model(), shuffle: None, is_fixed: false })
    }

    fn branches(&self) -> Branches {
        Branches::Joint
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: true, has_pairs: true }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        describe_projection(&config.head)
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        let (images, keys) = (config.train.batch, config.moco.queue);
        let (temperature, momentum) = (self.loss.temperature, config.moco.momentum);
        let candidates = self.candidates(images);
        format!(
            "NT-Xent against the keys of the batch and {keys} earlier ones, temperature {temperature}, momentum {momentum}; at \
             chance ln({candidates}) = {:.3}",
            (candidates as f64).ln()
        )
    }

    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let (queries, keys) = self.branches().split(z);
        let keys = keys_of(&slice.group.all_gather(&keys_of(&keys)));
        let (own, all) = (z.size()[0] / 2, keys.size()[0] / 2);
        let first = slice.group.first_image();
        let outputs = [0, 1].map(|view| {
            // Rows of the keys of the query's own view and of the other view, its positive.
            let excluded = [view * all + first, (1 - view) * all + first];
            let positives = keys.narrow(0, excluded[1], own);
            let negatives = [
                NegativeKeys { keys: &keys, excluded: &excluded },
                NegativeKeys { keys: self.memory.queue.keys(), excluded: &[] },
            ];
            info_nce(&queries.narrow(0, view * own, own), &positives, &negatives, self.loss.temperature)
        });
        let [first, second] = outputs;
        let anchors = 2.0 * all as f64;
        LossOutput {
            loss: (first.loss + second.loss) * (self.loss.reduction.factor() / anchors),
            accuracy: (first.right + second.right) / anchors,
        }
    }

    fn chance_loss(&self, images: usize) -> f64 {
        self.loss_scale() * (self.candidates(images) as f64).ln()
    }

    fn loss_scale(&self) -> f64 {
        self.loss.reduction.factor()
    }

    fn positive_pairs(&self, z: &Tensor) -> Tensor {
        self.branches().positive_pairs(z)
    }

    fn after_step(&mut self, step: u64, z: &Tensor, group: &dyn AllGather) {
        self.memory.update(&self.model, self.branches(), (step, z), group);
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        self.memory.state()
    }

    fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.memory.load_state(get)
    }
}
