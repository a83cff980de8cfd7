//! Methods with a momentum encoder and a queue: losses, moving average, executors, batch-norm groups.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod executors;
mod golden;
mod groups;
mod losses;

use simclr::{
    RunConfig,
    data::{Batch, Chunk, Chunking, chunking::ChunkRows, rng::Key},
    device::Precision,
    dist::{BatchShards, GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, MOMENTUM},
    exec::{DeviceBatch, NormConfig, StepContext, StepId, StepOutput, executor},
    losses::l2_normalize,
    methods::{Method, Moco, MocoV3, Momentum, MomentumEncoder, SimClr, SimClrMomentum},
    model::Model,
    optim::Optimizer,
    task::MethodKind,
};
use tch::{Device, Kind, Tensor};

const SIZE: usize = 16;
/// Length of a run, for schedules of the momentum.
const STEPS: u64 = 20;

fn config(more: &[&str]) -> RunConfig {
    let base = [
        "encoder.name=conv-c3",
        "encoder.width=0.25",
        "head.out=8",
        "train.image_size=16",
        "train.batch=12",
        "moco.queue=40",
        "moco.momentum=0.9",
        "loss.temperature=0.3",
        "task.objective=moco",
        "optim.kind=sgd",
        "optim.weight_decay=0",
        "optim.lr_in_momentum=false",
    ];
    let overrides: Vec<_> = base.iter().chain(more).map(|&text| text.to_owned()).collect();
    RunConfig::load(None, &overrides).unwrap()
}

fn model(config: &RunConfig) -> Model {
    let shape = (3, SIZE as i64);
    Model::new(&config.encoder, &config.head, shape, config.train.seed, Device::Cpu, Precision::F32).unwrap()
}

/// The method of `config`, as `train::setup` builds it.
fn method(config: &RunConfig) -> Box<dyn Method> {
    let (online, target) = (model(config), model(config));
    let predicts = config.task.objective == MethodKind::MocoV3;
    let online =
        if predicts { online.with_predictor(&config.head, config.moco.predictor_hidden) } else { online };
    let encoder = MomentumEncoder::new(target, &online, Momentum::new(&config.moco, STEPS));
    let (moco, seed, batch) = (&config.moco, config.train.seed, config.train.batch);
    match config.task.objective {
        MethodKind::Moco => {
            let method = Moco::new(online, encoder, moco, config.loss.temperature, seed);
            let shuffled = moco.shuffle && config.train.batch_norm_groups > 1;
            Box::new(if shuffled { method.shuffled(batch, seed) } else { method })
        }
        MethodKind::SimclrMomentum => {
            Box::new(SimClrMomentum::new(online, encoder, moco, config.loss.clone(), seed))
        }
        MethodKind::MocoV3 => Box::new(MocoV3::new(online, encoder, config.loss.temperature)),
        _ => Box::new(SimClr::new(online, config.loss.clone())),
    }
}

/// Random views of the images `first`, then of the images `second`.
fn batch(step: u64, chunk: Chunk, rows: ChunkRows) -> Batch {
    let view = |(id, view): (&usize, u64)| {
        let mut stream = Key { seed: 5, epoch: step, image: *id as u64, view }.stream();
        let colors: Vec<f32> = (0..12).map(|_| stream.unit()).collect();
        let pixel = |at: usize| colors[at / (SIZE * SIZE) * 4 + at % SIZE / 8 * 2 + at / SIZE % SIZE / 8];
        (0..3 * SIZE * SIZE).map(|at| 0.8 * pixel(at) + 0.2 * stream.unit()).collect::<Vec<f32>>()
    };
    let first = rows.first.iter().map(|id| (id, 0));
    let views: Vec<f32> = first.chain(rows.second.iter().map(|id| (id, 1))).flat_map(view).collect();
    Batch {
        step,
        epoch: 0,
        chunk,
        ids: rows.first,
        second_view_ids: rows.second,
        views: views.into(),
        failed: Vec::new(),
    }
}

