//! Small steps and a few decoded images, and what they take.

use std::{sync::Arc, time::Instant};

use simclr_data::{Batch, Chunk, Chunking, Loader};

use super::{
    choice::{Line, Pace},
    machine,
};
use crate::{
    TrainError,
    device::{gpu_memory, trim_memory},
    dist::{GradientBuckets, ProcessGroup},
    encoder::BatchNormScope,
    exec::{DeviceBatch, StepId, executor},
    train::setup::{Prepared, loader_config, step_context},
    views::AugmentDevice,
};

/// Steps grow until one takes so many seconds: the small ones on the way spend more on waiting for threads than
/// on images.
const SECONDS: f64 = 2.0;
/// And up to so many images.
const MOST: usize = 128;
/// Share of the memory that a measured step may take.
const HARMLESS: f64 = 0.7;
/// Images that the loader is timed with: so many that take long, up to so many others.
const DECODED: [usize; 2] = [16, 256];
/// Seconds from which an image takes long.
const LONG: f64 = 0.005;

/// What two small steps took.
#[derive(Debug, Clone, Copy)]
pub struct Steps {
    /// Images of the two.
    pub images: [usize; 2],
    /// Memory; none where the system does not tell.
    pub memory: Option<Line>,
    /// Seconds of each further image, and of every step.
    pub seconds: (f64, f64),
}

/// Takes small steps whole or, with `chunks` of so many parts, in lock step, each over twice as many images as
/// the one before, and well within `budget` bytes. Weights, statistics and state of `ready` are no longer what
/// they were.
///
/// # Errors
/// What keeps a step from being taken.
pub fn steps(ready: &mut Prepared, chunks: usize, budget: f64) -> Result<Steps, TrainError> {
    let least = 2 * chunks;
    let most = ready.dataset.len().min(ready.plan.config.train.batch).clamp(2 * least, MOST.max(2 * least));
    let (mut low, mut high) = (first(ready, least, chunks)?, first(ready, 2 * least, chunks)?);
    let mut images = 2 * least;
    // Twice the images add twice of what the last doubling did, and some more where that was hidden by the
    // optimizer's peak.
    let next = |low: f64, high: f64| high + 3.0 * (high - low).max(0.0);
    let fits =
        |low: Option<f64>, high| low.zip(high).is_none_or(|(low, high)| next(low, high) < HARMLESS * budget);
    while high.1 < SECONDS && 2 * images <= most && fits(low.0, high.0) {
        images *= 2;
        (low, high) = (high, first(ready, images, chunks)?);
    }
    let few = images / 2;
    let memory = low.0.zip(high.0).map(|(low, high)| Line::through((few, low), (images, high)));
    // The first step over so many images made kernels for them; the second one does not.
    let (short, long) = (step(ready, few, chunks)?, step(ready, images, chunks)?);
    // A pause of another program must not make images free, nor the fixed part negative.
    let whole = long / images as f64;
    let each = ((long - short) / few as f64).clamp(0.7 * whole, whole);
    Ok(Steps { images: [few, images], memory, seconds: (each, long - each * images as f64) })
}

/// The peak of the first step over so many images, in bytes of the process or of the GPU, and its seconds.
fn first(ready: &mut Prepared, images: usize, chunks: usize) -> Result<(Option<f64>, f64), TrainError> {
    let device = ready.method.params().device();
    // What an earlier and larger step left behind would hide this one.
    trim_memory(device);
    machine::forget_peak();
    let seconds = step(ready, images, chunks)?;
    let on_gpu = || gpu_memory(device).map(|memory| memory.peak as f64);
    Ok((if device.is_cuda() { on_gpu() } else { machine::peak() }, seconds))
}

/// Seconds of one step at learning rate 0.
fn step(ready: &mut Prepared, images: usize, chunks: usize) -> Result<f64, TrainError> {
    let alone = ProcessGroup::alone();
    let gradients = GradientBuckets::new(ready.method.params(), &alone);
    let mut context = step_context(&ready.plan, &alone, &*ready.method, &gradients);
    context.norm.scope = BatchNormScope::Global;
    let shape = (ready.plan.channels, ready.plan.config.train.image_size);
    let device = ready.method.params().device();
    let batches = batches(ready, images, chunks);
    let begin = Instant::now();
    let mut batches = batches.into_iter().map(|batch| Ok(DeviceBatch::on_host(batch, shape, device)));
    let mut executor = executor(&context, (chunks > 1).then_some(1), false);
    executor.step(&context, &mut ready.optimizer, StepId { step: 0, lr: 0.0 }, &mut batches)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Chunks of a batch of noise.
fn batches(ready: &Prepared, images: usize, count: usize) -> Vec<Batch> {
    let views = ready.plan.config.task.objective.views();
    let (channels, side) = (ready.plan.channels, ready.plan.config.train.image_size);
    // Any pixels that differ: Knuth's multiplicative hash of the place.
    let noise = |at: usize| (at as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
    let part = images / count;
    let chunk = |index: usize| {
        // A set of fewer images has labels for no others.
        let ids: Vec<usize> = (index * part..(index + 1) * part).map(|id| id % ready.dataset.len()).collect();
        let numbers = views * part * channels * side * side;
        let pixels: Vec<f32> = (index * numbers..(index + 1) * numbers).map(noise).collect();
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

/// What the loader takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loading {
    /// Seconds for an image, over all of its threads.
    pub seconds: f64,
    /// Bytes while all threads decode, beyond the views.
    pub bytes: f64,
}

/// Makes views of the first images of the first epoch, which the first step needs in any case. Images that
/// cannot be decoded are for the run to report.
pub fn loading(ready: &Prepared) -> Loading {
    trim_memory(ready.method.params().device());
    let before = machine::resident().unwrap_or_default();
    machine::forget_peak();
    let Some(first) = load(ready, 4 * ready.plan.data_threads) else { return Loading::default() };
    let bytes = (machine::peak().unwrap_or_default() - before).max(0.0);
    let images = if first > LONG { DECODED[0] } else { DECODED[1] };
    Loading { seconds: load(ready, images).unwrap_or(first), bytes }
}

/// Seconds for each of so many images.
fn load(ready: &Prepared, images: usize) -> Option<f64> {
    let mut config = loader_config(&ready.plan);
    config.batch = images.min(config.batch).max(1);
    config.max_bad_share = 1.0;
    let (dataset, augment) = (Arc::clone(&ready.dataset), ready.plan.config.augment.clone());
    let batch = config.batch;
    let mut loader = Loader::new(dataset, augment, config).ok()?;
    if ready.plan.augment_device == AugmentDevice::Device {
        loader = loader.deferred();
    }
    // One chunk, so that a single image is enough.
    let loader = loader.chunked(Chunking { images: batch, shuffle_views: false, passes: 1 });
    let begin = Instant::now();
    let made = loader.batches(0, 1).ok()?.next()?.ok()?;
    drop(made);
    Some(begin.elapsed().as_secs_f64() / batch as f64)
}

/// How fast steps like these are with such a loader.
pub fn pace(ready: &Prepared, steps: &Steps, loading: &Loading) -> Pace {
    let plan = &ready.plan;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let shared =
        !ready.method.params().device().is_cuda() && plan.data_threads + plan.torch_threads > processors;
    Pace { step: steps.seconds.0, fixed: steps.seconds.1, loader: loading.seconds, shared }
}
