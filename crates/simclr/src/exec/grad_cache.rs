//! A step in chunks by gradient caching (Gao et al. 2021, arXiv 2101.06983):
//!
//! 1. every chunk is embedded without a graph; only h and z are kept;
//! 2. the loss of the whole batch gives the gradient at z;
//! 3. every chunk is embedded again with a graph, and its gradient at z is propagated back; parameter gradients add up.
//!
//! Memory is that of one chunk and of z. Batch norm covers one chunk ([`BatchNormScope::Chunk`],
//! [`BatchNormScope::ChunkShuffled`](crate::encoder::BatchNormScope)), so the loss is that of the paper with batch norm per
//! device. [`super::ChunkSync`] gives the statistics of the whole batch.
//!
//! [`BatchNormScope::Chunk`]: crate::encoder::BatchNormScope

use simclr_data::Chunk;
use tch::Tensor;

use super::{
    DeviceBatch, DeviceBatches, Executor, StepContext, StepOutput,
    pairing::{EmbeddedChunk, Pairing},
};
use crate::{
    TrainError,
    dist::{BatchShards, all_ok},
    encoder::{BatchStatistics, Mode},
    methods::Method,
};

/// Gradient caching with batch norm per chunk.
#[derive(Debug, Clone, Copy)]
pub struct GradCache {
    /// Times that a chunk is read: 1, with its views kept between the passes, or 2.
    pub passes: usize,
}

impl Executor for GradCache {
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<StepOutput, TrainError> {
        let chunks = all_ok(context.group, self.embed(context, step, batches))?;
        let loss = CachedLoss::new(context, &chunks);
        let chunks = chunks.into_iter().map(|chunk| chunk.batch).collect();
        loss.backward(context, |gradients| self.backward(context, (step, chunks), gradients, batches))
    }
}

impl GradCache {
    /// The first pass.
    fn embed(
        &self,
        context: &StepContext<'_>,
        step: u64,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<Vec<EmbeddedChunk>, TrainError> {
        let mut chunks: Vec<EmbeddedChunk> = Vec::new();
        while !chunks.last().is_some_and(|chunk| chunk.batch.chunk.is_last()) {
            let mut batch = DeviceBatch::next_of(batches, step)?;
            context.seed_module(batch.step, batch.chunk.index as u64);
            let views = if self.passes > 1 { batch.take_views()? } else { batch.views()? };
            let mode = first_pass_mode(context, batch.chunk);
            let (h, z) = tch::no_grad(|| context.method.embed(&views, batch.first_views(), &mode))?;
            chunks.push(EmbeddedChunk { batch, h, z });
        }
        Ok(chunks)
    }

    /// The second pass.
    fn backward(
        &self,
        context: &StepContext<'_>,
        (step, chunks): (u64, Vec<DeviceBatch>),
        gradients: Vec<Tensor>,
        batches: &mut DeviceBatches<'_>,
    ) -> Result<(), TrainError> {
        let mode = Mode::Train(BatchStatistics { momentum: 0.0, ..BatchStatistics::default() });
        let buffers = ScriptBuffers::of(context.method);
        for (kept, gradient) in chunks.into_iter().zip(gradients) {
            let mut batch = if self.passes > 1 { DeviceBatch::next_of(batches, step)? } else { kept };
            context.seed_module(batch.step, batch.chunk.index as u64);
            let views = batch.take_views()?;
            context.method.backward(&views, batch.first_views(), &mode, &gradient)?;
        }
        buffers.restore();
        Ok(())
    }
}

/// Momentum such that the updates of the running statistics by all chunks together have the weight of one batch.
fn first_pass_mode(context: &StepContext<'_>, chunk: Chunk) -> Mode {
    let momentum = 1.0 - (1.0 - context.norm.momentum).powf(1.0 / chunk.count as f64);
    Mode::Train(BatchStatistics { momentum, ..BatchStatistics::default() })
}

/// The loss of a batch, from cached embeddings.
pub(super) struct CachedLoss<'a> {
    pairing: Pairing,
    shards: BatchShards<'a>,
    /// z of this rank's images, a leaf.
    z: Tensor,
    h: Tensor,
    loss: Tensor,
    /// Loss and accuracy over all ranks.
    values: [f64; 2],
}

impl<'a> CachedLoss<'a> {
    pub fn new(context: &StepContext<'a>, chunks: &[EmbeddedChunk]) -> Self {
        let group = context.group;
        let h = Tensor::cat(&chunks.iter().map(|chunk| &chunk.h).collect::<Vec<_>>(), 0);
        let z = Tensor::cat(&chunks.iter().map(|chunk| &chunk.z).collect::<Vec<_>>(), 0);
        let pairing = Pairing::new(group, chunks, z.device());
        let shards = BatchShards::new(group, pairing.counts().to_vec());
        let z = pairing.own_rows(&group.all_gather_rows(&z)).set_requires_grad(true);
        let (loss, values) = context.loss(&z, pairing.own_ids(), &shards);
        Self { pairing, shards, z, h, loss, values }
    }

    /// The gradient at z, propagated by `chunks` (which receives the gradient of each chunk's rows), and the step's output.
    pub fn backward(
        self,
        context: &StepContext<'_>,
        chunks: impl FnOnce(Vec<Tensor>) -> Result<(), TrainError>,
    ) -> Result<StepOutput, TrainError> {
        let [loss, accuracy] = self.values;
        let mut gradient_norm = f64::NAN;
        if loss.is_finite() {
            self.loss.backward();
            context.or_abort(chunks(self.pairing.by_chunk(&self.z.grad(), &self.shards)))?;
            // All gradients are ready at once: there is no backward pass left to overlap the all-reduce with.
            context.gradients.arm();
            context.gradients.finish();
            gradient_norm = context.gradient_norm()?;
        }
        let (ids, counts) = self.pairing.into_ids();
        Ok(StepOutput { ids, loss, accuracy, gradient_norm, h: self.h, z: self.z.detach(), counts })
    }
}

/// The buffers of a TorchScript module: its batch norm updates them in every training pass, and the second pass must not.
struct ScriptBuffers(Vec<(Tensor, Tensor)>);

impl ScriptBuffers {
    fn of(method: &dyn Method) -> Self {
        if method.stages().is_some() {
            return Self(Vec::new());
        }
        let buffers = method.params().buffers().iter();
        Self(buffers.map(|(_, buffer)| (buffer.shallow_clone(), buffer.copy())).collect())
    }

    fn restore(self) {
        tch::no_grad(|| self.0.into_iter().for_each(|(mut buffer, before)| buffer.copy_(&before)));
    }
}
