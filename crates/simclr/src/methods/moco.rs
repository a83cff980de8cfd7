//! MoCo v1 (He et al. 2020, arXiv 1911.05722) and v2 (Chen et al. 2020, arXiv 2003.04297), which differ by their configuration only:
//! InfoNCE of queries against the key of the other view and a queue of earlier keys, both from a momentum encoder.

use tch::Tensor;

use super::{
    BatchSlice, LossOutput, Method, MethodTraits,
    branches::{Branches, Target},
    momentum::{KeyMemory, MomentumEncoder, keys_of},
    shuffle::Shuffle,
    simclr::describe_projection,
};
use crate::{
    CheckpointError, RunConfig,
    losses::{AllGather, NegativeKeys, info_nce},
    model::Model,
    task::MocoConfig,
};

/// Encoder and head, their momentum encoder, and the queue.
#[derive(Debug)]
pub struct Moco {
    model: Model,
    memory: KeyMemory,
    shuffle: Option<Shuffle>,
    temperature: f64,
    symmetric: bool,
}

impl Moco {
    /// The initial keys are drawn from `seed`.
    pub fn new(
        model: Model,
        encoder: MomentumEncoder,
        config: &MocoConfig,
        temperature: f64,
        seed: u64,
    ) -> Self {
        let memory = KeyMemory::new(encoder, config, model.embedding_dim(), seed);
        Self { model, memory, shuffle: None, temperature, symmetric: config.symmetric }
    }

    /// Permutes the images, up to `images` in a step, in the momentum encoder (shuffling BN). It has an effect with several
    /// groups of batch norm.
    #[must_use]
    pub fn shuffled(mut self, images: usize, seed: u64) -> Self {
        self.shuffle = Some(Shuffle::new(images, seed, self.model.params.device()));
        self
    }

    /// Sum over `queries` and the number of right ones.
    fn contrast(&self, queries: &Tensor, keys: &Tensor) -> [Tensor; 2] {
        let negatives = [NegativeKeys { keys: self.memory.queue.keys(), excluded: &[] }];
        let output = info_nce(queries, &keys_of(keys), &negatives, self.temperature);
        [output.loss, output.right]
    }
}

impl Method for Moco {
    fn model(&self) -> &Model {
        &self.model
    }

    fn target(&self) -> Option<Target<'_>> {
        Some(Target { model: self.memory.encoder.model(), shuffle: self.shuffle.as_ref(), is_fixed: false })
    }

    fn branches(&self) -> Branches {
        if self.symmetric { Branches::Symmetric } else { Branches::Asymmetric }
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: true, has_pairs: true }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        describe_projection(&config.head)
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        let keys = config.moco.queue;
        let directions = if self.symmetric { ", sum of both directions" } else { "" };
        format!(
            "InfoNCE of the positive against {keys} keys{directions}, temperature {}, momentum {}; at chance {:.3}",
            self.temperature,
            config.moco.momentum,
            self.chance_loss(config.train.batch)
        )
    }

    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let (queries, keys) = self.branches().split(z);
        let images = slice.batch_images as f64;
        if !self.symmetric {
            let [loss, right] = self.contrast(&queries, &keys);
            return LossOutput { loss: loss / images, accuracy: right / images };
        }
        // The query of a view against the key of the other one.
        let own = z.size()[0] / 2;
        let halves = |rows: &Tensor| [rows.narrow(0, 0, own), rows.narrow(0, own, own)];
        let ([first, second], [first_keys, second_keys]) = (halves(&queries), halves(&keys));
        let [loss, right] = self.contrast(&first, &second_keys);
        let [other_loss, other_right] = self.contrast(&second, &first_keys);
        LossOutput { loss: (loss + other_loss) / images, accuracy: (right + other_right) / (2.0 * images) }
    }

    fn chance_loss(&self, _: usize) -> f64 {
        self.loss_scale() * (1.0 + self.memory.queue.keys().size()[0] as f64).ln()
    }

    fn loss_scale(&self) -> f64 {
        if self.symmetric { 2.0 } else { 1.0 }
    }

    fn positive_pairs(&self, z: &Tensor) -> Tensor {
        self.branches().positive_pairs(z)
    }

    fn before_step(&mut self, step: u64) {
        if let Some(shuffle) = &mut self.shuffle {
            shuffle.set_step(step);
        }
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
