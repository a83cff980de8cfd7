//! Training methods, one file each. A method defines the modules, the loss on the embeddings and the state beyond the
//! weights; [`crate::exec`] runs the step of any method, because the loss depends on the embeddings only.

mod branches;
mod classifier;
mod distillation;
mod moco;
mod moco_v3;
mod momentum;
mod queue;
mod shuffle;
mod simclr;
mod simclr_momentum;

use std::fmt::Debug;

use tch::Tensor;

use crate::{
    CheckpointError, ModelError, RunConfig,
    encoder::Mode,
    losses::AllGather,
    model::{Model, Stages},
    params::Params,
};

pub use branches::{Branches, Pass, Target, backward_from, run_stages};
pub use classifier::Classifier;
pub use distillation::Distillation;
pub use moco::Moco;
pub use moco_v3::MocoV3;
pub use momentum::{Momentum, MomentumEncoder};
pub use queue::Queue;
pub use shuffle::Shuffle;
pub use simclr::SimClr;
pub use simclr_momentum::SimClrMomentum;

/// The rows of a batch that this process holds.
pub struct BatchSlice<'a> {
    /// Data set indices of this process's images. Empty during CUDA graph capture, which requires that the loss does not use them.
    pub ids: &'a [usize],
    /// N, over all processes.
    pub batch_images: usize,
    /// All-gather over the processes that share the batch.
    pub group: &'a dyn AllGather,
}

/// Loss and accuracy of a batch slice; the values of all processes add up to those of the batch.
#[derive(Debug)]
pub struct LossOutput {
    /// `[]`, f32, with gradient.
    pub loss: Tensor,
    /// `[]`, in `[0, 1]`, without gradient.
    pub accuracy: Tensor,
}

/// Properties of a method that executors and reports rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodTraits {
    /// The loss reads nothing but `z`: no labels or other host data, so a step can be captured in a CUDA graph.
    pub graph_capturable: bool,
    /// `z` holds pairs of views, so alignment and uniformity are defined.
    pub has_pairs: bool,
}

/// A training method.
pub trait Method: Debug {
    /// Encoder and head that are trained; evaluation uses the encoder.
    fn model(&self) -> &Model;

    /// Trained parameters and buffers, as checkpoints name them.
    fn params(&self) -> &Params {
        &self.model().params
    }

    /// Constant during a run.
    fn traits(&self) -> MethodTraits;

    /// Description of the head in one line, for the start of a run.
    fn describe_head(&self, config: &RunConfig) -> String;

    /// Description of the loss and its value at chance in one line.
    fn describe_loss(&self, config: &RunConfig) -> String;

    /// The momentum encoder or teacher, which has no gradient.
    fn target(&self) -> Option<Target<'_>> {
        None
    }

    /// Which network encodes which views.
    fn branches(&self) -> Branches {
        Branches::Single
    }

    /// h `[., F]` and z `[rows, .]` of views `[rows, C, S, S]`, of which the first `first` rows are first views. The layout of z is
    /// that of [`Method::branches`]. Called per chunk under gradient caching.
    ///
    /// # Errors
    /// See [`Model::forward`].
    fn embed(&self, views: &Tensor, first: i64, mode: &Mode) -> Result<(Tensor, Tensor), ModelError> {
        branches::embed(self.branches(), (self.model(), self.target()), (views, first), mode)
    }

    /// The second pass of gradient caching: encodes `views` again and propagates `gradient` at z back through the trained model.
    ///
    /// # Errors
    /// See [`Model::forward`].
    fn backward(&self, views: &Tensor, first: i64, mode: &Mode, gradient: &Tensor) -> Result<(), ModelError> {
        branches::backward(self.branches(), self.model(), (views, first), mode, gradient)
    }

    /// The trained model as a sequence of stages that another thread can run; `None` if the encoder is a TorchScript module.
    fn stages(&self) -> Option<Stages> {
        self.model().stages()
    }

    /// Running statistics of all networks, which processes average if batch norm is not synchronised.
    fn buffers(&self) -> Vec<Tensor> {
        let target = self.target().filter(|target| !target.is_fixed);
        let models = [Some(self.model()), target.map(|target| target.model)];
        let buffers = models.into_iter().flatten().flat_map(|model| model.params.buffers());
        buffers.map(|(_, buffer)| buffer.shallow_clone()).collect()
    }

    /// Loss of this process's embeddings `z`: rows `i` and `i + m` are two views of one image, or one row per image.
    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput;

    /// Loss of a batch of `images` if all similarities, or all logits, were equal.
    fn chance_loss(&self, images: usize) -> f64;

    /// Ratio of the reported loss to the mean over anchors.
    fn loss_scale(&self) -> f64 {
        1.0
    }

    /// Rows `[2N, D]` that health metrics are computed from, i and i + N being a positive pair, from z of all processes.
    fn positive_pairs(&self, z: &Tensor) -> Tensor {
        z.shallow_clone()
    }

    /// Sets what depends on the step, such as a permutation. Under CUDA graph replay only this and [`Method::after_step`] run on the
    /// host, so tensors that the step reads are written in place.
    fn before_step(&mut self, step: u64) {
        let _ = step;
    }

    /// State that is updated after the optimizer, such as an EMA encoder or a queue. `z` of this process is detached; `group` gathers
    /// it over all of them.
    fn after_step(&mut self, step: u64, z: &Tensor, group: &dyn AllGather) {
        let _ = (step, z, group);
    }

    /// State beyond parameters and buffers that a checkpoint holds.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Restores [`Method::state`]; `get` returns a tensor by name and shape.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    fn load_state(
        &mut self,
        get: &dyn Fn(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let _ = get;
        Ok(())
    }
}
