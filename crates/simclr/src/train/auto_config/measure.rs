//! Measures memory and duration of small steps, and of decoding a few images.

use std::{sync::Arc, time::Instant};

use simclr_data::{Batch, Chunk, Chunking, Loader};
use tch::Tensor;

use super::choice::{MemoryModel, StepTime};
use crate::{
    TrainError,
    device::{gpu_memory, trim_memory},
    dist::{
        GradientBuckets, ProcessGroup,
        scaling::{Bucket, Traffic},
    },
    encoder::BatchNormScope,
    exec::{DeviceBatch, StepId, executor},
    train::{
        machine,
        setup::{Prepared, loader_config, step_context},
    },
    views::AugmentDevice,
};

/// Steps double in size until one takes this long: shorter ones are dominated by the overhead of threads.
const LONG_STEP_SECONDS: f64 = 2.0;
const MAX_STEP_IMAGES: usize = 128;
/// Share of the budget that a measured step may take.
const MAX_BUDGET_SHARE: f64 = 0.7;
/// Images that are decoded to time the loader, if one takes longer than [`SLOW_DECODE_SECONDS`], and otherwise.
const DECODED_IMAGES: [usize; 2] = [16, 256];
const SLOW_DECODE_SECONDS: f64 = 0.005;

/// Costs of small steps.
#[derive(Debug, Clone, Copy)]
pub struct StepCosts {
    /// Images of the two largest steps.
    pub images: [usize; 2],
    /// `None` if the system does not report peak memory.
    pub memory: Option<MemoryModel>,
    pub seconds_per_image: f64,
    /// Seconds per step, independent of its images.
    pub fixed_seconds: f64,
}

/// Runs steps in one pass or, with `chunks > 1`, in that many chunks with global batch norm, each over twice as many images as
/// the one before. Changes weights, running statistics and optimizer state of `ready`.
///
/// # Errors
/// Those of a training step.
pub fn steps(ready: &mut Prepared, chunks: usize, budget: f64) -> Result<StepCosts, TrainError> {
    let min_images = 2 * chunks;
    let max_images = (ready.dataset.len().min(ready.plan.config.train.batch))
        .clamp(2 * min_images, MAX_STEP_IMAGES.max(2 * min_images));
    let mut small = first_step(ready, min_images, chunks)?;
    let mut images = 2 * min_images;
    let mut large = first_step(ready, images, chunks)?;
    // The next doubling adds twice what the last one did, and more if the optimizer's peak hid a part of that.
    let next_peak = |small: f64, large: f64| large + 3.0 * (large - small).max(0.0);
    let fits = |small: Option<f64>, large| {
        small.zip(large).is_none_or(|(small, large)| next_peak(small, large) < MAX_BUDGET_SHARE * budget)
    };
    while large.1 < LONG_STEP_SECONDS && 2 * images <= max_images && fits(small.0, large.0) {
        images *= 2;
        (small, large) = (large, first_step(ready, images, chunks)?);
    }
    let half = images / 2;
    let memory =
        small.0.zip(large.0).map(|(small, large)| MemoryModel::through((half, small), (images, large)));
    // The first step of a size includes the compilation of kernels for it; these do not.
    let short = step(ready, half, chunks)?;
    let long = step(ready, images, chunks)?;
    // Bounded, because a pause of the machine must not make the cost per image 0 or the fixed part negative.
    let mean = long / images as f64;
    let seconds_per_image = ((long - short) / half as f64).clamp(0.7 * mean, mean);
    let fixed_seconds = long - seconds_per_image * images as f64;
    Ok(StepCosts { images: [half, images], memory, seconds_per_image, fixed_seconds })
}

/// Peak memory of the process or of the GPU in bytes, and duration in seconds, of a step.
fn first_step(ready: &mut Prepared, images: usize, chunks: usize) -> Result<(Option<f64>, f64), TrainError> {
    let device = ready.method.params().device();
    // Memory cached since a larger step would hide this one.
    trim_memory(device);
    machine::forget_peak();
    let seconds = step(ready, images, chunks)?;
    let peak =
        if device.is_cuda() { gpu_memory(device).map(|memory| memory.peak as f64) } else { machine::peak() };
    Ok((peak, seconds))
}

/// Seconds of one step of this process alone at learning rate 0.
fn step(ready: &mut Prepared, images: usize, chunks: usize) -> Result<f64, TrainError> {
    Ok(step_in(&ProcessGroup::alone(), ready, (images, chunks), BatchNormScope::Global)?.seconds)
}

