//! A step captured as a CUDA graph and replayed per batch: one launch in place of a thousand, without host-device
//! synchronisation in between. Only the views and the learning rate change; both have fixed addresses.

use std::collections::BTreeMap;

use simclr_shim::{Download, ShimError, stream::CudaGraph};
use tch::{Kind, Tensor};

use super::{DeviceBatch, DeviceBatches, Eager, Executor, Launched, StepContext, StepId, StepOutput};
use crate::{
    TrainError,
    dist::all_ok,
    losses::SingleProcess,
    methods::{BatchSlice, LossOutput},
    optim::{self, Optimizer},
};

/// Eager steps before the capture, in which cuDNN selects algorithms and kernels are loaded.
const WARM_UP_STEPS: usize = 3;

/// Captures the step after three eager ones, for every side S of the views, and replays it. Other batch sizes run eagerly.
#[derive(Debug, Default)]
pub struct CudaGraphExecutor {
    by_side: BTreeMap<i64, State>,
    notice: Option<String>,
    replays: usize,
}

#[derive(Debug)]
enum State {
    /// Eager steps so far.
    WarmUp(usize),
    Captured(Captured),
    /// The capture failed; all further steps are eager.
    Failed,
}

impl Default for State {
    fn default() -> Self {
        Self::WarmUp(0)
    }
}

#[derive(Debug)]
struct Captured {
    graph: CudaGraph,
    /// Input of the graph, `[2N, C, S, S]`.
    views: Tensor,
    output: LaunchedStep,
}

/// Outputs of a step on the device.
#[derive(Debug)]
pub struct LaunchedStep {
    /// Loss, accuracy, gradient norm: `[3]`, f64.
    pub scalars: Tensor,
    /// See [`StepOutput`].
    pub h: Tensor,
    /// See [`StepOutput`].
    pub z: Tensor,
}

impl CudaGraphExecutor {
    /// Whether the step of `context` can be captured: one process on a GPU with the optimizer's kernels, a loss without host
    /// data, and no TorchScript module.
    pub fn is_supported(context: &StepContext<'_>) -> bool {
        let StepContext { method, group, .. } = *context;
        let params = method.params();
        let on_gpu = params.device().is_cuda() && optim::kernels_available(params);
        on_gpu && method.stages().is_some() && method.traits().graph_capturable && group.count() == 1
    }

    /// Number of steps that replayed the graph.
    pub fn replays(&self) -> usize {
        self.replays
    }

    /// Whether there is a graph for views of this shape; captures it after the warm-up.
    fn is_captured(&mut self, context: &StepContext<'_>, optimizer: &Optimizer, views: &Tensor) -> bool {
        let state = self.by_side.entry(side(views)).or_default();
        if let State::WarmUp(steps) = state {
            *steps += 1;
            if *steps <= WARM_UP_STEPS {
                return false;
            }
            self.capture(context, optimizer, views);
        }
        let state = self.by_side.get(&side(views));
        matches!(state, Some(State::Captured(captured)) if captured.views.size() == views.size())
    }

    fn capture(&mut self, context: &StepContext<'_>, optimizer: &Optimizer, views: &Tensor) {
        let views = views.copy();
        let side = side(&views);
        let state = match CudaGraph::capture(|| launch_step(context, optimizer, &views)) {
            Ok((graph, output)) => {
                self.notice = Some("the step is captured as a CUDA graph".into());
                State::Captured(Captured { graph, views, output })
            }
            Err(error) => {
                self.notice = Some(format!("the step runs without a CUDA graph, which is slower: {error}"));
                // Gradients of a failed capture hold no values.
                let params = context.method.params().params();
                for param in params {
                    drop(simclr_shim::drop_gradient(&param.tensor));
                }
                State::Failed
            }
        };
        self.by_side.insert(side, state);
    }
}

/// S of views `[2N, C, S, S]`.
fn side(views: &Tensor) -> i64 {
    views.size()[3]
}

impl Executor for CudaGraphExecutor {
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError> {
        Eager.gradients(context, step, batches)
    }

    fn launch(
        &mut self,
        context: &StepContext<'_>,
        optimizer: &mut Optimizer,
        id: StepId,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<Launched, TrainError> {
        let mut batch = all_ok(context.group, DeviceBatch::next_of(batches, id.step))?;
        let views = batch.take_views()?;
        if !self.is_captured(context, optimizer, &views) {
            batch.views = views.into();
            return Eager.launch(context, optimizer, id, &mut std::iter::once(Ok(batch)));
        }
        let Some(State::Captured(captured)) = self.by_side.get(&side(&views)) else {
            unreachable!("checked by is_captured")
        };
        captured.views.shallow_clone().copy_(&views);
        optimizer.set_step_scalars(context.method.params(), id.lr);
        captured.graph.replay()?;
        self.replays += 1;
        Ok(Launched::Unread(captured.output.download(batch.ids)?))
    }

    fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }
}

/// Launches a whole step of one process: forward, loss, backward, and the update with the scalars that were set before if loss
/// and gradient are finite. Nothing synchronises with the host.
///
/// # Errors
/// libtorch errors of any operation.
pub fn launch_step(
    context: &StepContext<'_>,
    optimizer: &Optimizer,
    views: &Tensor,
) -> Result<LaunchedStep, TrainError> {
    let StepContext { method, .. } = *context;
    let batch_images = views.size()[0] as usize / 2;
    let (h, z) = method.embed(views, batch_images as i64, &context.train_mode())?;
    let slice = BatchSlice { ids: &[], batch_images, group: &SingleProcess };
    let LossOutput { loss, accuracy } = method.objective(&z, &slice);
    loss.f_backward()?;
    let norm = optim::gradient_norm_on_gpu(method.params())?;
    let loss = loss.detach().to_kind(Kind::Double);
    // NaN if the loss or the gradient norm is NaN or infinite.
    let guard = &loss * 0.0 + &norm;
    optimizer.launch_step(method.params(), Some(&guard))?;
    let scalars = Tensor::stack(&[loss, accuracy.to_kind(Kind::Double), norm], 0);
    Ok(LaunchedStep { scalars, h: h.detach(), z: z.detach() })
}

impl LaunchedStep {
    /// Launches the copy of the scalars to the host.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn download(&self, ids: Vec<usize>) -> Result<UnreadStep, TrainError> {
        let [h, z] = [&self.h, &self.z].map(Tensor::shallow_clone);
        Ok(UnreadStep { ids, scalars: Download::start(&self.scalars)?, h, z })
    }
}

/// A launched step, while its scalars are copied to the host.
#[derive(Debug)]
pub struct UnreadStep {
    pub(super) ids: Vec<usize>,
    scalars: Download,
    h: Tensor,
    pub(super) z: Tensor,
}

impl UnreadStep {
    /// Waits for the step. If it is a replay and the graph has been replayed since, `h` and `z` are those of the newest replay.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn wait(self) -> Result<StepOutput, TrainError> {
        let scalars = Vec::<f64>::try_from(&self.scalars.wait()?).map_err(ShimError::from)?;
        let counts = vec![self.ids.len()];
        Ok(StepOutput {
            ids: self.ids,
            loss: scalars[0],
            accuracy: scalars[1],
            gradient_norm: scalars[2],
            h: self.h,
            z: self.z,
            counts,
        })
    }
}
