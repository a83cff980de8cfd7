//! Seconds per image and peak memory of one update of a large batch in chunks, or of a plain one, on random views. One
//! process per figure, so that its peak memory is its own.
//!
//! usage: `large_batch_bench IMAGES [--chunk 256] [--over chunk|chunk-shuffled|global] [--precision bf16|f32]
//!         [--encoder resnet18|...] [--size 32] [--steps 1]`; without `--chunk` the batch goes through at once
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{error::Error, time::Instant};

use simclr::{
    RunConfig,
    data::{Batch, Chunk, Chunking, rng::Key},
    device::{Precision, choose_device, describe},
    dist::{GradientBuckets, ProcessGroup},
    encoder::BatchNormScope,
    exec::{DeviceBatch, NormConfig, StepContext, StepId, executor},
    methods::{Method as _, SimClr},
    model::Model,
    optim::Optimizer,
};

const LEARNING_RATE: f64 = 1e-3;

/// Values in `[0, 1)` without a generator's cost: what they are changes nothing.
fn pixels(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let images: usize = words.next().ok_or("expected the number of images")?.parse()?;
    let (mut overrides, mut steps) = (vec![format!("train.batch={images}")], 1);
    overrides.extend(["encoder.name=resnet18", "train.image_size=32", "optim.kind=sgd"].map(str::to_owned));
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--chunk" => overrides.push(format!("train.chunk={value}")),
            "--over" => overrides.push(format!("train.batch_norm=\"{value}\"")),
            "--precision" => overrides.push(format!("train.precision=\"{value}\"")),
            "--encoder" => overrides.push(format!("encoder.name=\"{value}\"")),
            "--size" => overrides.push(format!("train.image_size={value}")),
            "--steps" => steps = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let config = RunConfig::load(None, &overrides)?;
    let mut seconds = measure(&config, steps)?;
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[(steps - 1) / 2] + seconds[steps / 2]) / 2.0;
    let train = &config.train;
    let how = match train.is_chunked() {
        true => format!("chunks of {} over {}", train.chunk, train.batch_norm.as_str()),
        false => "at once".to_owned(),
    };
    println!(
        "{images} images {how}: {median:.2} s/step (min {:.2} max {:.2}), {:.3} ms/image, peak RSS {:.2} GiB",
        seconds[0],
        seconds[steps - 1],
        1e3 * median / images as f64,
        peak_gibibytes()
    );
    Ok(())
}

/// Seconds of every step but the first.
fn measure(config: &RunConfig, steps: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let (train, device) = (&config.train, choose_device(config.train.device, 0)?);
    let precision = simclr::device::choose_precision(train.precision, device);
    let shape = (3, train.image_size);
    let model = Model::new(&config.encoder, &config.head, (3, shape.1 as i64), 0, device, precision)?;
    let method = SimClr::new(model, config.loss.clone());
    let mut optimizer = Optimizer::new(&config.optim, method.params());
    println!("{} {}", describe(device), if precision == Precision::Bf16 { "bf16" } else { "f32" });
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let norm = NormConfig { scope: train.batch_norm, momentum: train.batch_norm_momentum, groups: 1 };
    let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 0 };
    let mut executor = executor(&context, train.is_chunked().then_some(1), false);
    let mut seconds = Vec::new();
    for step in 0..=steps as u64 {
        let views = views(config, step).into_iter();
        let start = Instant::now();
        let mut batches = views.map(|batch| Ok(DeviceBatch::on_host(batch, shape.0, device)));
        executor.step(&context, &mut optimizer, StepId { step, lr: LEARNING_RATE }, &mut batches)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    Ok(seconds)
}

/// The chunks of a batch, partitioned as by the loader.
fn views(config: &RunConfig, step: u64) -> Vec<Batch> {
    let train = &config.train;
    let chunking = Chunking {
        images: if train.is_chunked() { train.chunk } else { train.batch },
        shuffle_views: train.batch_norm == BatchNormScope::ChunkShuffled,
        passes: 1,
    };
    let ids: Vec<usize> = (0..train.batch).collect();
    let chunks = chunking.partition(&ids, 2, Key::chunking(0, 0, step), 1);
    let count = chunks.len();
    let batch = |(index, rows): (usize, simclr::data::chunking::ChunkRows)| Batch {
        step,
        epoch: 0,
        chunk: Chunk { index, count, pass: 0 },
        views: pixels((rows.first.len() + rows.second.len()) * 3 * train.image_size * train.image_size)
            .into(),
        ids: rows.first,
        second_view_ids: rows.second,
        failed: Vec::new(),
    };
    chunks.into_iter().enumerate().map(batch).collect()
}

/// `VmHWM` of Linux; 0 where the system does not tell.
fn peak_gibibytes() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0.0) / f64::from(1 << 20)
}