/// The batch of `step`, whole or in chunks.
fn batches(step: u64, images: usize, chunking: Option<Chunking>) -> Vec<Batch> {
    let ids: Vec<usize> = (0..images).collect();
    let Some(chunking) = chunking else {
        return vec![batch(step, Chunk::WHOLE, ChunkRows { first: ids.clone(), second: ids })];
    };
    let parts = chunking.partition(&ids, 2, Key::chunking(1, 0, step), 1);
    let count = parts.len();
    let part = |(index, rows)| batch(step, Chunk { index, count, pass: 0 }, rows);
    parts.into_iter().enumerate().map(part).collect()
}

fn chunks(images: usize, scope: BatchNormScope) -> Chunking {
    Chunking { images, shuffle_views: scope == BatchNormScope::ChunkShuffled, passes: 1 }
}

/// Outputs of some steps, and the method and the optimizer after them.
struct RunResult {
    outputs: Vec<StepOutput>,
    method: Box<dyn Method>,
    optimizer: Optimizer,
}

impl RunResult {
    fn online(&self) -> Vec<(String, Tensor)> {
        let named = self.method.params().named();
        named.map(|(name, tensor)| (name.to_owned(), tensor.detach().copy())).collect()
    }

    /// Gradients after one step: momentum of SGD.
    fn gradients(&self) -> Vec<(String, Tensor)> {
        let state = self.optimizer.state().into_iter();
        state.filter(|(name, _)| name.starts_with("optim.first.")).collect()
    }
}

/// `steps` steps as `train::fit` takes them; a step is split into chunks if `chunked`.
fn train(config: &RunConfig, chunked: Option<(usize, BatchNormScope)>, steps: u64) -> RunResult {
    let mut method = method(config);
    let mut optimizer = Optimizer::new(&config.optim, method.params());
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let scope = chunked.map_or(BatchNormScope::Global, |(_, scope)| scope);
    let norm = NormConfig { scope, momentum: MOMENTUM, groups: config.train.batch_norm_groups };
    let mut outputs = Vec::new();
    for step in 0..steps {
        let chunking = chunked.map(|(images, scope)| chunks(images, scope));
        let all = batches(step, config.train.batch, chunking).into_iter();
        let mut all = all.map(|batch| Ok(DeviceBatch::on_host(batch, 3, Device::Cpu)));
        method.before_step(step);
        let context = StepContext { method: &*method, norm, group: &group, gradients: &gradients, seed: 0 };
        let mut executor = executor(&context, chunked.map(|_| 1), false);
        let id = StepId { step, lr: 0.05 };
        let output = executor.step(&context, &mut optimizer, id, &mut all).unwrap();
        let shards = BatchShards::new(&group, output.counts.clone());
        method.after_step(step, &output.z, &shards);
        outputs.push(output);
    }
    RunResult { outputs, method, optimizer }
}

/// |a - b| / |b|; equal zeros are equal.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let distance = (found - expected).norm().double_value(&[]);
    if distance == 0.0 { 0.0 } else { distance / expected.norm().double_value(&[]) }
}

/// The largest relative distance between tensors of the same name, and that name.
fn furthest(found: &[(String, Tensor)], expected: &[(String, Tensor)]) -> (f64, String) {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected).map(|((name, a), (twin, b))| {
        assert_eq!(name, twin);
        (relative(&a.to_kind(Kind::Double), &b.to_kind(Kind::Double)), name.clone())
    });
    pairs.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// A tensor of the method's state.
fn state(method: &dyn Method, name: &str) -> Tensor {
    method.state().into_iter().find(|(found, _)| found == name).unwrap().1.copy()
}

/// Unit rows in f64.
fn unit(z: &Tensor) -> Tensor {
    l2_normalize(&z.to_kind(Kind::Double))
}
