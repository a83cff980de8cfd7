//! The step launched without host-device synchronisation, as for CUDA graph capture, against the eager step. Kernels are emulated
//! here; the capture itself needs a GPU.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr::{
    RunConfig,
    data::{Batch, Chunk, rng::Key},
    device::{DeviceChoice, Precision, choose_device},
    dist::{GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, MOMENTUM},
    exec::{
        CudaGraphExecutor, DeviceBatch, Eager, Executor, LaunchedStep, NormConfig, StepContext, StepId,
        StepOutput, executor, launch_step,
    },
    methods::{Method as _, SimClr},
    model::Model,
    optim::Optimizer,
};
use simclr_shim::{
    gpu::{Order, emulated},
    operations,
    stream::StreamGuard,
};
use tch::{Device, Kind, Tensor};

const IMAGES: usize = 5;
const SIZE: usize = 8;

fn config(optimizer: &str) -> RunConfig {
    config_of(optimizer, "loss.temperature=0.5")
}

fn config_of(optimizer: &str, loss: &str) -> RunConfig {
    let kind = format!("optim.kind={optimizer}");
    let set = ["encoder.name=conv-c3", "encoder.width=0.25", "head.out=8", &kind];
    let set = set.into_iter().chain(loss.split(' ')).map(str::to_owned);
    RunConfig::load(None, &set.collect::<Vec<_>>()).unwrap()
}

/// Every loss.
const LOSSES: [&str; 8] = [
    "loss.temperature=0.5",
    "loss.decoupled=true loss.negatives=other-view",
    "loss.decoupled=true loss.decoupled_weight_sigma=0.5",
    "loss.debias_prior=0.1",
    "loss.hard_beta=1 loss.debias_prior=0.1",
    "loss.kind=nt-logistic",
    "loss.kind=margin",
    "loss.semi_hard=true",
];

fn batch(step: u64, images: usize) -> Batch {
    let key = Key { seed: 9, epoch: 0, image: step, view: 0 };
    let pixels = key.stream().normals(2 * images * 3 * SIZE * SIZE);
    let ids: Vec<_> = (0..images).collect();
    Batch {
        step,
        epoch: 0,
        chunk: Chunk::WHOLE,
        second_view_ids: ids.clone(),
        ids,
        views: pixels.into_iter().map(|x| 0.5 + 0.2 * x).collect::<Vec<_>>().into(),
        failed: Vec::new(),
    }
}

/// Outputs of some steps, and weights, running statistics and optimizer state after them.
struct RunResult {
    steps: Vec<StepOutput>,
    state: Vec<(String, Tensor)>,
}

type StepFn<'a> = dyn FnMut(&StepContext<'_>, &mut Optimizer, &Batch, f64) -> StepOutput + 'a;

/// Runs `step` for every batch, from the same initial weights.
fn run(
    config: &RunConfig,
    (device, precision): (Device, Precision),
    batches: &[Batch],
    step: &mut StepFn<'_>,
) -> RunResult {
    let shape = (3, SIZE as i64);
    let model = Model::new(&config.encoder, &config.head, shape, 1, device, precision).unwrap();
    let method = SimClr::new(model, config.loss.clone());
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let mut optimizer = Optimizer::new(&config.optim, method.params());
    let norm = NormConfig { scope: BatchNormScope::Global, momentum: MOMENTUM, groups: 1 };
    let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 0 };
    let rate = |at: usize| 0.1 + 0.05 * at as f64;
    let steps = batches.iter().enumerate().map(|(at, batch)| step(&context, &mut optimizer, batch, rate(at)));
    let steps = steps.collect();
    let named = method
        .params()
        .named()
        .map(|(name, tensor)| (name.to_owned(), tensor.detach().to_device(Device::Cpu)));
    let moments = optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu)));
    RunResult { steps, state: named.chain(moments).collect() }
}

fn on_device(context: &StepContext<'_>, batch: &Batch) -> DeviceBatch {
    DeviceBatch::on_host(batch.clone(), 3, context.method.params().device())
}

