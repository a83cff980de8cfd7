//! One update of a batch that does not fit as a whole: gradient caching (Gao et al. 2021, arXiv 2101.06983).
//!
//! 1. The chunks go through f and g without a graph; only h and z are kept.
//! 2. The loss of the whole batch, and its gradient at z.
//! 3. The chunks go through again, with a graph, and what step 2 found is propagated back from z, chunk by chunk; the
//!    gradients of the parameters add up.
//!
//! Views are a function of their dice, so step 3 sees those of step 1. What batch norm does to this is `train.batch_norm`
//! ([`BatchNormScope`]):
//!
//! - over the chunk (`chunk`, `chunk-shuffled`), a chunk knows nothing of the others, and memory is that of one chunk and of
//!   z. A chunk's z depends on who else is in the chunk, so the loss is that of the paper with batch norm per device.
//! - over the batch (`global`), all chunks have to meet at every batch norm, forward and backward; they run in lock step
//!   (`in_lock_step`). Only what goes from stage to stage of the encoder is kept, and one stage at a time is run
//!   with a graph. Loss and gradient are those of the whole batch at once, up to rounding.

use std::{collections::HashMap, sync::Arc};

use simclr_data::{Batch, Chunk, DataError, Views};
use tch::{Device, Kind, Tensor};

use super::{
    agreed::{abort_group_on_error, all_ok},
    lock_step::in_lock_step,
    step::{Setting, Stepped, seed_module},
};
use crate::{
    ModelError, TrainError,
    dist::{BatchShards, ProcessGroup},
    encoder::{AllReduce, BatchNormScope, BatchStatistics, Mode},
    model::{Model, Stages},
    nt_xent::AllGather,
    objective::Value,
    optim::{self, Optimizer},
};

/// The chunks of one step, and what came to light while they came in.
pub struct Chunks<'a> {
    batches: &'a mut dyn Iterator<Item = Result<Batch, DataError>>,
    step: u64,
    /// Images that could not be decoded.
    pub bad: Vec<(usize, String)>,
}

impl<'a> Chunks<'a> {
    /// The chunks of step `step`, which come next.
    pub fn new(step: u64, batches: &'a mut dyn Iterator<Item = Result<Batch, DataError>>) -> Self {
        Self { batches, step, bad: Vec::new() }
    }

    /// The next chunk.
    ///
    /// # Errors
    /// What kept it from being made.
    #[allow(clippy::should_implement_trait, reason = "running out is an error here, not an end")]
    pub fn next(&mut self) -> Result<Batch, DataError> {
        let batch = self.batches.next().unwrap_or(Err(DataError::WorkerLost { step: self.step }))?;
        self.bad.extend(batch.failed.iter().cloned());
        Ok(batch)
    }

    /// All chunks of a pass.
    fn pass(&mut self) -> Result<Vec<Batch>, DataError> {
        let mut chunks = vec![self.next()?];
        while !chunks.last().is_some_and(|batch| batch.chunk.is_last()) {
            chunks.push(self.next()?);
        }
        Ok(chunks)
    }
}

/// What a large step is made with.
pub struct LargeStep<'a> {
    /// As every step.
    pub setting: Setting<'a>,
    /// How often every chunk comes in: 1, and its views are kept between the passes, or 2.
    pub passes: usize,
    /// Seed of the run: a TorchScript module may draw numbers, and must draw the same ones twice.
    pub seed: u64,
}

/// Chunks after their first pass.
struct Encoded {
    /// Without what their views are made of, unless that is kept.
    chunks: Vec<Batch>,
    h: Vec<Tensor>,
    z: Vec<Tensor>,
    /// In lock step: what goes into every stage, by chunk.
    inputs: Vec<Vec<Tensor>>,
}

