//! How a training step runs: whole ([`Eager`]), captured as a CUDA graph ([`CudaGraphExecutor`]), or in chunks with gradient caching
//! ([`GradCache`], [`ChunkSync`]). Executors are independent of the method, because the loss depends on the
//! embeddings only.

mod baton;
mod chunk_sync;
mod cuda_graph;
mod eager;
mod grad_cache;
mod pairing;
mod prefetch;

use tch::Tensor;

pub use self::{
    chunk_sync::ChunkSync,
    cuda_graph::{CudaGraphExecutor, LaunchedStep, UnreadStep, launch_step},
    eager::Eager,
    grad_cache::GradCache,
    prefetch::{DeviceBatch, DevicePrefetcher},
};
use crate::{
    TrainError,
    dist::{BatchShards, GradientBuckets, ProcessGroup, abort_group_on_error},
    encoder::{BatchNormScope, BatchStatistics, Mode},
    methods::{BatchSlice, LossOutput, Method},
    optim::{self, Optimizer},
};

/// Context of all steps of a run.
#[derive(Clone, Copy)]
pub struct StepContext<'a> {
    /// Modules and loss.
    pub method: &'a dyn Method,
    /// Batch norm in training mode.
    pub norm: NormConfig,
    /// Processes, each with a part of the batch.
    pub group: &'a ProcessGroup,
    /// All-reduce of the gradients, overlapped with the backward pass.
    pub gradients: &'a GradientBuckets,
    /// Seed of the run.
    pub seed: u64,
}

/// `train.batch_norm`, `train.batch_norm_momentum`, `train.batch_norm_groups`.
#[derive(Debug, Clone, Copy)]
pub struct NormConfig {
    /// Rows over which statistics are computed.
    pub scope: BatchNormScope,
    /// Weight of a batch in the running statistics.
    pub momentum: f64,
    /// `train.batch_norm_groups`, for batches that pass through the encoder at once.
    pub groups: usize,
}

/// Position and learning rate of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepId {
    /// From 0.
    pub step: u64,
    /// Learning rate by the schedule.
    pub lr: f64,
}

/// Result of a step.
#[derive(Debug)]
pub struct StepOutput {
    /// Images of all ranks that are in the loss.
    pub ids: Vec<usize>,
    /// Of the whole batch.
    pub loss: f64,
    /// Of the whole batch, in `[0, 1]`.
    pub accuracy: f64,
    /// L2 norm of the gradient of all parameters; NaN if the loss was not finite.
    pub gradient_norm: f64,
    /// h `[rows, F]` of this rank's views, in any order, detached.
    pub h: Tensor,
    /// z `[2m, D]` of this rank's images, or logits `[m, K]`, detached.
    pub z: Tensor,
    /// Number of images by rank.
    pub counts: Vec<usize>,
}

impl StepOutput {
    /// Name and value of the first quantity that is NaN or infinite.
    pub fn non_finite(&self) -> Option<(&'static str, f64)> {
        let values = [("the loss", self.loss), ("the gradient's norm", self.gradient_norm)];
        values.into_iter().find(|(_, value)| !value.is_finite())
    }
}

/// A step after its launch.
#[derive(Debug)]
pub enum Launched {
    /// The host has its scalars.
    Read(StepOutput),
    /// The device may still be running it.
    Unread(UnreadStep),
}

impl Launched {
    /// See [`UnreadStep::wait`].
    ///
    /// # Errors
    /// CUDA errors.
    pub fn wait(self) -> Result<StepOutput, TrainError> {
        match self {
            Self::Read(output) => Ok(output),
            Self::Unread(step) => step.wait(),
        }
    }

    /// z of this rank and the number of images by rank, for work on the device; `None` after a step known to be non-finite.
    pub fn embeddings(&self) -> Option<(&Tensor, Vec<usize>)> {
        match self {
            Self::Read(output) => output.non_finite().is_none().then(|| (&output.z, output.counts.clone())),
            Self::Unread(step) => Some((&step.z, step.counts.clone())),
        }
    }
}

/// Batches of a run: one per step, or one per chunk and pass.
pub type DeviceBatches<'a> = dyn Iterator<Item = Result<DeviceBatch, TrainError>> + 'a;

