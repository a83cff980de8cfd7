//! SimCLR (Chen et al. 2020, arXiv 2002.05709): NT-Xent over two views of each image.

use tch::Tensor;

use super::{BatchSlice, LossOutput, Method, MethodTraits};
use crate::{
    RunConfig,
    head::HeadConfig,
    model::Model,
    nt_xent::{LossConfig, nt_xent_sharded},
};

/// Encoder and projection head under NT-Xent.
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
        let output = nt_xent_sharded(z, &self.loss, slice.group);
        LossOutput { loss: output.loss, accuracy: output.accuracy }
    }

    fn chance_loss(&self, images: usize) -> f64 {
        self.loss.chance(2 * images)
    }

    fn loss_scale(&self) -> f64 {
        self.loss.scale.factor()
    }
}

/// One line for the start of a run.
pub(super) fn describe_projection(head: &HeadConfig) -> String {
    format!("{:?}, {} layers, {} dimensions, norm {:?}", head.kind, head.layers, head.out, head.norm)
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use crate::nt_xent::{LossConfig, LossScale};

    #[test]
    fn chance_loss_follows_the_reduction() {
        let chance = |scale| LossConfig { scale, ..LossConfig::default() }.chance(8);
        assert!((chance(LossScale::Paper) - 7f64.ln()).abs() < 1e-12);
        assert!((chance(LossScale::Official) - 2.0 * 7f64.ln()).abs() < 1e-12);
    }
}
