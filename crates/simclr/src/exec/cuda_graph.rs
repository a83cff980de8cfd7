//! A step captured as a CUDA graph and replayed per batch: one launch in place of a thousand, without host-device
//! synchronisation in between. Only the views and the learning rate change; both have fixed addresses.

use std::collections::BTreeMap;

use simclr_shim::{Download, ShimError, stream::CudaGraph};
use tch::{Kind, Tensor};

use super::{DeviceBatch, DeviceBatches, Eager, Executor, Launched, StepContext, StepId, StepOutput};
use crate::{
    TrainError,
    dist::{BatchShards, all_ok},
    methods::{BatchSlice, LossOutput},
    optim::{self, Optimizer},
};

/// Eager steps before the capture, in which cuDNN selects algorithms and kernels are loaded.
const WARM_UP_STEPS: usize = 3;

/// Captures the step after three eager ones, for every side S of the views, and replays it. Other batch sizes run eagerly. All
/// decisions are the same on all ranks, because an eager and a captured step have different collectives.
#[derive(Debug, Default)]
pub struct CudaGraphExecutor {
    by_side: BTreeMap<i64, State>,
    notice: Option<String>,
    replays: usize,
}

#[derive(Debug)]
enum State {
    WarmUp(WarmUp),
    Captured(Captured),
    /// The capture failed; all further steps are eager.
    Failed,
}

impl Default for State {
    fn default() -> Self {
        Self::WarmUp(WarmUp::default())
    }
}

/// Eager steps so far, and the most images that one of them had.
#[derive(Debug, Default)]
struct WarmUp {
    steps: usize,
    most_images: usize,
}

impl WarmUp {
    /// Whether the step of a batch of `images` images is to be captured: not that of a batch with images that failed to decode, since a
    /// graph is for its own number of images.
    fn is_over(&mut self, images: usize) -> bool {
        self.steps += 1;
        self.most_images = self.most_images.max(images);
        self.steps > WARM_UP_STEPS && images == self.most_images
    }
}

#[derive(Debug)]
struct Captured {
    graph: CudaGraph,
    /// Input of the graph, `[2N, C, S, S]`.
    views: Tensor,
    /// Number of images by rank.
    counts: Vec<usize>,
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
    /// Whether the step of `context` can be captured on every rank: on GPUs with the optimizer's kernels, connected by NCCL if there are
    /// several, a loss without host data, and no TorchScript module. Collective.
    pub fn is_supported(context: &StepContext<'_>) -> bool {
        let StepContext { method, group, .. } = *context;
        let params = method.params();
        let on_gpu = params.device().is_cuda() && optim::kernels_available(params);
        let connected = group.count() == 1 || group.has_nccl();
        !group.any(!(on_gpu && connected && method.stages().is_some() && method.traits().graph_capturable))
    }

    /// Number of steps that replayed the graph.
    pub fn replays(&self) -> usize {
        self.replays
    }

    /// Whether there is a graph for views of this side and `counts` images by rank; captures it after the warm-up.
    fn is_captured(
        &mut self,
        context: &StepContext<'_>,
        optimizer: &Optimizer,
        (views, counts): (&Tensor, &[usize]),
    ) -> bool {
        if let State::WarmUp(warm_up) = self.by_side.entry(side(views)).or_default() {
            if !warm_up.is_over(counts.iter().sum()) {
                return false;
            }
            self.capture(context, optimizer, (views, counts));
        }
        let state = self.by_side.get(&side(views));
        matches!(state, Some(State::Captured(captured)) if captured.counts == counts)
    }

