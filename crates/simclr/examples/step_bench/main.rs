//! Seconds per SimCLR step (forward, NT-Xent, backward, SGD with momentum or Muon) on random views that lie on the device
//! already, printed as the peer script `step.py` prints its own, so that the two lines can be compared. With `--account`, also where the
//! time goes.
//!
//! usage: `step_bench bf16|f32 [--encoder resnet18-cifar|resnet50|conv-c3|conv-c4|conv-c7] [--width 1] [--size PX] [--views 256]
//! [--muon] [--runs 5] [--account] [--limits TFLOPS,GBPS] [--emulate-gpu]`. `--limits` are those of another device for the bounds of
//! the account. `--emulate-gpu` runs the GPU's kernels on the CPU: the account counts the launches of a GPU's step, its times mean nothing.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::print_stderr, reason = "a benchmark prints")]

mod account;

use std::{error::Error, time::Instant};

use simclr::{
    data::Chunk,
    device::{DeviceChoice, Precision, channels_last, choose_device, describe},
    dist::{GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, EncoderConfig, EncoderName, Init, MOMENTUM, Stem},
    exec::{DeviceBatch, NormConfig, StepContext, StepId, executor},
    head::HeadConfig,
    losses::LossConfig,
    methods::{Method as _, SimClr},
    model::Model,
    optim::{OptimConfig, OptimKind, Optimizer},
};
use simclr_shim::{
    gpu::{Order, emulated},
    stream::StreamGuard,
};
use tch::{Device, Kind, Tensor};

use account::Limits;

/// The peer's learning rate and weight decay; neither changes the work.
const LEARNING_RATE: f64 = 0.1;
const WEIGHT_DECAY: f64 = 1e-4;

struct Arguments {
    precision: Precision,
    encoder: String,
    width: f64,
    size: Option<i64>,
    views: i64,
    optimizer: OptimKind,
    runs: usize,
    account: bool,
    emulate_gpu: bool,
    limits: Option<Limits>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let precision = match words.next().as_deref() {
        Some("bf16") => Precision::Bf16,
        Some("f32") => Precision::F32,
        other => return Err(format!("expected bf16 or f32, got {other:?}").into()),
    };
    let mut found = Arguments {
        precision,
        encoder: "resnet18-cifar".into(),
        width: 1.0,
        size: None,
        views: 256,
        optimizer: OptimKind::Sgd,
        runs: 5,
        account: false,
        emulate_gpu: false,
        limits: None,
    };
    while let Some(flag) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--account" => found.account = true,
            "--emulate-gpu" => found.emulate_gpu = true,
            "--encoder" => found.encoder = value()?,
            "--width" => found.width = value()?.parse()?,
            "--size" => found.size = Some(value()?.parse()?),
            "--muon" => found.optimizer = OptimKind::Muon,
            "--views" => found.views = value()?.parse()?,
            "--runs" => found.runs = value()?.parse()?,
            "--limits" => found.limits = Some(parse_limits(&value()?)?),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    if found.views < 2 || found.views % 2 != 0 || found.runs == 0 {
        return Err("views must be even and at least 2, runs at least 1".into());
    }
    Ok(found)
}

fn parse_limits(text: &str) -> Result<Limits, Box<dyn Error>> {
    let (product, copy) = text.split_once(',').ok_or("--limits needs TFLOPS,GBPS")?;
    Ok(Limits { tera_flop_per_second: product.parse()?, gigabytes_per_second: copy.parse()? })
}

/// torchvision's network (He initialisation, no zero gamma), as the peer script builds it, and the side of a view.
fn encoder(name: &str) -> Result<(EncoderConfig, i64), Box<dyn Error>> {
    let (name, stem, size) = match name {
        "resnet18-cifar" => (EncoderName::Resnet18, Stem::Cifar, 32),
        "resnet50" => (EncoderName::Resnet50, Stem::Imagenet, 224),
        "conv-c3" => (EncoderName::ConvC3, Stem::Auto, 32),
        "conv-c4" => (EncoderName::ConvC4, Stem::Auto, 32),
        "conv-c7" => (EncoderName::ConvC7, Stem::Auto, 32),
        other => {
            return Err(format!("expected resnet18-cifar, resnet50, conv-c3, -c4 or -c7, got {other}").into());
        }
    };
    Ok((EncoderConfig { name, stem, zero_gamma: false, init: Init::He, ..EncoderConfig::default() }, size))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    match arguments.emulate_gpu {
        true => emulated(Order::Rising, || measure(&arguments)),
        false => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let device = choose_device(DeviceChoice::Auto, 0)?;
    let (mut config, size) = encoder(&arguments.encoder)?;
    config.width = arguments.width;
    let size = arguments.size.unwrap_or(size);
    let model = Model::new(&config, &HeadConfig::default(), (3, size), 0, device, arguments.precision)?;
    let optimizer = OptimConfig {
        kind: arguments.optimizer,
        weight_decay: WEIGHT_DECAY,
        lr_in_momentum: false,
        ..OptimConfig::default()
    };
    let loss = LossConfig { temperature: 0.5, ..LossConfig::default() };
    let method = SimClr::new(model, loss);
    let mut optimizer = Optimizer::new(&optimizer, method.params()).with_precision(arguments.precision);
    // As `train::fit` does on a GPU: a stream of our own, and the step captured as a CUDA graph.
    simclr_shim::stream::set_deterministic(false);
    let _own = StreamGuard::new(&Tensor::empty([0], (Kind::Float, device)))?;
    let views = channels_last(&Tensor::randn([arguments.views, 3, size, size], (Kind::Float, device)));
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let norm = NormConfig { scope: BatchNormScope::Global, momentum: MOMENTUM, groups: 1 };
    let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 0 };
    let mut executor = executor(&context, None, true);
    let ids: Vec<usize> = (0..arguments.views as usize / 2).collect();
    let mut step = || -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        let batch = DeviceBatch {
            step: 0,
            chunk: Chunk::WHOLE,
            second_view_ids: ids.clone(),
            ids: ids.clone(),
            views: views.shallow_clone().into(),
        };
        let id = StepId { step: 0, lr: LEARNING_RATE };
        executor.step(&context, &mut optimizer, id, &mut std::iter::once(Ok(batch)))?;
        executor.take_notice().iter().for_each(|notice| eprintln!("{notice}"));
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..if device.is_cuda() { 10 } else { 2 } {
        step()?;
    }
    let mut seconds = (0..arguments.runs).map(|_| step()).collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    report(arguments, device, &seconds);
    if arguments.account {
        account::print(&context, &method, &mut optimizer, &views, LEARNING_RATE, arguments.limits)?;
    }
    Ok(())
}

/// The peer's line; `seconds` ascend.
fn report(arguments: &Arguments, device: Device, seconds: &[f64]) {
    let Arguments { precision, encoder, views, runs, .. } = arguments;
    let median = (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2.0;
    let (kind, place) = (if *precision == Precision::Bf16 { "bf16" } else { "f32" }, describe(device));
    println!(
        "ours-{kind} {encoder} {place}: {median:.4} s/step (min {:.4} max {:.4}), {:.1} views/s, peak RSS {:.2} GiB",
        seconds[0],
        seconds[runs - 1],
        *views as f64 / median,
        peak_gibibytes()
    );
}

/// `VmHWM` of Linux; 0 where the system does not tell.
fn peak_gibibytes() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0.0) / f64::from(1 << 20)
}
