//! A step that a GPU is asked for all at once, as it is recorded, against the step by step one. Here kernels are emulated; the
//! recording itself needs a GPU.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr::{
    RunConfig,
    data::{Batch, Chunk, rng::Key},
    device::{DeviceChoice, Precision, choose_device},
    dist::{GradientBuckets, ProcessGroup},
    encoder::BatchNormScope,
    model::Model,
    objective::Objective,
    optim::Optimizer,
    train::{
        recorded::{Recorder, enqueue},
        step::{Setting, Stepped, train_step},
    },
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
    let kind = format!("optim.kind={optimizer}");
    let set = ["encoder.name=conv-c3", "encoder.width=0.25", "head.out=8", "loss.temperature=0.5", &kind];
    RunConfig::load(None, &set.map(str::to_owned)).unwrap()
}

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

/// What some steps leave behind: their figures, weights and running statistics.
struct Left {
    steps: Vec<Stepped>,
    state: Vec<(String, Tensor)>,
}

/// Makes every step of `batches` by `step`, of a model that starts the same every time.
fn run(
    config: &RunConfig,
    (device, precision): (Device, Precision),
    batches: &[Batch],
    step: &mut dyn FnMut(&Setting<'_>, &mut Optimizer, &Batch, f64) -> Stepped,
) -> Left {
    let shape = (3, SIZE as i64);
    let model = Model::new(&config.encoder, &config.head, shape, 1, device, precision).unwrap();
    let (group, objective) = (ProcessGroup::alone(), Objective::Contrastive(config.loss.clone()));
    let buckets = GradientBuckets::new(&model.params, &group);
    let mut optimizer = Optimizer::new(&config.optim, &model.params);
    let setting = Setting {
        model: &model,
        objective: &objective,
        over: BatchNormScope::Global,
        shape: (3, SIZE),
        group: &group,
        buckets: &buckets,
    };
    let rate = |at: usize| 0.1 + 0.05 * at as f64;
    let steps = batches.iter().enumerate().map(|(at, batch)| step(&setting, &mut optimizer, batch, rate(at)));
    let steps = steps.collect();
    let named =
        model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.detach().to_device(Device::Cpu)));
    let moments = optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu)));
    Left { steps, state: named.chain(moments).collect() }
}

fn step_by_step(setting: &Setting<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64) -> Stepped {
    train_step(setting, optimizer, batch, lr).unwrap().1
}

fn at_once(setting: &Setting<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64) -> Stepped {
    optimizer.set_step_scalars(&setting.model.params, lr);
    enqueue(setting, optimizer, &setting.views(batch).unwrap()).unwrap().read()
}

fn same(found: &Left, expected: &Left) {
    for (found, expected) in found.steps.iter().zip(&expected.steps) {
        let figures = |done: &Stepped| [done.loss, done.accuracy, done.gradient_norm];
        assert_eq!(figures(found), figures(expected));
        assert_eq!(found.counts, expected.counts);
    }
    for ((name, found), (_, expected)) in found.state.iter().zip(&expected.state) {
        assert_eq!(found, expected, "{name}");
    }
}