/// A step with its messages.
pub struct MeasuredStep {
    pub seconds: f64,
    pub traffic: Traffic,
    pub buckets: Vec<Bucket>,
    /// See [`crate::exec::StepOutput::z`].
    pub z: Tensor,
}

/// One step of `group` at learning rate 0 with `images` in `chunks` on each rank.
///
/// # Errors
/// Those of a training step.
pub fn step_in(
    group: &ProcessGroup,
    ready: &mut Prepared,
    (images, chunks): (usize, usize),
    scope: BatchNormScope,
) -> Result<MeasuredStep, TrainError> {
    let gradients = GradientBuckets::configured(&ready.plan.config.dist, ready.method.params(), group);
    let mut context = step_context(&ready.plan, group, &*ready.method, &gradients);
    context.norm.scope = scope;
    let channels = ready.plan.channels;
    let device = ready.method.params().device();
    let batches = batches(ready, images, chunks);
    group.take_traffic();
    let start = Instant::now();
    let mut batches = batches.into_iter().map(|batch| Ok(DeviceBatch::on_host(batch, channels, device)));
    let mut executor = executor(&context, (chunks > 1).then_some(1), false);
    let id = StepId { step: 0, lr: 0.0 };
    let output = executor.step(&context, &mut ready.optimizer, id, &mut batches)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(MeasuredStep {
        seconds,
        traffic: group.take_traffic(),
        buckets: gradients.last_step(),
        z: output.z.detach(),
    })
}

/// A batch of noise in `count` chunks.
fn batches(ready: &Prepared, images: usize, count: usize) -> Vec<Batch> {
    let views = ready.plan.config.task.objective.views();
    let channels = ready.plan.channels;
    let side = ready.plan.config.train.image_size;
    // Knuth's multiplicative hash of the index.
    let noise = |index: usize| (index as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
    let part = images / count;
    let chunk = |index: usize| {
        // Indices repeat in a smaller data set, so that every one has a label.
        let ids: Vec<usize> = (index * part..(index + 1) * part).map(|id| id % ready.dataset.len()).collect();
        let values = views * part * channels * side * side;
        let pixels: Vec<f32> = (index * values..(index + 1) * values).map(noise).collect();
        let second = if views > 1 { ids.clone() } else { Vec::new() };
        let chunk = Chunk { index, count, pass: 0 };
        Batch {
            step: 0,
            epoch: 0,
            chunk,
            ids,
            second_view_ids: second,
            views: pixels.into(),
            failed: Vec::new(),
        }
    };
    (0..count).map(chunk).collect()
}

/// Costs of the loader.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoaderCosts {
    /// Per image, divided over all threads.
    pub seconds: f64,
    /// Memory while all threads decode, without the views.
    pub bytes: f64,
}

/// Decodes and augments the first images of the first epoch, which warms the file cache for the first step. Images that cannot
/// be decoded are skipped; the run reports them.
pub fn loader(ready: &Prepared) -> LoaderCosts {
    trim_memory(ready.method.params().device());
    let before = machine::resident().unwrap_or_default();
    machine::forget_peak();
    let Some(first) = load(ready, 4 * ready.plan.data_threads) else { return LoaderCosts::default() };
    let bytes = (machine::peak().unwrap_or_default() - before).max(0.0);
    let images = if first > SLOW_DECODE_SECONDS { DECODED_IMAGES[0] } else { DECODED_IMAGES[1] };
    LoaderCosts { seconds: load(ready, images).unwrap_or(first), bytes }
}

/// Seconds per image over `images` images; `None` if none can be decoded.
fn load(ready: &Prepared, images: usize) -> Option<f64> {
    let mut config = loader_config(&ready.plan);
    config.batch = images.min(config.batch).max(1);
    config.max_bad_share = 1.0;
    let batch = config.batch;
    let augment = ready.plan.config.augment.clone();
    let mut loader = Loader::new(Arc::clone(&ready.dataset), augment, config).ok()?;
    if ready.plan.augment_device == AugmentDevice::Device {
        loader = loader.deferred();
    }
    // As a chunk, because a whole batch needs at least two images.
    let loader = loader.chunked(Chunking { images: batch, shuffle_views: false, passes: 1 });
    let start = Instant::now();
    drop(loader.batches(0, 1).ok()?.next()?.ok()?);
    Some(start.elapsed().as_secs_f64() / batch as f64)
}

pub fn step_time(ready: &Prepared, step: &StepCosts, loader: &LoaderCosts) -> StepTime {
    let plan = &ready.plan;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let shared =
        !ready.method.params().device().is_cuda() && plan.data_threads + plan.torch_threads > processors;
    StepTime { per_image: step.seconds_per_image, fixed: step.fixed_seconds, loader: loader.seconds, shared }
}