/// Runs training steps.
pub trait Executor {
    /// Loss and gradients of the next batch. The gradients are those of the whole batch on every rank.
    ///
    /// # Errors
    /// Batches that cannot be read (on all ranks alike); errors of libtorch, which end a run of several processes.
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError>;

    /// [`Executor::gradients`] and the update, without waiting for a device. A non-finite loss or gradient leaves the weights
    /// unchanged.
    ///
    /// # Errors
    /// See [`Executor::gradients`].
    fn launch(
        &mut self,
        context: &StepContext<'_>,
        optimizer: &mut Optimizer,
        id: StepId,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<Launched, TrainError> {
        let output = self.gradients(context, id.step, batches)?;
        context.update(optimizer, &output, id.lr)?;
        Ok(Launched::Read(output))
    }

    /// [`Executor::launch`], and waits for the step.
    ///
    /// # Errors
    /// See [`Executor::gradients`].
    fn step(
        &mut self,
        context: &StepContext<'_>,
        optimizer: &mut Optimizer,
        id: StepId,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError> {
        self.launch(context, optimizer, id, batches)?.wait()
    }

    /// Returns and clears a message for the user.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}

/// The executor of a configuration: chunks of the batch (with views read in `passes` passes) or the whole batch, captured as a
/// CUDA graph if `cuda_graph` is set and the step supports it.
pub fn executor(
    context: &StepContext<'_>,
    chunk_passes: Option<usize>,
    cuda_graph: bool,
) -> Box<dyn Executor> {
    match chunk_passes {
        Some(_) if context.norm.scope == BatchNormScope::Global => Box::new(ChunkSync),
        Some(passes) => Box::new(GradCache { passes }),
        None if cuda_graph && CudaGraphExecutor::is_supported(context) => {
            Box::new(CudaGraphExecutor::default())
        }
        None => Box::new(Eager),
    }
}

impl StepContext<'_> {
    /// Training mode for a batch that passes through the encoder at once.
    pub fn train_mode(&self) -> Mode {
        let global = self.norm.scope == BatchNormScope::Global;
        let all_reduce = if global { self.group.norm_all_reduce() } else { None };
        let NormConfig { momentum, groups, .. } = self.norm;
        Mode::Train(BatchStatistics { all_reduce, momentum, groups })
    }

    /// Seeds libtorch's generator per (run, step, part of the batch), so that the dropout of a TorchScript module repeats in
    /// both passes of gradient caching and after a resume. Nothing else uses that generator.
    fn seed_module(&self, step: u64, part: u64) {
        if self.method.stages().is_none() {
            // An odd multiplier separates the seeds of different steps and parts.
            let stream = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(part);
            tch::manual_seed((self.seed ^ stream) as i64);
        }
    }

    /// Loss of this rank's `z` and the loss and accuracy summed over all ranks. `z` has the rows of `ids`.
    fn loss(&self, z: &Tensor, ids: &[usize], shards: &BatchShards<'_>) -> (Tensor, [f64; 2]) {
        let slice = BatchSlice { ids, batch_images: shards.images(), group: shards };
        let LossOutput { loss, accuracy } = self.method.objective(z, &slice);
        let sums = shards.sum([loss.double_value(&[]), accuracy.double_value(&[])]);
        (loss, sums)
    }

    /// Requires that the gradients have been summed over all ranks.
    fn gradient_norm(&self) -> Result<f64, TrainError> {
        self.or_abort(optim::gradient_norm(self.method.params()).map_err(TrainError::from))
    }

    /// Aborts the job if this rank fails while other ranks wait in a collective.
    fn or_abort<T>(&self, result: Result<T, TrainError>) -> Result<T, TrainError> {
        abort_group_on_error(self.group, result)
    }

    /// The update, if loss and gradient are finite.
    fn update(&self, optimizer: &mut Optimizer, output: &StepOutput, lr: f64) -> Result<(), TrainError> {
        if output.gradient_norm.is_finite() {
            self.or_abort(optimizer.step(self.method.params(), lr).map_err(TrainError::from))?;
        }
        self.average_statistics();
        Ok(())
    }

    /// Without SyncBN the ranks' running statistics are averaged, so that all ranks hold the same model.
    fn average_statistics(&self) {
        if self.norm.scope != BatchNormScope::Global && self.group.count() > 1 {
            for buffer in self.method.buffers().into_iter().filter(Tensor::is_floating_point) {
                self.group.average(&buffer);
            }
        }
    }
}
