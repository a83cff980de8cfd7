//! One update of a batch that does not fit as a whole: gradient caching (Gao et al. 2021, arXiv 2101.06983).
//!
//! 1. The chunks go through f and g without a graph; only h and z are kept.
//! 2. The loss of the whole batch, and its gradient at z.
//! 3. The chunks go through again, with a graph, and what step 2 found is propagated back from z, chunk by chunk; the
//!    gradients of the parameters add up.
//!
//! Views are a function of their dice, so step 3 sees those of step 1. What batch norm does to this is `train.batch_norm`
//! ([`NormOver`]):
//!
//! - over the chunk (`chunk`, `chunk-shuffled`), a chunk knows nothing of the others, and memory is that of one chunk and of
//!   z. A chunk's z depends on who else is in the chunk, so the loss is that of the paper with batch norm per device.
//! - over the batch (`global`), all chunks have to meet at every batch norm, forward and backward; they run in lock step
//!   ([`in_lock_step`]). Only what goes from stage to stage of the encoder is kept, and one stage at a time is run
//!   with a graph. Loss and gradient are those of the whole batch at once, up to rounding.

use std::{collections::HashMap, sync::Arc};

use simclr_data::{Batch, Chunk, DataError};
use tch::{Kind, Tensor};

use super::{
    lock_step::in_lock_step,
    step::{Stepped, norm_of_gradients},
};
use crate::{
    ModelError, TrainError,
    device::to_device,
    encoder::{BatchStatistics, Exchange, MOMENTUM, Mode, NormOver},
    model::{SimClr, Stages},
    objective::{Objective, Value},
    optim::Optimizer,
};

/// The chunks of one step, and what came to light while they came in.
pub struct Chunks<'a> {
    first: Option<Batch>,
    rest: &'a mut dyn Iterator<Item = Result<Batch, DataError>>,
    step: u64,
    /// Images that could not be decoded.
    pub bad: Vec<(usize, String)>,
}

impl<'a> Chunks<'a> {
    /// The first chunk of the step, and where the others come from.
    pub fn new(first: Batch, rest: &'a mut dyn Iterator<Item = Result<Batch, DataError>>) -> Self {
        Self { step: first.step, first: Some(first), rest, bad: Vec::new() }
    }

    /// The next chunk.
    ///
    /// # Errors
    /// What kept it from being made.
    pub fn next(&mut self) -> Result<Batch, DataError> {
        let next = self.first.take().map(Ok).or_else(|| self.rest.next());
        let batch = next.unwrap_or(Err(DataError::WorkerLost { step: self.step }))?;
        self.bad.extend(batch.bad.iter().cloned());
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
    /// f and g.
    pub model: &'a SimClr,
    /// What is minimised.
    pub objective: &'a Objective,
    /// Whose statistics batch norm takes.
    pub over: NormOver,
    /// How often every chunk comes in: 1, and its views are kept between the passes, or 2.
    pub passes: usize,
    /// C and S of the views.
    pub shape: (usize, usize),
    /// Seed of the run: a TorchScript module may draw numbers, and must draw the same ones twice.
    pub seed: u64,
}

/// Chunks after their first pass.
struct Encoded {
    /// Without their pixels, unless these are kept.
    chunks: Vec<Batch>,
    h: Vec<Tensor>,
    z: Vec<Tensor>,
    /// In lock step: what goes into every stage, by chunk.
    inputs: Vec<Vec<Tensor>>,
}

impl LargeStep<'_> {
    /// All views of all images of the batch, chunk by chunk; objective, gradients, update. Returns the images whose loss it
    /// is, too.
    ///
    /// # Errors
    /// Chunks that cannot be made, and see [`SimClr::forward`].
    pub fn run(
        &self,
        chunks: &mut Chunks<'_>,
        optimizer: &mut Optimizer,
        lr: f64,
    ) -> Result<(Vec<usize>, Stepped), TrainError> {
        let mut encoded = match self.over {
            NormOver::Global => self.encode_in_lock_step(chunks.pass()?)?,
            NormOver::Chunk | NormOver::ChunkShuffled => self.encode(chunks)?,
        };
        let (ids, order) = pair(&encoded.chunks);
        let order = Tensor::from_slice(&order).to_device(self.model.params.device());
        let gather = |parts: &[Tensor]| Tensor::cat(parts, 0).index_select(0, &order);
        let (h, z) = (gather(&encoded.h), gather(&encoded.z).set_requires_grad(true));
        let Value { loss, accuracy } = self.objective.of(&z, &ids);
        let value = loss.double_value(&[]);
        let mut gradient_norm = f64::NAN;
        if value.is_finite() {
            loss.backward();
            let gradients = self.by_chunk(&encoded, &order, &z.grad());
            encoded.h.clear();
            match self.over {
                NormOver::Global => self.back_in_lock_step(encoded, gradients)?,
                NormOver::Chunk | NormOver::ChunkShuffled => self.back(encoded, gradients, chunks)?,
            }
            gradient_norm = norm_of_gradients(&self.model.params);
            if gradient_norm.is_finite() {
                optimizer.step(&self.model.params, lr);
            }
        }
        let accuracy = accuracy.double_value(&[]);
        Ok((ids, Stepped { loss: value, accuracy, gradient_norm, h, z: z.detach() }))
    }