fn step_by(
    executor: &mut dyn Executor,
    context: &StepContext<'_>,
    optimizer: &mut Optimizer,
    (batch, lr): (&Batch, f64),
) -> StepOutput {
    let id = StepId { step: batch.step, lr };
    executor.step(context, optimizer, id, &mut std::iter::once(Ok(on_device(context, batch)))).unwrap()
}

fn eager(context: &StepContext<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64) -> StepOutput {
    step_by(&mut Eager, context, optimizer, (batch, lr))
}

fn read(launched: &LaunchedStep, batch: &Batch) -> StepOutput {
    launched.download(batch.ids.clone(), vec![batch.ids.len()]).unwrap().wait().unwrap()
}

fn launched(context: &StepContext<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64) -> StepOutput {
    optimizer.set_step_scalars(context.method.params(), lr).unwrap();
    let views = on_device(context, batch).views().unwrap();
    read(&launch_step(context, optimizer, (&views, &[batch.ids.len()])).unwrap(), batch)
}

fn assert_same(found: &RunResult, expected: &RunResult) {
    for (found, expected) in found.steps.iter().zip(&expected.steps) {
        let scalars = |output: &StepOutput| [output.loss, output.accuracy, output.gradient_norm];
        assert_eq!(scalars(found), scalars(expected));
        assert_eq!(found.counts, expected.counts);
    }
    for ((name, found), (_, expected)) in found.state.iter().zip(&expected.state) {
        assert_eq!(found, expected, "{name}");
    }
}

