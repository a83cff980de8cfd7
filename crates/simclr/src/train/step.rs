//! One update of Algorithm 1 (paper, section 2.1).

use simclr_data::Batch;
use tch::Tensor;

use super::agreed::abort_group_on_error;
use crate::{
    ModelError, TrainError,
    dist::{BatchShards, GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, BatchStatistics, Mode},
    model::Model,
    objective::{Objective, Value},
    optim::{self, Optimizer},
    views::upload,
};

/// What every step of a run is made with.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// f and g.
    pub model: &'a Model,
    /// What is minimised.
    pub objective: &'a Objective,
    /// Whose statistics batch norm takes.
    pub over: BatchNormScope,
    /// C and S of the views.
    pub shape: (usize, usize),
    /// The processes, each with its part of the batch.
    pub group: &'a ProcessGroup,
    /// Add up the gradients.
    pub buckets: &'a GradientBuckets,
}

/// What a step leaves behind.
#[derive(Debug)]
pub struct Stepped {
    /// The objective's value over the whole batch.
    pub loss: f64,
    /// The objective's accuracy, `[0, 1]`.
    pub accuracy: f64,
    /// Norm of the gradient of all parameters together; NaN where the loss already was no number.
    pub gradient_norm: f64,
    /// h of this rank's views, `[.., F]`, in any order, without graph.
    pub h: Tensor,
    /// z `[2m, D]` of this rank's images, or logits `[m, K]`, without graph.
    pub z: Tensor,
    /// Images of every rank.
    pub counts: Vec<usize>,
}

/// Loss and gradients of a batch in one pass: all views of this rank's part through f and g, objective, gradients, which are
/// then those of the whole batch on every rank. Returns the images of all ranks, too.
///
/// # Errors
/// See [`Model::forward`]; with several ranks they end the process.
///
/// # Shapes
/// `batch` holds `[2m, C, S, S]`, rows i and i + m being two views of one image; `[m, C, S, S]` with labels.
pub fn gradients(setting: &Setting<'_>, batch: &Batch) -> Result<(Vec<usize>, Stepped), TrainError> {
    let views = abort_group_on_error(setting.group, setting.views(batch).map_err(TrainError::from))?;
    gradients_of(setting, &batch.ids, &views)
}

/// [`gradients`] of views that are on the device already; `own` are their images.
fn gradients_of(
    setting: &Setting<'_>,
    own: &[usize],
    views: &Tensor,
) -> Result<(Vec<usize>, Stepped), TrainError> {
    let Setting { model, objective, group, buckets, .. } = *setting;
    let ids = group.all_gather_usize(own);
    let shards = BatchShards::new(group, ids.iter().map(Vec::len).collect());
    let (h, z) =
        abort_group_on_error(group, model.forward(views, &setting.mode()).map_err(TrainError::from))?;
    let Value { loss, accuracy } = objective.of(&z, own, &shards, shards.images());
    let [value, accuracy] = shards.sum([loss.double_value(&[]), accuracy.double_value(&[])]);
    let mut gradient_norm = f64::NAN;
    if value.is_finite() {
        buckets.arm();
        loss.backward();
        buckets.finish();
        let norm = optim::gradient_norm(&model.params).map_err(TrainError::from);
        gradient_norm = abort_group_on_error(group, norm)?;
    }
    let (h, z, counts) = (h.detach(), z.detach(), shards.counts().to_vec());
    Ok((ids.concat(), Stepped { loss: value, accuracy, gradient_norm, h, z, counts }))
}

/// [`gradients`] and the update.
///
/// A loss or a gradient that is not a number leaves the weights as they were; the caller sees it in
/// [`Stepped::non_finite`].
///
/// # Errors
/// See [`gradients`].
pub fn train_step(
    setting: &Setting<'_>,
    optimizer: &mut Optimizer,
    batch: &Batch,
    lr: f64,
) -> Result<(Vec<usize>, Stepped), TrainError> {
    let (ids, done) = gradients(setting, batch)?;
    setting.update(optimizer, &done, lr)?;
    Ok((ids, done))
}

/// [`train_step`] of views that are on the device already, and their images.
///
/// # Errors
/// See [`gradients`].
pub fn train_step_of(
    setting: &Setting<'_>,
    optimizer: &mut Optimizer,
    (own, views): (&[usize], &Tensor),
    lr: f64,
) -> Result<(Vec<usize>, Stepped), TrainError> {
    let (ids, done) = gradients_of(setting, own, views)?;
    setting.update(optimizer, &done, lr)?;
    Ok((ids, done))
}

/// Makes what a TorchScript module draws (dropout) a function of the seed of the run, the step and the part of its batch, so
/// that a resumed run draws what an uninterrupted one does. Nothing else uses libtorch's generator.
pub(super) fn seed_module(model: &Model, seed: u64, step: u64, part: u64) {
    if model.stages().is_none() {
        // An odd multiplier keeps the seeds of different steps and parts apart.
        let number = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(part);
        tch::manual_seed((seed ^ number) as i64);
    }
}

impl Setting<'_> {
    /// Training mode of a batch that goes through in one pass.
    pub(super) fn mode(&self) -> Mode {
        let exchange = if self.over == BatchNormScope::Global { self.group.norm_all_reduce() } else { None };
        Mode::Train(BatchStatistics { exchange, momentum: self.model.norm_momentum })
    }

    /// The views of `batch` as a tensor `[rows, C, S, S]`.
    ///
    /// # Errors
    /// No memory for them.
    pub fn views(&self, batch: &Batch) -> Result<Tensor, ModelError> {
        upload(batch, self.shape, self.model.params.device())?.views()
    }

    /// The update, where loss and gradient are numbers. Where every rank has batch-norm statistics of its own, the running
    /// ones become their mean, so that the model is one and the same everywhere.
    ///
    /// # Errors
    /// See [`Optimizer::step`].
    pub fn update(&self, optimizer: &mut Optimizer, done: &Stepped, lr: f64) -> Result<(), TrainError> {
        if done.gradient_norm.is_finite() {
            let updated = optimizer.step(&self.model.params, lr).map_err(TrainError::from);
            abort_group_on_error(self.group, updated)?;
        }
        if self.over != BatchNormScope::Global && self.group.count() > 1 {
            let buffers = self.model.params.buffers().iter().map(|(_, buffer)| buffer);
            buffers.filter(|buffer| buffer.is_floating_point()).for_each(|buffer| self.group.average(buffer));
        }
        Ok(())
    }
}

impl Stepped {
    /// What is not a number, and its value.
    pub fn non_finite(&self) -> Option<(&'static str, f64)> {
        let figures = [("the loss", self.loss), ("the gradient's norm", self.gradient_norm)];
        figures.into_iter().find(|(_, value)| !value.is_finite())
    }
}
