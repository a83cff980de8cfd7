//! SimCLR (Chen et al. 2020, arXiv 2002.05709): a contrastive loss over two views of each image.

use tch::Tensor;

use super::{BatchSlice, LossOutput, Method, MethodTraits};
use crate::{
    RunConfig,
    head::HeadConfig,
    losses::{LossConfig, contrastive_loss_sharded},
    model::Model,
};

/// Encoder and projection head under a contrastive loss.
#[derive(Debug)]
pub struct SimClr {
    model: Model,
    loss: LossConfig,
}

impl SimClr {
    /// `model` ends in a projection head.
    pub fn new(model: Model, loss: LossConfig) -> Self {
        Self { model, loss }
    }
}

impl Method for SimClr {
    fn model(&self) -> &Model {
        &self.model
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: true, has_pairs: true }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        describe_projection(&config.head)
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        self.loss.describe(2 * config.train.batch)
    }

    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let output = contrastive_loss_sharded(z, &self.loss, slice.group);
        LossOutput { loss: output.loss, accuracy: output.accuracy }
    }

    fn chance_loss(&self, images: usize) -> f64 {
        self.loss.chance(2 * images)
    }

    fn loss_scale(&self) -> f64 {
        self.loss.reduction.factor()
    }
}

/// One line for the start of a run.
pub(super) fn describe_projection(head: &HeadConfig) -> String {
    format!("{:?}, {} layers, {} dimensions, norm {:?}", head.kind, head.layers, head.out, head.norm)
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use crate::losses::{LossConfig, Reduction};

    #[test]
    fn chance_loss_follows_the_reduction() {
        let chance = |reduction| LossConfig { reduction, ..LossConfig::default() }.chance(8);
        assert!((chance(Reduction::Paper) - 7f64.ln()).abs() < 1e-12);
        assert!((chance(Reduction::Official) - 2.0 * 7f64.ln()).abs() < 1e-12);
    }
}