impl LargeStep<'_> {
    /// All views of all images of the batch, chunk by chunk; objective, gradients, update. Returns the images of all ranks
    /// whose loss it is, too.
    ///
    /// # Errors
    /// Chunks that cannot be made, and see [`Model::forward`](crate::model::Model::forward).
    pub fn run(
        &self,
        chunks: &mut Chunks<'_>,
        optimizer: &mut Optimizer,
        lr: f64,
    ) -> Result<(Vec<usize>, Stepped), TrainError> {
        let (ids, done) = self.gradients(chunks)?;
        self.setting.update(optimizer, &done, lr)?;
        Ok((ids, done))
    }

    /// [`LargeStep::run`] without the update.
    ///
    /// # Errors
    /// See there.
    pub fn gradients(&self, chunks: &mut Chunks<'_>) -> Result<(Vec<usize>, Stepped), TrainError> {
        let Setting { model, objective, group, buckets, over, .. } = self.setting;
        let mut encoded = if over == BatchNormScope::Global {
            let own = all_ok(group, chunks.pass().map_err(TrainError::from))?;
            abort_group_on_error(group, self.encode_in_lock_step(own))?
        } else {
            all_ok(group, self.encode(chunks))?
        };
        let h = Tensor::cat(&encoded.h, 0);
        encoded.h.clear();
        let paired = Paired::new(group, &encoded, model.params.device());
        let shards = BatchShards::new(group, paired.counts.clone());
        let z = paired.own(&group.all_gather_rows(&Tensor::cat(&encoded.z, 0))).set_requires_grad(true);
        let Value { loss, accuracy } = objective.of(&z, paired.own_ids(), &shards, shards.images());
        let [value, accuracy] = shards.sum([loss.double_value(&[]), accuracy.double_value(&[])]);
        let mut gradient_norm = f64::NAN;
        if value.is_finite() {
            loss.backward();
            let gradients = paired.by_chunk(&z.grad(), &shards);
            let back = if over == BatchNormScope::Global {
                self.back_in_lock_step(encoded, gradients)
            } else {
                self.back(encoded, gradients, chunks)
            };
            abort_group_on_error(group, back)?;
            // The gradients of all chunks are there together: nothing is left to overlap with.
            buckets.arm();
            buckets.finish();
            let norm = optim::gradient_norm(&model.params).map_err(TrainError::from);
            gradient_norm = abort_group_on_error(group, norm)?;
        }
        let (z, counts) = (z.detach(), paired.counts);
        Ok((paired.ids, Stepped { loss: value, accuracy, gradient_norm, h, z, counts }))
    }

    /// See [`seed_module`]; both passes of a chunk draw the same.
    fn seed(&self, step: u64, chunk: Chunk) {
        seed_module(self.setting.model, self.seed, step, chunk.index as u64);
    }

    /// The first pass, a chunk at a time.
    fn encode(&self, chunks: &mut Chunks<'_>) -> Result<Encoded, TrainError> {
        let mut encoded = Encoded { chunks: Vec::new(), h: Vec::new(), z: Vec::new(), inputs: Vec::new() };
        loop {
            let mut batch = chunks.next()?;
            self.seed(batch.step, batch.chunk);
            // The chunks' updates of the running statistics together weigh what one batch's does.
            let momentum =
                1.0 - (1.0 - self.setting.model.norm_momentum).powf(1.0 / batch.chunk.count as f64);
            let mode = Mode::Train(BatchStatistics { exchange: None, momentum });
            let (h, z) = tch::no_grad(|| self.setting.model.forward(&self.setting.views(&batch)?, &mode))?;
            encoded.h.push(h);
            encoded.z.push(z);
            if self.passes > 1 {
                batch.views = Views::default();
            }
            let last = batch.chunk.is_last();
            encoded.chunks.push(batch);
            if last {
                return Ok(encoded);
            }
        }
    }

    /// The second pass, a chunk at a time.
    fn back(
        &self,
        encoded: Encoded,
        gradients: Vec<Tensor>,
        chunks: &mut Chunks<'_>,
    ) -> Result<(), TrainError> {
        let mode = Mode::Train(BatchStatistics { exchange: None, momentum: 0.0 });
        let buffers = ScriptBuffers::of(self.setting.model);
        for (kept, gradient) in encoded.chunks.into_iter().zip(gradients) {
            let batch = if self.passes > 1 { chunks.next()? } else { kept };
            self.seed(batch.step, batch.chunk);
            let (_, z) = self.setting.model.forward(&self.setting.views(&batch)?, &mode)?;
            back_from(&z, &gradient)?;
        }
        buffers.restore();
        Ok(())
    }

    /// The first pass, all chunks in lock step.
    fn encode_in_lock_step(&self, mut chunks: Vec<Batch>) -> Result<Encoded, TrainError> {
        let views: Vec<_> =
            chunks.iter_mut().map(|batch| self.take_views(batch)).collect::<Result<_, _>>()?;
        let norm_momentum = self.setting.model.norm_momentum;
        let walked = self.walk(views, |index, stages, views, exchange| {
            // Once for all: the running statistics are the same tensors for every chunk.
            let momentum = if index == 0 { norm_momentum } else { 0.0 };
            let mode = Mode::Train(BatchStatistics { exchange: Some(exchange), momentum });
            let mut inputs = vec![views];
            for stage in 0..stages.count() {
                let next = tch::no_grad(|| stages.run(stage, &inputs[stage], &mode))?;
                inputs.push(next);
            }
            Ok(inputs)
        })?;
        let mut encoded = Encoded { chunks, h: Vec::new(), z: Vec::new(), inputs: Vec::new() };
        for mut inputs in walked {
            encoded.z.extend(inputs.pop());
            encoded.h.extend(inputs.last().map(Tensor::shallow_clone));
            encoded.inputs.push(inputs);
        }
        Ok(encoded)
    }

    fn take_views(&self, batch: &mut Batch) -> Result<Tensor, ModelError> {
        let views = self.setting.views(batch);
        batch.views = Views::default();
        views
    }

    /// The second pass, all chunks in lock step, from the last stage to the first.
    fn back_in_lock_step(&self, encoded: Encoded, gradients: Vec<Tensor>) -> Result<(), TrainError> {
        let items: Vec<_> = encoded.inputs.into_iter().zip(gradients).collect();
        self.walk(items, |_, stages, (mut inputs, mut gradient), exchange| {
            let mode = Mode::Train(BatchStatistics { exchange: Some(exchange), momentum: 0.0 });
            while let Some(x) = inputs.pop() {
                // The views themselves need no gradient.
                let x = x.set_requires_grad(!inputs.is_empty());
                let y = stages.run(inputs.len(), &x, &mode)?;
                back_from(&y, &gradient)?;
                gradient = x.grad();
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Every chunk's item through `work`, in lock step, with handles to the model for each.
    fn walk<I: Send, O: Send>(
        &self,
        items: Vec<I>,
        work: impl Fn(usize, &Stages, I, Arc<dyn AllReduce>) -> Result<O, ModelError> + Sync,
    ) -> Result<Vec<O>, TrainError> {
        let handle = || {
            self.setting
                .model
                .stages()
                .expect("a configuration with a TorchScript module asks for chunk statistics")
        };
        let items: Vec<_> = items.into_iter().map(|item| (handle(), item)).collect();
        let done =
            in_lock_step(items, self.setting.group.norm_all_reduce(), |index, (stages, item), exchange| {
                work(index, &stages, item, exchange)
            })?;
        Ok(done.into_iter().collect::<Result<_, _>>()?)
    }
}

fn back_from(output: &Tensor, gradient: &Tensor) -> Result<(), ModelError> {
    Ok(simclr_shim::backward(output, gradient)?)
}

/// Which rows of all chunks of all ranks are the two views of an image.
struct Paired {
    rank: usize,
    /// The images of which all views are there, and how many of them are each rank's, which holds their first view.
    ids: Vec<usize>,
    counts: Vec<usize>,
    /// Rows of their first views and then of their second ones, counted over all ranks and chunks, `[2N]` or `[N]`.
    order: Tensor,
    /// Rows before those of this rank, and of its chunks.
    before: i64,
    rows: Vec<i64>,
    /// Rows of all.
    total: i64,
}

impl Paired {
    fn new(group: &ProcessGroup, encoded: &Encoded, device: Device) -> Self {
        let numbers = |of: fn(&Batch) -> &Vec<usize>| {
            group.all_gather_usize(
                &encoded.chunks.iter().flat_map(|batch| of(batch).iter().copied()).collect::<Vec<_>>(),
            )
        };
        let (first, second) = (numbers(|batch| &batch.ids), numbers(|batch| &batch.second_view_ids));
        // Rows lie chunk by chunk, first views before second ones; the sizes say where.
        let sizes = |batch: &Batch| [batch.ids.len(), batch.second_view_ids.len()];
        let sizes = group.all_gather_usize(&encoded.chunks.iter().flat_map(sizes).collect::<Vec<_>>());
        let (mut row, mut before) = (0, 0);
        let (mut firsts, mut partner) = (Vec::new(), HashMap::new());
        for (rank, sizes) in sizes.iter().enumerate() {
            if rank == group.rank() {
                before = row;
            }
            let (mut first, mut second) = (first[rank].iter(), second[rank].iter());
            for pair in sizes.chunks_exact(2) {
                firsts.extend(first.by_ref().take(pair[0]).zip(row..).map(|(&id, row)| (rank, id, row)));
                partner.extend(
                    second.by_ref().take(pair[1]).zip(row + pair[0] as i64..).map(|(&id, row)| (id, row)),
                );
                row += (pair[0] + pair[1]) as i64;
            }
        }
        let one_view = partner.is_empty();
        firsts.retain(|(_, id, _)| one_view || partner.contains_key(id));
        let ids: Vec<usize> = firsts.iter().map(|&(_, id, _)| id).collect();
        let seconds = ids.iter().filter_map(|id| partner.get(id).copied());
        let order: Vec<i64> = firsts.iter().map(|&(_, _, row)| row).chain(seconds).collect();
        let count = |rank| firsts.iter().filter(|(of, _, _)| *of == rank).count();
        Self {
            rank: group.rank(),
            counts: (0..group.count()).map(count).collect(),
            order: Tensor::from_slice(&order).to_device(device),
            ids,
            before,
            rows: encoded.z.iter().map(|z| z.size()[0]).collect(),
            total: row,
        }
    }

    /// Images before those of this rank, and its own.
    fn place(&self) -> (i64, i64) {
        (self.counts[..self.rank].iter().sum::<usize>() as i64, self.counts[self.rank] as i64)
    }

    fn own_ids(&self) -> &[usize] {
        let (start, length) = self.place();
        &self.ids[start as usize..(start + length) as usize]
    }

    /// Rows of this rank's images, first views and then second ones, from the rows of all chunks of all ranks.
    fn own(&self, rows: &Tensor) -> Tensor {
        let (start, length) = self.place();
        let images = self.ids.len() as i64;
        let views = self.order.size()[0] / images.max(1);
        let order: Vec<Tensor> =
            (0..views).map(|view| self.order.narrow(0, view * images + start, length)).collect();
        rows.index_select(0, &Tensor::cat(&order, 0))
    }

    /// The gradient at the z of every chunk of this rank, from that at its images' z; zero for a view whose partner is
    /// missing. An image's second view may be on another rank, so all ranks' are put together first.
    fn by_chunk(&self, own: &Tensor, shards: &BatchShards<'_>) -> Vec<Tensor> {
        let two = self.order.size()[0] > self.ids.len() as i64;
        let gradient = if two { shards.all_gather(own) } else { shards.all_gather_rows(own) };
        let all = Tensor::zeros([self.total, gradient.size()[1]], (Kind::Float, gradient.device()));
        let all = all.index_copy(0, &self.order, &gradient);
        all.narrow(0, self.before, self.rows.iter().sum()).split_with_sizes(&self.rows[..], 0)
    }
}

/// The buffers of a TorchScript module, whose batch norm updates them whenever it trains; the second pass must not.
struct ScriptBuffers(Vec<(Tensor, Tensor)>);

impl ScriptBuffers {
    fn of(model: &Model) -> Self {
        let buffers =
            model.params.buffers().iter().map(|(_, buffer)| (buffer.shallow_clone(), buffer.copy()));
        Self(if model.stages().is_none() { buffers.collect() } else { Vec::new() })
    }

    fn restore(self) {
        tch::no_grad(|| self.0.into_iter().for_each(|(mut buffer, was)| buffer.copy_(&was)));
    }
}
