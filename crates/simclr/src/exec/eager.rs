//! A step over a whole batch without a CUDA graph (Algorithm 1 of the paper).

use super::{DeviceBatch, DeviceBatches, Executor, StepContext, StepOutput};
use crate::{
    TrainError,
    dist::{BatchShards, all_ok},
};

/// Forward, loss, backward and update of all views in one pass.
#[derive(Debug, Clone, Copy)]
pub struct Eager;

impl Executor for Eager {
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError> {
        let mut batch = all_ok(context.group, DeviceBatch::next_of(batches, step))?;
        let StepContext { method, group, .. } = *context;
        context.seed_module(batch.step, group.rank() as u64);
        let views = context.or_abort(batch.take_views())?;
        let ids = group.all_gather_usize(&batch.ids);
        let shards = BatchShards::new(group, ids.iter().map(Vec::len).collect());
        let embedded =
            method.embed(&views, batch.first_views(), &context.train_mode()).map_err(TrainError::from);
        let (h, z) = context.or_abort(embedded)?;
        let (loss, [value, accuracy]) = context.loss(&z, &batch.ids, &shards);
        let mut gradient_norm = f64::NAN;
        if value.is_finite() {
            context.gradients.arm();
            loss.backward();
            context.gradients.finish();
            gradient_norm = context.gradient_norm()?;
        }
        Ok(StepOutput {
            ids: ids.concat(),
            loss: value,
            accuracy,
            gradient_norm,
            h: h.detach(),
            z: z.detach(),
            counts: shards.counts().to_vec(),
        })
    }
}