/// Bit-identical with GPU kernels, equal up to rounding with CPU kernels.
#[test]
fn a_launched_step_equals_the_eager_step() {
    for optimizer in ["lars", "lamb"] {
        let config = config(optimizer);
        let batches: Vec<_> = (0..3).map(|step| batch(step, IMAGES)).collect();
        let target = (Device::Cpu, Precision::F32);
        let [by_eager, by_launch] =
            [eager as fn(&StepContext<'_>, &mut Optimizer, &Batch, f64) -> StepOutput, launched]
                .map(|mut step| emulated(Order::Rising, || run(&config, target, &batches, &mut step)));
        assert_same(&by_launch, &by_eager);
        let cpu = run(&config, target, &batches, &mut eager);
        for ((name, found), (_, expected)) in by_launch.state.iter().zip(&cpu.state) {
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{optimizer} {name}: {difference}");
        }
        assert!((by_launch.steps[2].loss - cpu.steps[2].loss).abs() < 1e-5);
        assert!((by_launch.steps[2].gradient_norm / cpu.steps[2].gradient_norm - 1.0).abs() < 1e-4);
    }
}

/// Operations that cannot be captured, because the host reads a value.
const SYNCS: [&str; 5] =
    ["aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"];

#[test]
fn a_launched_step_contains_no_host_device_synchronisation() {
    let syncs = |names: &[String]| names.iter().filter(|name| SYNCS.contains(&name.as_str())).count();
    let x = Tensor::ones([1], (Kind::Float, Device::Cpu));
    assert!(syncs(&operations(|| x.double_value(&[0])).unwrap().1) > 0, "a read is detected");
    for optimizer in ["lars", "adamw", "muon"] {
        let mut seen = 0;
        let mut step = |context: &StepContext<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64| {
            optimizer.set_step_scalars(context.method.params(), lr).unwrap();
            let views = on_device(context, batch).views().unwrap();
            let (launched, names) =
                operations(|| launch_step(context, optimizer, (&views, &[batch.ids.len()])).unwrap())
                    .unwrap();
            assert_eq!(syncs(&names), 0, "{names:?}");
            seen += names.len();
            read(&launched, batch)
        };
        let target = (Device::Cpu, Precision::Bf16);
        emulated(Order::Rising, || run(&config(optimizer), target, &[batch(0, IMAGES)], &mut step));
        assert!(seen > 100, "{seen} operations: forward and backward pass");
    }
}

/// The host reads the loss after the update, so the device itself must skip the update of a non-finite step.
#[test]
fn a_non_finite_step_leaves_the_weights() {
    let config = config("lars");
    let mut invalid = batch(0, IMAGES);
    let mut pixels = invalid.pixels().to_vec();
    pixels[7] = f32::NAN;
    invalid.views = pixels.into();
    let target = (Device::Cpu, Precision::F32);
    let result = emulated(Order::Rising, || run(&config, target, &[invalid], &mut launched));
    assert_eq!(result.steps[0].non_finite().unwrap().0, "the loss");
    let initial = run(&config, target, &[], &mut launched);
    for ((name, found), (_, expected)) in result.state.iter().zip(&initial.state) {
        if !name.contains(".running_") && name != "optim.steps" {
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn the_cpu_runs_eagerly_without_a_notice() {
    let config = config("lars");
    let batches: Vec<_> = (0..5).map(|step| batch(step, IMAGES)).collect();
    let result =
        run(&config, (Device::Cpu, Precision::F32), &batches, &mut |context, optimizer, batch, lr| {
            assert!(!CudaGraphExecutor::is_supported(context));
            let mut executor = executor(context, None, true);
            let output = step_by(&mut *executor, context, optimizer, (batch, lr));
            assert_eq!(executor.take_notice(), None);
            output
        });
    assert_same(&result, &run(&config, (Device::Cpu, Precision::F32), &batches, &mut eager));
}

/// A replay overwrites the outputs of the one before, possibly before the host has read its scalars.
#[test]
fn scalars_on_their_way_to_the_host_keep_their_values() {
    check_scalars_on_their_way(Device::Cpu);
}

#[test]
#[ignore = "needs a GPU"]
fn scalars_on_their_way_from_a_gpu_keep_their_values() {
    check_scalars_on_their_way(choose_device(DeviceChoice::Cuda, 0).unwrap());
}

fn check_scalars_on_their_way(device: Device) {
    let _stream = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device))).unwrap();
    let mut scalars = Tensor::from_slice(&[1.5, 0.25, 3.0]).to_device(device);
    let empty = || Tensor::empty([0], (Kind::Float, device));
    let step = LaunchedStep { scalars: scalars.shallow_clone(), h: empty(), z: empty() };
    let first = step.download(vec![7, 8], vec![2]).unwrap();
    let _ = scalars.fill_(9.0);
    let second = step.download(vec![5], vec![1]).unwrap();
    let [first, second] = [first, second].map(|step| step.wait().unwrap());
    assert_eq!((first.loss, first.accuracy, first.gradient_norm), (1.5, 0.25, 3.0));
    assert_eq!((first.ids, first.counts), (vec![7, 8], vec![2]));
    assert_eq!((second.loss, second.gradient_norm, second.ids), (9.0, 9.0, vec![5]));
}

/// Of eight steps the last five are replayed, except one with a smaller batch; all are bit-identical to eager steps.
#[test]
#[ignore = "needs a GPU"]
fn a_captured_run_equals_the_eager_run() {
    let device = choose_device(DeviceChoice::Cuda, 0).unwrap();
    let _stream = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device))).unwrap();
    simclr_shim::stream::set_deterministic(true);
    let precisions = [Precision::F32, Precision::Bf16];
    for (precision, loss) in precisions.into_iter().flat_map(|precision| LOSSES.map(|loss| (precision, loss)))
    {
        let config = config_of("lars", loss);
        let batches: Vec<_> =
            (0..8).map(|step| batch(step, if step == 5 { IMAGES - 1 } else { IMAGES })).collect();
        let expected = run(&config, (device, precision), &batches, &mut eager);
        let mut notices = Vec::new();
        let mut executor = CudaGraphExecutor::default();
        let found = run(&config, (device, precision), &batches, &mut |context, optimizer, batch, lr| {
            assert!(CudaGraphExecutor::is_supported(context));
            let output = step_by(&mut executor, context, optimizer, (batch, lr));
            notices.extend(executor.take_notice());
            output
        });
        assert_eq!(notices, ["the step is captured as a CUDA graph"], "{loss}");
        assert_eq!(executor.replays(), 4);
        assert_same(&found, &expected);
    }
}
