//! A batch in chunks against the same batch in one pass: loss, all gradients, running statistics, twenty steps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
};

use simclr::{
    RunConfig,
    config::TrainConfig,
    data::{
        AugmentConfig, Chunking, DataError, Dataset, Image, Loader, LoaderConfig, Sample, dataset::Source,
        decode::Decoding, loader::Batches, rng::Key,
    },
    device::{Precision, to_device},
    dist::{GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, BatchStatistics, MOMENTUM, Mode},
    exec::{DeviceBatch, NormConfig, StepContext, StepId, StepOutput, executor},
    losses::contrastive_loss,
    methods::{Classifier, Distillation, Method, SimClr},
    model::Model,
    optim::{OptimConfig, OptimKind, Optimizer},
    task::MethodKind,
};
use tch::{Device, Tensor};

/// Random images. Those in `bad` cannot be decoded, those in `flaky` only the first time.
#[derive(Default)]
struct Noise {
    bad: HashSet<usize>,
    flaky: Mutex<HashSet<usize>>,
    seen: Mutex<HashSet<usize>>,
}

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        let again = !self.seen.lock().unwrap().insert(index);
        if self.bad.contains(&index) || again && self.flaky.lock().unwrap().contains(&index) {
            return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
        }
        let mut stream = Key { seed: 77, epoch: 0, image: index as u64, view: 0 }.stream();
        // A 4x4 grid of random colours, so that images differ in more than pixel noise.
        let colors: Vec<u8> = (0..4 * 4 * channels).map(|_| stream.below(256) as u8).collect();
        let square = |pixel: usize| (pixel / 24 / 6 * 4 + pixel % 24 / 6) * channels;
        let data = (0..24 * 24).flat_map(|pixel| colors[square(pixel)..][..channels].to_vec()).collect();
        Ok(Image::new(24, 24, channels, data))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        index as u64
    }
}

fn shape(config: &RunConfig) -> (usize, usize) {
    (3, config.train.image_size)
}

fn config(more: &[&str]) -> RunConfig {
    let base = [
        "encoder.name=conv-c3",
        "encoder.width=0.5",
        "head.out=16",
        "loss.temperature=0.5",
        "train.image_size=16",
    ];
    let overrides: Vec<_> = base.iter().chain(more).map(|&text| text.to_owned()).collect();
    RunConfig::load(None, &overrides).unwrap()
}

fn model(config: &RunConfig) -> Model {
    let size = config.train.image_size as i64;
    let seed = config.train.seed;
    let model =
        Model::new(&config.encoder, &config.head, (3, size), seed, Device::Cpu, Precision::F32).unwrap();
    // Residual branches scaled by 0 have no gradients to compare; scaled by 1, deep networks amplify rounding.
    for param in
        model.params.params().iter().filter(|param| param.tensor.abs().max().double_value(&[]) == 0.0)
    {
        if param.name.ends_with(".weight") {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().fill_(0.2));
        }
    }
    model
}

/// Batches of `batch` images from a set of 64.
struct Trial<'a> {
    config: &'a RunConfig,
    batch: usize,
    source: Noise,
}

impl Trial<'_> {
    fn batches(self, chunking: Option<Chunking>, steps: u64) -> Batches {
        let samples = (0..64).map(|index| Sample { name: index.to_string(), label: None }).collect();
        let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(self.source)));
        let loader = LoaderConfig {
            views: self.config.task.objective.views(),
            batch: self.batch,
            size: self.config.train.image_size,
            seed: 3,
            threads: 1,
            prefetch: 2,
            max_bad_share: 1.0,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(dataset, AugmentConfig::default(), loader).unwrap();
        let loader = chunking.map_or(loader.clone(), |chunking| loader.chunked(chunking));
        loader.batches(0, steps).unwrap()
    }
}

/// Momentum SGD; its momentum after the first step is the gradient.
fn optimizer(model: &Model) -> Optimizer {
    let sgd = OptimConfig {
        kind: OptimKind::Sgd,
        weight_decay: 0.0,
        lr_in_momentum: false,
        ..OptimConfig::default()
    };
    Optimizer::new(&sgd, &model.params)
}

/// Results of some steps.
struct RunResult {
    steps: Vec<(Vec<usize>, StepOutput)>,
    /// Momentum of the optimizer; after one step, the gradient.
    gradients: BTreeMap<String, Tensor>,
    /// Parameters and running statistics.
    state: BTreeMap<String, Tensor>,
}

impl RunResult {
    /// Running statistics.
    fn running(&self) -> BTreeMap<String, Tensor> {
        let running = self.state.iter().filter(|(name, _)| name.contains(".running_"));
        running.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }
}