    fn capture(
        &mut self,
        context: &StepContext<'_>,
        optimizer: &Optimizer,
        (views, counts): (&Tensor, &[usize]),
    ) {
        let views = views.copy();
        let side = side(&views);
        let captured = CudaGraph::capture(|| launch_step(context, optimizer, (&views, counts)));
        let state = match all_ok(context.group, captured) {
            Ok((graph, output)) => {
                self.notice = Some("the step is captured as a CUDA graph".into());
                State::Captured(Captured { graph, views, counts: counts.to_vec(), output })
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
        let views = context.or_abort(batch.take_views())?;
        let ids = context.group.all_gather_usize(&batch.ids);
        let counts: Vec<usize> = ids.iter().map(Vec::len).collect();
        if !self.is_captured(context, optimizer, (&views, &counts)) {
            batch.views = views.into();
            return Eager.launch(context, optimizer, id, &mut std::iter::once(Ok(batch)));
        }
        let Some(State::Captured(captured)) = self.by_side.get(&side(&views)) else {
            unreachable!("checked by is_captured")
        };
        captured.views.shallow_clone().copy_(&views);
        let scalars = optimizer.set_step_scalars(context.method.params(), id.lr);
        context.or_abort(scalars.map_err(TrainError::from))?;
        context.or_abort(captured.graph.replay().map_err(TrainError::from))?;
        self.replays += 1;
        Ok(Launched::Unread(captured.output.download(ids.concat(), counts)?))
    }

    fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }
}

/// Launches a whole step of a batch with `counts` images by rank: forward, loss, backward, and the update with the scalars that were set
/// before if loss and gradient are finite. Nothing synchronises with the host if collectives are those of NCCL.
///
/// # Errors
/// libtorch errors of any operation.
pub fn launch_step(
    context: &StepContext<'_>,
    optimizer: &Optimizer,
    (views, counts): (&Tensor, &[usize]),
) -> Result<LaunchedStep, TrainError> {
    let StepContext { method, group, gradients, .. } = *context;
    let shards = BatchShards::new(group, counts.to_vec());
    let (h, z) = method.embed(views, counts[group.rank()] as i64, &context.train_mode())?;
    let slice = BatchSlice { ids: &[], batch_images: shards.images(), group: &shards };
    let LossOutput { loss, accuracy } = method.objective(&z, &slice);
    gradients.arm();
    loss.f_backward()?;
    gradients.finish();
    let norm = optim::gradient_norm_on_gpu(method.params())?;
    let shares = Tensor::stack(&[loss.detach(), accuracy].map(|share| share.to_kind(Kind::Float)), 0);
    let sums = if group.count() > 1 { group.all_reduce(&shares) } else { shares }.to_kind(Kind::Double);
    // NaN if the loss or the gradient norm is NaN or infinite.
    let guard = sums.get(0) * 0.0 + &norm;
    optimizer.launch_step(method.params(), Some(&guard))?;
    context.average_statistics();
    let scalars = Tensor::cat(&[sums, norm.view([1])], 0);
    Ok(LaunchedStep { scalars, h: h.detach(), z: z.detach() })
}

impl LaunchedStep {
    /// Launches the copy of the scalars to the host; `ids` are the images of all ranks, `counts` their number by rank.
    ///
    /// # Errors
    /// CUDA errors.
    pub fn download(&self, ids: Vec<usize>, counts: Vec<usize>) -> Result<UnreadStep, TrainError> {
        let [h, z] = [&self.h, &self.z].map(Tensor::shallow_clone);
        Ok(UnreadStep { ids, counts, scalars: Download::start(&self.scalars)?, h, z })
    }
}

/// A launched step, while its scalars are copied to the host.
#[derive(Debug)]
pub struct UnreadStep {
    ids: Vec<usize>,
    pub(super) counts: Vec<usize>,
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
        Ok(StepOutput {
            ids: self.ids,
            loss: scalars[0],
            accuracy: scalars[1],
            gradient_norm: scalars[2],
            h: self.h,
            z: self.z,
            counts: self.counts,
        })
    }
}

#[cfg(test)]
mod tests {
    use simclr_shim::{
        gpu::{Order, emulated},
        operations,
    };
    use tch::Device;

    use super::*;
    use crate::{
        data::{Batch, Chunk, rng::Key},
        device::Precision,
        dist::{
            GradientBuckets, ProcessGroup,
            threads::{on_ranks, on_ranks_with_nccl},
        },
        encoder::{BatchNormScope, MOMENTUM},
        exec::NormConfig,
        methods::{Method as _, SimClr},
        model::Model,
    };

    const IMAGES: usize = 6;
    const SIZE: usize = 8;

    #[test]
    fn batches_with_failed_images_are_not_captured() {
        let mut warm_up = WarmUp::default();
        let over = [6, 5, 6, 5, 6, 4].map(|images| warm_up.is_over(images));
        assert_eq!(over, [false, false, false, false, true, false]);
    }