    /// The gradient at the z of every chunk; zero for a view whose partner is missing.
    fn by_chunk(&self, encoded: &Encoded, order: &Tensor, gradient: &Tensor) -> Vec<Tensor> {
        let rows: Vec<i64> = encoded.z.iter().map(|z| z.size()[0]).collect();
        let all = Tensor::zeros([rows.iter().sum(), gradient.size()[1]], (Kind::Float, gradient.device()));
        all.index_copy(0, order, gradient).split_with_sizes(rows, 0)
    }

    fn views(&self, batch: &Batch) -> Tensor {
        let (channels, size) = self.shape;
        let shape = [batch.ids.len() + batch.second.len(), channels, size, size].map(|side| side as i64);
        to_device(&batch.pixels, shape, self.model.params.device())
    }

    /// Makes what a TorchScript module may draw a function of the chunk.
    fn seed(&self, step: u64, chunk: Chunk) {
        if self.model.stages().is_none() {
            // An odd multiplier keeps the seeds of different steps and chunks apart.
            let number = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(chunk.index as u64);
            tch::manual_seed((self.seed ^ number) as i64);
        }
    }

    /// The first pass, a chunk at a time.
    fn encode(&self, chunks: &mut Chunks<'_>) -> Result<Encoded, TrainError> {
        let mut encoded = Encoded { chunks: Vec::new(), h: Vec::new(), z: Vec::new(), inputs: Vec::new() };
        loop {
            let mut batch = chunks.next()?;
            self.seed(batch.step, batch.chunk);
            // The chunks' updates of the running statistics together weigh what one batch's does.
            let momentum = 1.0 - (1.0 - MOMENTUM).powf(1.0 / batch.chunk.count as f64);
            let mode = Mode::Train(BatchStatistics { exchange: None, momentum });
            let (h, z) = tch::no_grad(|| self.model.forward(&self.views(&batch), &mode))?;
            encoded.h.push(h);
            encoded.z.push(z);
            if self.passes > 1 {
                batch.pixels = Vec::new();
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
        let buffers = ScriptBuffers::of(self.model);
        for (kept, gradient) in encoded.chunks.into_iter().zip(gradients) {
            let batch = if self.passes > 1 { chunks.next()? } else { kept };
            self.seed(batch.step, batch.chunk);
            let (_, z) = self.model.forward(&self.views(&batch), &mode)?;
            back_from(&z, &gradient)?;
        }
        buffers.restore();
        Ok(())
    }

    /// The first pass, all chunks in lock step.
    fn encode_in_lock_step(&self, mut chunks: Vec<Batch>) -> Result<Encoded, TrainError> {
        let views: Vec<_> = chunks.iter_mut().map(|batch| self.take_views(batch)).collect();
        let walked = self.walk(views, |index, stages, views, exchange| {
            // Once for all: the running statistics are the same tensors for every chunk.
            let momentum = if index == 0 { MOMENTUM } else { 0.0 };
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

    fn take_views(&self, batch: &mut Batch) -> Tensor {
        let views = self.views(batch);
        batch.pixels = Vec::new();
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
        work: impl Fn(usize, &Stages, I, Arc<dyn Exchange>) -> Result<O, ModelError> + Sync,
    ) -> Result<Vec<O>, TrainError> {
        let handle = || {
            self.model.stages().expect("a configuration with a TorchScript module asks for chunk statistics")
        };
        let items: Vec<_> = items.into_iter().map(|item| (handle(), item)).collect();
        let done = in_lock_step(items, None, |index, (stages, item), exchange| {
            work(index, &stages, item, exchange)
        })?;
        Ok(done.into_iter().collect::<Result<_, _>>()?)
    }
}

fn back_from(output: &Tensor, gradient: &Tensor) -> Result<(), ModelError> {
    let said = |error: simclr_shim::ShimError| ModelError::Torch(tch::TchError::Torch(error.to_string()));
    simclr_shim::backward(output, gradient).map_err(said)
}

/// The images of which all views are there, and the rows of their first views and then of their second ones, counted over
/// all chunks.
fn pair(chunks: &[Batch]) -> (Vec<usize>, Vec<i64>) {
    let (mut row, mut first, mut second) = (0, Vec::new(), HashMap::new());
    for batch in chunks {
        for &id in &batch.ids {
            first.push((id, row));
            row += 1;
        }
        for &id in &batch.second {
            second.insert(id, row);
            row += 1;
        }
    }
    let one_view = second.is_empty();
    first.retain(|(id, _)| one_view || second.contains_key(id));
    let ids: Vec<usize> = first.iter().map(|&(id, _)| id).collect();
    let seconds = ids.iter().filter_map(|id| second.get(id).copied());
    let order = first.iter().map(|&(_, row)| row).chain(seconds).collect();
    (ids, order)
}

/// The buffers of a TorchScript module, whose batch norm updates them whenever it trains; the second pass must not.
struct ScriptBuffers(Vec<(Tensor, Tensor)>);

impl ScriptBuffers {
    fn of(model: &SimClr) -> Self {
        let buffers =
            model.params.buffers().iter().map(|(_, buffer)| (buffer.shallow_clone(), buffer.copy()));
        Self(if model.stages().is_none() { buffers.collect() } else { Vec::new() })
    }

    fn restore(self) {
        tch::no_grad(|| self.0.into_iter().for_each(|(mut buffer, was)| buffer.copy_(&was)));
    }
}