fn method(config: &RunConfig) -> Box<dyn Method> {
    let model = model(config);
    match config.task.objective {
        MethodKind::Supervised => Box::new(Classifier::new(model, (0..64).map(|i| i % 3).collect(), 16)),
        MethodKind::Distillation => {
            let teacher = self::model(&RunConfig {
                train: TrainConfig { seed: 99, ..config.train.clone() },
                ..config.clone()
            });
            let labels = (0..64).map(|i| i % 3 - 1).collect();
            Box::new(Distillation::new(model, teacher, &config.distill, labels, 16))
        }
        _ => Box::new(SimClr::new(model, config.loss.clone())),
    }
}

fn train(trial: Trial<'_>, chunks: Option<(usize, BatchNormScope, usize)>, steps: u64) -> RunResult {
    let config = trial.config;
    let method = method(config);
    let mut optimizer = optimizer(method.model());
    let chunking = chunks.map(|(images, over, passes)| Chunking {
        images,
        shuffle_views: over == BatchNormScope::ChunkShuffled,
        passes,
    });
    let shape = shape(config);
    let batches = trial.batches(chunking, steps);
    let mut batches = batches.map(|batch| Ok(DeviceBatch::on_host(batch?, shape.0, Device::Cpu)));
    let (group, mut done) = (ProcessGroup::alone(), Vec::new());
    let buckets = GradientBuckets::new(method.params(), &group);
    let scope = chunks.map_or(BatchNormScope::Global, |(_, over, _)| over);
    let norm = NormConfig { scope, momentum: MOMENTUM, groups: 1 };
    let context = StepContext { method: &*method, norm, group: &group, gradients: &buckets, seed: 3 };
    let mut executor = executor(&context, chunks.map(|(_, _, passes)| passes), false);
    for step in 0..steps {
        let id = StepId { step, lr: config.optim.lr };
        let output = executor.step(&context, &mut optimizer, id, &mut batches).unwrap();
        done.push((output.ids.clone(), output));
    }
    let named = |prefix: &str, tensors: Vec<(String, Tensor)>| {
        tensors
            .into_iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.copy())))
            .collect()
    };
    let state = method.params().named().map(|(name, tensor)| (name.to_owned(), tensor.detach()));
    RunResult {
        steps: done,
        gradients: named("optim.first.", optimizer.state()),
        state: named("", state.collect()),
    }
}

fn whole(config: &RunConfig, batch: usize, steps: u64) -> RunResult {
    train(Trial { config, batch, source: Noise::default() }, None, steps)
}

fn chunked(
    config: &RunConfig,
    batch: usize,
    (chunk, over): (usize, BatchNormScope),
    steps: u64,
) -> RunResult {
    train(Trial { config, batch, source: Noise::default() }, Some((chunk, over, 1)), steps)
}

/// |a - b| / |b|; equal zeros are equal.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let distance = (found - expected).norm().double_value(&[]);
    if distance == 0.0 { 0.0 } else { distance / expected.norm().double_value(&[]) }
}

/// The largest relative error of `found`'s tensors.
fn worst(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>) -> f64 {
    assert!(found.keys().eq(expected.keys()));
    let all = expected.iter().map(|(name, tensor)| {
        assert!(tensor.abs().max().double_value(&[]) > 0.0, "{name} is zero, so it tests nothing");
        relative(&found[name], tensor)
    });
    all.fold(0.0, f64::max)
}

/// Chunks of 1/2, 1/4, 1/8 of the batch and of unequal size give its loss and all gradients to 1e-5, for the best of five models.
/// Not for all, because rounding can flip the sign of a pre-activation near 0 and change the gradients below that ReLU, by a
/// thousandth in wide networks and more in these.
#[test]
fn global_norm_gives_the_gradient_of_the_whole_batch() {
    // Images per batch, images per chunk.
    let even = (16, &[8, 4, 2][..]);
    let uneven = (13, &[5][..]);
    // No uneven chunks for ResNet-50: over 13 images, rounding alone changed its gradients by 1.2e-5.
    for (encoder, cases) in [
        (&[][..], &[even, uneven][..]),
        (&["encoder.name=resnet18", "encoder.width=0.125"], &[even, uneven]),
        (&["encoder.name=resnet50", "encoder.width=0.125"], &[even]),
        (&["encoder.name=resnet18", "encoder.width=0.125", "encoder.sk_ratio=0.0625"], &[even]),
    ] {
        let config = config(encoder);
        for &(batch, chunks) in cases {
            let mut errors: Vec<f64> =
                (5..10).map(|seed| error_of_chunks(&config, seed, batch, chunks)).collect();
            errors.sort_by(f64::total_cmp);
            let case = format!("{:?}, {batch} images", config.encoder.name);
            assert!(errors[0] < 1e-5 && errors[4] < 0.1, "{case}: {errors:?}");
        }
    }
}

