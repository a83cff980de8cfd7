//! Gradient caching with SyncBN over the chunks: all chunks synchronise at every batch norm, forward and backward
//! ([`super::baton`]), so loss and gradient are those of the whole batch in one pass, up to rounding. The inputs of the encoder's
//! stages are kept and one stage at a time is recomputed with a graph (gradient checkpointing), so memory grows with the batch.

use std::sync::Arc;

use tch::Tensor;

use super::{
    DeviceBatch, DeviceBatches, Executor, StepContext, StepOutput, baton::run_in_turns,
    grad_cache::CachedLoss, pairing::EmbeddedChunk,
};
use crate::{
    ModelError, TrainError,
    dist::all_ok,
    encoder::{AllReduce, BatchStatistics, Mode},
    methods::{Method, Target, backward_from, run_stages},
    model::Stages,
};

/// Chunks that share the batch-norm statistics of the whole batch.
#[derive(Debug, Clone, Copy)]
pub struct ChunkSync;

impl Executor for ChunkSync {
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError> {
        let chunks = all_ok(context.group, read_chunks(step, batches))?;
        let (chunks, inputs) = context.or_abort(embed(context, chunks))?;
        let loss = CachedLoss::new(context, &chunks);
        drop(chunks);
        loss.backward(context, |gradients| backward(context, inputs, gradients))
    }
}

fn read_chunks(step: u64, batches: &mut DeviceBatches<'_>) -> Result<Vec<DeviceBatch>, TrainError> {
    let mut chunks = vec![DeviceBatch::next_of(batches, step)?];
    while !chunks.last().is_some_and(|batch| batch.chunk.is_last()) {
        chunks.push(DeviceBatch::next_of(batches, step)?);
    }
    Ok(chunks)
}

/// The input of every stage of every pass of the trained network, for one chunk.
type StageInputs = Vec<Vec<Tensor>>;

/// The first pass, without an autograd graph.
fn embed(
    context: &StepContext<'_>,
    mut batches: Vec<DeviceBatch>,
) -> Result<(Vec<EmbeddedChunk>, Vec<StageInputs>), TrainError> {
    let views = |batch: &mut DeviceBatch| Ok((batch.take_views()?, batch.first_views()));
    let views: Vec<_> = batches.iter_mut().map(views).collect::<Result<_, TrainError>>()?;
    let (batch_momentum, branches) = (context.norm.momentum, context.method.branches());
    let outputs = for_chunks(context, views, |index, networks, (views, first), all_reduce| {
        // Chunks share the running statistics, so only one updates them.
        let momentum = if index == 0 { batch_momentum } else { 0.0 };
        let mode = synchronised(all_reduce, momentum);
        let rows = views.size()[0];
        let (mut inputs, mut hs, mut queries, mut keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for pass in branches.queries(first, rows) {
            let mut values = run_stages(&networks.online, (&views, pass), &mode)?;
            queries.extend(values.pop());
            hs.extend(values.last().map(Tensor::shallow_clone));
            inputs.push(values);
        }
        for (pass, target) in branches.keys(first, rows).into_iter().zip(networks.target.iter().cycle()) {
            let (stages, is_fixed) = target;
            keys.extend(run_stages(stages, (&views, pass), &Target::mode(*is_fixed, &mode))?.pop());
        }
        Ok((Tensor::cat(&hs, 0), branches.join(&queries, &keys), inputs))
    })?;
    let chunk = |(batch, (h, z, inputs))| (EmbeddedChunk { batch, h, z }, inputs);
    Ok(batches.into_iter().zip(outputs).map(chunk).unzip())
}

/// The second pass, from the last stage to the first.
fn backward(
    context: &StepContext<'_>,
    inputs: Vec<StageInputs>,
    gradients: Vec<Tensor>,
) -> Result<(), TrainError> {
    let items: Vec<_> = inputs.into_iter().zip(gradients).collect();
    let branches = context.method.branches();
    for_chunks(context, items, |_, networks, (passes, gradient), all_reduce| {
        let mode = synchronised(all_reduce, 0.0);
        let (rows, first) = (gradient.size()[0], passes[0][0].size()[0]);
        for (mut inputs, pass) in passes.into_iter().zip(branches.queries(first, rows)) {
            let mut gradient = branches.query_gradient(&gradient, pass);
            while let Some(x) = inputs.pop() {
                // The views need no gradient.
                let x = x.set_requires_grad(!inputs.is_empty());
                let y = networks.online.run(inputs.len(), &x, &mode)?;
                backward_from(&y, &gradient)?;
                gradient = x.grad();
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Statistics of all chunks.
fn synchronised(all_reduce: Arc<dyn AllReduce>, momentum: f64) -> Mode {
    Mode::Train(BatchStatistics { all_reduce: Some(all_reduce), momentum, groups: 1 })
}

/// Handles to the modules of a method, for one thread.
struct Networks {
    online: Stages,
    /// Of the momentum encoder or teacher, and whether it is fixed.
    target: Option<(Stages, bool)>,
}

impl Networks {
    fn of(method: &dyn Method) -> Self {
        let expected = "validated: TorchScript modules use chunk statistics";
        let target = method.target();
        let target = target.map(|target| (target.model.stages().expect(expected), target.is_fixed));
        Self { online: method.stages().expect(expected), target }
    }
}

/// Runs `work` for the item of every chunk, each with its own handles to the modules.
fn for_chunks<I: Send, O: Send>(
    context: &StepContext<'_>,
    items: Vec<I>,
    work: impl Fn(usize, &Networks, I, Arc<dyn AllReduce>) -> Result<O, ModelError> + Sync,
) -> Result<Vec<O>, TrainError> {
    let items: Vec<_> = items.into_iter().map(|item| (Networks::of(context.method), item)).collect();
    let outer = context.group.norm_all_reduce();
    let outputs = run_in_turns(items, outer, |index, (networks, item), all_reduce| {
        work(index, &networks, item, all_reduce)
    })?;
    Ok(outputs.into_iter().collect::<Result<_, _>>()?)
}
