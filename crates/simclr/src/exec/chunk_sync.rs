//! Gradient caching with SyncBN over the chunks: all chunks synchronise at every batch norm, forward and backward
//! ([`super::baton`]), so loss and gradient are those of the whole batch in one pass, up to rounding. The inputs of the encoder's
//! stages are kept and one stage at a time is recomputed with a graph (gradient checkpointing), so memory grows with the batch.

use std::sync::Arc;

use tch::Tensor;

use super::{
    DeviceBatch, DeviceBatches, Executor, StepContext, StepOutput,
    baton::run_in_turns,
    grad_cache::{CachedLoss, backward_from},
    pairing::EmbeddedChunk,
};
use crate::{
    ModelError, TrainError,
    dist::all_ok,
    encoder::{AllReduce, BatchStatistics, Mode},
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

/// The input of every stage, for one chunk.
type StageInputs = Vec<Tensor>;

/// The first pass, without an autograd graph.
fn embed(
    context: &StepContext<'_>,
    mut batches: Vec<DeviceBatch>,
) -> Result<(Vec<EmbeddedChunk>, Vec<StageInputs>), TrainError> {
    let views: Vec<_> = batches.iter_mut().map(DeviceBatch::take_views).collect::<Result<_, _>>()?;
    let batch_momentum = context.norm.momentum;
    let outputs = for_chunks(context, views, |index, stages, views, all_reduce| {
        // Chunks share the running statistics, so only one updates them.
        let momentum = if index == 0 { batch_momentum } else { 0.0 };
        let mode = Mode::Train(BatchStatistics { exchange: Some(all_reduce), momentum });
        let mut values = vec![views];
        for stage in 0..stages.count() {
            let next = tch::no_grad(|| stages.run(stage, &values[stage], &mode))?;
            values.push(next);
        }
        Ok(values)
    })?;
    let chunk = |(batch, mut values): (DeviceBatch, StageInputs)| {
        let z = values.pop()?;
        let h = values.last()?.shallow_clone();
        Some((EmbeddedChunk { batch, h, z }, values))
    };
    Ok(batches.into_iter().zip(outputs).filter_map(chunk).unzip())
}

/// The second pass, from the last stage to the first.
fn backward(
    context: &StepContext<'_>,
    inputs: Vec<StageInputs>,
    gradients: Vec<Tensor>,
) -> Result<(), TrainError> {
    let items: Vec<_> = inputs.into_iter().zip(gradients).collect();
    for_chunks(context, items, |_, stages, (mut inputs, mut gradient), all_reduce| {
        let mode = Mode::Train(BatchStatistics { exchange: Some(all_reduce), momentum: 0.0 });
        while let Some(x) = inputs.pop() {
            // The views need no gradient.
            let x = x.set_requires_grad(!inputs.is_empty());
            let y = stages.run(inputs.len(), &x, &mode)?;
            backward_from(&y, &gradient)?;
            gradient = x.grad();
        }
        Ok(())
    })?;
    Ok(())
}

/// Runs `work` for the item of every chunk, each with its own handles to the modules.
fn for_chunks<I: Send, O: Send>(
    context: &StepContext<'_>,
    items: Vec<I>,
    work: impl Fn(usize, &Stages, I, Arc<dyn AllReduce>) -> Result<O, ModelError> + Sync,
) -> Result<Vec<O>, TrainError> {
    let stages = || context.method.stages().expect("validated: TorchScript modules use chunk statistics");
    let items: Vec<_> = items.into_iter().map(|item| (stages(), item)).collect();
    let outer = context.group.norm_all_reduce();
    let outputs = run_in_turns(items, outer, |index, (stages, item), all_reduce| {
        work(index, &stages, item, all_reduce)
    })?;
    Ok(outputs.into_iter().collect::<Result<_, _>>()?)
}