/// The largest relative error of any gradient, chunks of every size against the whole batch.
fn error_of_chunks(config: &RunConfig, seed: u64, batch: usize, chunks: &[usize]) -> f64 {
    let mut config = config.clone();
    config.train.seed = seed;
    let expected = whole(&config, batch, 1);
    let errors = chunks.iter().map(|&chunk| {
        let found = chunked(&config, batch, (chunk, BatchNormScope::Global), 1);
        let ((ids, a), (all, b)) = (&found.steps[0], &expected.steps[0]);
        assert_eq!(ids, all);
        assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "chunks of {chunk}: loss {} {}", a.loss, b.loss);
        assert_eq!(a.accuracy, b.accuracy);
        // h is in the order of chunks; its second moments, which health metrics use, do not depend on the order.
        let moments = |h: &Tensor| h.tr().matmul(h);
        assert!(relative(&moments(&a.h), &moments(&b.h)) < 1e-5 && relative(&a.z, &b.z) < 1e-4);
        assert!(worst(&found.running(), &expected.running()) < 1e-5);
        worst(&found.gradients, &expected.gradients)
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn twenty_steps_in_chunks_follow_whole_batches() {
    // Low learning rates, because at higher ones even whole-batch runs diverge from initial weights that differ by 1e-7.
    for more in [&["optim.lr=0.01"][..], &["encoder.name=resnet18", "encoder.width=0.125", "optim.lr=0.0003"]]
    {
        let config = config(more);
        let expected = whole(&config, 64, 20);
        let initial = model(&config);
        let first = &initial.params.params()[0];
        assert!(relative(&expected.state[&first.name], &first.tensor.detach()) > 1e-4, "it trains");
        for chunk in [32, 16, 8] {
            let found = chunked(&config, 64, (chunk, BatchNormScope::Global), 20);
            for ((_, a), (_, b)) in found.steps.iter().zip(&expected.steps) {
                assert!((a.loss / b.loss - 1.0).abs() < 1e-3, "chunks of {chunk}: {} {}", a.loss, b.loss);
            }
            // Over all tensors at once, because single shifts are still close to 0.
            let all = |result: &RunResult| {
                Tensor::cat(&result.state.values().map(|t| t.reshape(-1)).collect::<Vec<_>>(), 0)
            };
            let error = relative(&all(&found), &all(&expected));
            assert!(error < 1e-3, "chunks of {chunk}: {error:e}");
        }
    }
}

/// Batch norm per chunk equals one autograd graph through all chunks, each normalised separately, with running-statistics updates
/// that together have the weight of one batch.
#[test]
fn chunk_norm_gives_the_gradient_of_chunks_in_one_graph() {
    for over in [BatchNormScope::Chunk, BatchNormScope::ChunkShuffled] {
        let config = config(&["encoder.name=resnet18", "encoder.width=0.125"]);
        let found = chunked(&config, 16, (4, over), 1);
        let model = model(&config);
        let chunking =
            Chunking { images: 4, shuffle_views: over == BatchNormScope::ChunkShuffled, passes: 1 };
        let chunks: Vec<_> = Trial { config: &config, batch: 16, source: Noise::default() }
            .batches(Some(chunking), 1)
            .map(Result::unwrap)
            .collect();
        assert_eq!(chunks.len(), 4);
        let momentum = 1.0 - (1.0 - MOMENTUM).powf(0.25);
        let mode = Mode::Train(BatchStatistics { momentum, ..BatchStatistics::default() });
        let (mut rows, size) = (BTreeMap::new(), config.train.image_size as i64);
        for chunk in &chunks {
            let count = (chunk.ids.len() + chunk.second_view_ids.len()) as i64;
            let views = to_device(chunk.pixels(), [count, 3, size, size], Device::Cpu).unwrap();
            let (_, z) = model.forward(&views, &mode).unwrap();
            let first = chunk.ids.iter().map(|&id| (0, id));
            for (row, view) in first.chain(chunk.second_view_ids.iter().map(|&id| (1, id))).enumerate() {
                rows.insert(view, z.get(row as i64));
            }
        }
        let ids: Vec<_> = chunks.iter().flat_map(|chunk| chunk.ids.clone()).collect();
        let view = |view: i32| ids.iter().map(move |&id| (view, id));
        let z: Vec<_> = view(0).chain(view(1)).map(|key| &rows[&key]).collect();
        let loss = contrastive_loss(&Tensor::stack(&z, 0), &config.loss).loss;
        loss.backward();
        assert!((found.steps[0].1.loss / loss.double_value(&[]) - 1.0).abs() < 1e-5);
        let gradients = model.params.params().iter().map(|param| (param.name.clone(), param.tensor.grad()));
        assert!(worst(&found.gradients, &gradients.collect()) < 1e-5);
        for (name, buffer) in model.params.buffers() {
            assert!(relative(&found.state[name], buffer) < 1e-6, "{name}");
        }
        // It differs from the whole batch, because batch norm is part of the loss.
        let plain = whole(&config, 16, 1);
        assert!((found.steps[0].1.loss / plain.steps[0].1.loss - 1.0).abs() > 1e-4);
    }
}

#[test]
fn recomputed_views_equal_kept_views() {
    let config = config(&[]);
    for over in [BatchNormScope::Chunk, BatchNormScope::ChunkShuffled] {
        let source = || Noise { bad: [3, 4, 17, 40, 41, 42].into(), ..Noise::default() };
        let run = |passes| {
            train(Trial { config: &config, batch: 32, source: source() }, Some((8, over, passes)), 4)
        };
        let (kept, again) = (run(1), run(2));
        assert_eq!(kept.steps.len(), 4);
        let lost: usize = kept.steps[..2].iter().map(|(ids, _)| 32 - ids.len()).sum();
        assert_eq!(lost, 6, "every image once per epoch");
        for ((ids, a), (others, b)) in kept.steps.iter().zip(&again.steps) {
            assert_eq!((ids, a.loss, a.gradient_norm), (others, b.loss, b.gradient_norm));
        }
        for (name, tensor) in &kept.state {
            assert_eq!(tensor, &again.state[name], "{name}");
        }
    }
}

/// With shuffle BN, the first view of a flaky image is encoded before its second view fails. The loss is that of the other images,
/// and no gradient is propagated for this one.
#[test]
fn a_view_without_partner_is_excluded_from_the_loss() {
    let config = config(&["head.norm=none"]);
    let source = || Noise { flaky: Mutex::new([20].into()), ..Noise::default() };
    let result = train(
        Trial { config: &config, batch: 64, source: source() },
        Some((16, BatchNormScope::ChunkShuffled, 1)),
        1,
    );
    let (ids, output) = &result.steps[0];
    assert!(ids.len() == 63 && !ids.contains(&20));
    assert_eq!(output.z.size(), [126, 16]);
    assert!(output.gradient_norm.is_finite());
    let again = Trial { config: &config, batch: 64, source: source() };
    let chunking = Chunking { images: 16, shuffle_views: true, passes: 2 };
    let last = again.batches(Some(chunking), 1).last().unwrap();
    assert!(
        matches!(last, Err(DataError::EmptyBatch { .. })),
        "a view that cannot be recomputed ends the run: {last:?}"
    );
}

/// Global batch norm over chunks also gives the loss of the whole batch of methods with one view per image.
#[test]
fn chunks_of_single_views_give_the_gradient_of_the_whole_batch() {
    let distillation = [
        "task.objective=distillation",
        "distill.teacher=unused",
        "distill.label_weight=0.3",
        "distill.temperature=2",
    ];
    for task in [&["task.objective=supervised"][..], &distillation] {
        let config = config(task);
        let expected = whole(&config, 16, 1);
        let found = chunked(&config, 16, (4, BatchNormScope::Global), 1);
        assert_eq!(found.steps[0].0, expected.steps[0].0);
        assert!((found.steps[0].1.loss / expected.steps[0].1.loss - 1.0).abs() < 1e-5, "{task:?}");
        assert!(worst(&found.gradients, &expected.gradients) < 1e-5, "{task:?}");
    }
}

#[test]
fn non_finite_loss_leaves_the_weights() {
    for over in [BatchNormScope::Global, BatchNormScope::Chunk] {
        let config = config(&["loss.temperature=1e-300", "loss.normalize=false", "head.norm=none"]);
        let result = chunked(&config, 16, (4, over), 1);
        assert_eq!(result.steps[0].1.non_finite().unwrap().0, "the loss");
        let initial = model(&config);
        for param in initial.params.params() {
            assert_eq!(param.tensor.detach(), result.state[&param.name], "{}", param.name);
        }
    }
}