/// Asked for at once or step by step, on kernels for GPUs: the same bits. On the CPU's kernels: the same numbers.
#[test]
fn a_step_asked_for_at_once_is_the_step() {
    for optimizer in ["lars", "lamb"] {
        let config = config(optimizer);
        let batches: Vec<_> = (0..3).map(|step| batch(step, IMAGES)).collect();
        let on = (Device::Cpu, Precision::F32);
        let [by_step, whole] =
            [step_by_step as fn(&Setting<'_>, &mut Optimizer, &Batch, f64) -> Stepped, at_once]
                .map(|mut step| emulated(Order::Rising, || run(&config, on, &batches, &mut step)));
        same(&whole, &by_step);
        let cpu = run(&config, on, &batches, &mut step_by_step);
        for ((name, found), (_, expected)) in whole.state.iter().zip(&cpu.state) {
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{optimizer} {name}: {difference}");
        }
        assert!((whole.steps[2].loss - cpu.steps[2].loss).abs() < 1e-5);
        assert!((whole.steps[2].gradient_norm / cpu.steps[2].gradient_norm - 1.0).abs() < 1e-4);
    }
}

/// What cannot be recorded: the host reads a number, or sizes depend on numbers.
const WAITS: [&str; 5] =
    ["aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"];

#[test]
fn a_step_asked_for_at_once_waits_for_no_number() {
    let waits = |names: &[String]| names.iter().filter(|name| WAITS.contains(&name.as_str())).count();
    let x = Tensor::ones([1], (Kind::Float, Device::Cpu));
    assert!(waits(&operations(|| x.double_value(&[0])).unwrap().1) > 0, "a read is seen");
    for optimizer in ["lars", "adamw"] {
        let mut seen = 0;
        let mut step = |setting: &Setting<'_>, optimizer: &mut Optimizer, batch: &Batch, lr: f64| {
            optimizer.set_step_scalars(&setting.model.params, lr);
            let views = setting.views(batch).unwrap();
            let (made, names) = operations(|| enqueue(setting, optimizer, &views).unwrap()).unwrap();
            assert_eq!(waits(&names), 0, "{names:?}");
            seen += names.len();
            made.read()
        };
        let on = (Device::Cpu, Precision::Bf16);
        emulated(Order::Rising, || run(&config(optimizer), on, &[batch(0, IMAGES)], &mut step));
        assert!(seen > 100, "{seen} operations: forward and backward pass");
    }
}

/// The host looks only afterwards; by then a step whose loss is no number has moved no weight.
#[test]
fn a_step_that_is_no_number_moves_no_weight() {
    let config = config("lars");
    let mut spoilt = batch(0, IMAGES);
    let mut pixels = spoilt.pixels().to_vec();
    pixels[7] = f32::NAN;
    spoilt.views = pixels.into();
    let on = (Device::Cpu, Precision::F32);
    let left = emulated(Order::Rising, || run(&config, on, &[spoilt], &mut at_once));
    assert_eq!(left.steps[0].non_finite().unwrap().0, "the loss");
    let fresh = run(&config, on, &[], &mut at_once);
    for ((name, found), (_, expected)) in left.state.iter().zip(&fresh.state) {
        if !name.contains(".running_") && name != "optim.steps" {
            assert_eq!(found, expected, "{name}");
        }
    }
}

/// On the CPU, emulated or not, there is nothing to record, and nothing is said about it.
#[test]
fn the_cpu_goes_step_by_step() {
    let config = config("lars");
    let batches: Vec<_> = (0..5).map(|step| batch(step, IMAGES)).collect();
    let mut recorder = None;
    let left = run(&config, (Device::Cpu, Precision::F32), &batches, &mut |setting, optimizer, batch, lr| {
        let recorder = recorder.get_or_insert_with(|| Recorder::new(setting, true));
        assert!(recorder.step(setting, optimizer, &setting.views(batch).unwrap(), lr).unwrap().is_none());
        assert_eq!(recorder.note(), None);
        step_by_step(setting, optimizer, batch, lr)
    });
    same(&left, &run(&config, (Device::Cpu, Precision::F32), &batches, &mut step_by_step));
}

/// The recording itself: eight steps of which the last five are replayed, and one batch that lacks an image, to the bit.
#[test]
#[ignore = "needs a GPU"]
fn a_recorded_run_is_the_run() {
    let device = choose_device(DeviceChoice::Cuda, 0).unwrap();
    let _own = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device))).unwrap();
    simclr_shim::stream::set_deterministic(true);
    for precision in [Precision::F32, Precision::Bf16] {
        let config = config("lars");
        let batches: Vec<_> =
            (0..8).map(|step| batch(step, if step == 5 { IMAGES - 1 } else { IMAGES })).collect();
        let expected = run(&config, (device, precision), &batches, &mut step_by_step);
        let (mut recorder, mut replayed, mut notes) = (None, 0, Vec::new());
        let found = run(&config, (device, precision), &batches, &mut |setting, optimizer, batch, lr| {
            let recorder = recorder.get_or_insert_with(|| Recorder::new(setting, true));
            let done = recorder.step(setting, optimizer, &setting.views(batch).unwrap(), lr).unwrap();
            notes.extend(recorder.note());
            replayed += usize::from(done.is_some());
            done.unwrap_or_else(|| step_by_step(setting, optimizer, batch, lr))
        });
        assert_eq!(
            (notes.as_slice(), replayed),
            (["the step is recorded as a CUDA graph".to_owned()].as_slice(), 4)
        );
        same(&found, &expected);
    }
}