    /// The images of a rank out of a batch of [`IMAGES`].
    fn batch(step: u64, images: std::ops::Range<usize>) -> Batch {
        let pixels = |view: u64, image: usize| {
            let key = Key { seed: 9, epoch: step, image: image as u64, view };
            key.stream().normals(3 * SIZE * SIZE).into_iter().map(|x| 0.5 + 0.2 * x).collect::<Vec<_>>()
        };
        let views = (0..2).flat_map(|view| images.clone().flat_map(move |image| pixels(view, image)));
        let views: Vec<f32> = views.collect();
        let ids: Vec<usize> = images.clone().collect();
        let second_view_ids = ids.clone();
        Batch {
            step,
            epoch: 0,
            chunk: Chunk::WHOLE,
            ids,
            second_view_ids,
            views: views.into(),
            failed: Vec::new(),
        }
    }

    /// Loss, accuracy and gradient norm of three steps, and the state after them.
    type Outcome = (Vec<[f64; 3]>, Vec<Tensor>);

    fn train(group: &ProcessGroup, scope: BatchNormScope, launched: bool) -> Outcome {
        let set = ["encoder.name=conv-c3", "encoder.width=0.25", "head.out=8", "loss.temperature=0.5"];
        let config = crate::RunConfig::load(None, &set.map(str::to_owned)).unwrap();
        let shape = (3, SIZE as i64);
        let model = Model::new(&config.encoder, &config.head, shape, 1, Device::Cpu, Precision::F32).unwrap();
        let method = SimClr::new(model, config.loss.clone());
        let gradients = GradientBuckets::new(method.params(), group);
        let mut optimizer = Optimizer::new(&config.optim, method.params());
        let norm = NormConfig { scope, momentum: MOMENTUM, groups: 1 };
        let context = StepContext { method: &method, norm, group, gradients: &gradients, seed: 0 };
        let counts = if group.count() == 1 { vec![IMAGES] } else { vec![3, 2, 1] };
        let first = counts[..group.rank()].iter().sum();
        let own = first..first + counts[group.rank()];
        let ids = (0..IMAGES).collect::<Vec<_>>();
        let mut scalars = Vec::new();
        for step in 0..3 {
            let batch = DeviceBatch::on_host(batch(step, own.clone()), 3, Device::Cpu);
            let output = if launched {
                optimizer.set_step_scalars(method.params(), 0.1).unwrap();
                let batch = (&batch.views().unwrap(), &counts[..]);
                let launch = || launch_step(&context, &optimizer, batch).unwrap();
                // The profiler runs on one thread at a time.
                let profiled =
                    if group.is_first() { operations(launch).unwrap() } else { (launch(), Vec::new()) };
                assert!(profiled.1.iter().all(|name| name != "aten::item"), "{:?}", profiled.1);
                profiled.0.download(ids.clone(), counts.clone()).unwrap().wait().unwrap()
            } else {
                let id = StepId { step, lr: 0.1 };
                Eager.step(&context, &mut optimizer, id, &mut std::iter::once(Ok(batch))).unwrap()
            };
            assert_eq!((&output.ids, &output.counts), (&ids, &counts));
            scalars.push([output.loss, output.accuracy, output.gradient_norm]);
        }
        (scalars, method.params().named().map(|(_, tensor)| tensor.detach().copy()).collect())
    }

    fn assert_close(found: &Outcome, expected: &Outcome) {
        for (found, expected) in found.0.iter().flatten().zip(expected.0.iter().flatten()) {
            assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{found} {expected}");
        }
        for (found, expected) in found.1.iter().zip(&expected.1) {
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{difference}");
        }
    }

    /// Unequal shares of the batch, with SyncBN; NCCL is a mock.
    #[test]
    fn a_launched_step_of_three_ranks_is_that_of_one() {
        let scope = BatchNormScope::Global;
        let one = train(&ProcessGroup::alone(), scope, false);
        for by_nccl in [false, true] {
            let work = |group: &ProcessGroup| emulated(Order::Rising, || train(group, scope, true));
            let ranks = if by_nccl { on_ranks_with_nccl(3, work) } else { on_ranks(3, work) };
            assert!(ranks.iter().all(|rank| rank.0 == ranks[0].0 && rank.1 == ranks[0].1));
            assert_close(&ranks[0], &one);
        }
    }

    #[test]
    fn a_launched_step_of_three_ranks_equals_the_eager_one_without_sync_bn() {
        let scope = BatchNormScope::Chunk;
        let eager = on_ranks(3, |group| train(group, scope, false));
        let launched = on_ranks_with_nccl(3, |group| emulated(Order::Rising, || train(group, scope, true)));
        for (found, expected) in launched.iter().zip(&eager) {
            assert_close(found, expected);
        }
    }
}
