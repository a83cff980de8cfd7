//! Time and memory of NT-Xent, loss and gradient, in one form and at one batch: tiles, or the whole matrix through
//! autograd, which is what a framework gives. One process per figure, so that its peak memory is its own.
//!
//! usage: `nt_xent_bench tiles|matrix IMAGES [--dimensions 128] [--runs 5]`
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{error::Error, time::Instant};

use simclr::{
    device::{DeviceChoice, choose_device, describe},
    losses::{LossConfig, contrastive_loss, l2_normalize},
};
use tch::{Device, Kind, Tensor};

const TEMPERATURE: f64 = 0.1;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [form, images, more @ ..] = &words[..] else { return Err("expected tiles|matrix IMAGES".into()) };
    let (mut dimensions, mut runs) = (128, 5usize);
    for pair in more.chunks(2) {
        match pair {
            [flag, value] if flag == "--dimensions" => dimensions = value.parse()?,
            [flag, value] if flag == "--runs" => runs = value.parse()?,
            _ => return Err(format!("unknown flag or no value: {pair:?}").into()),
        }
    }
    let (images, device) = (images.parse::<i64>()?, choose_device(DeviceChoice::Auto, 0)?);
    let loss = match form.as_str() {
        "tiles" => tiles,
        "matrix" => matrix,
        other => return Err(format!("expected tiles or matrix, got {other}").into()),
    };
    if images < 1 || runs == 0 {
        return Err("expected at least one image and one run".into());
    }
    tch::manual_seed(0);
    let z = Tensor::randn([2 * images, dimensions], (Kind::Float, device)).set_requires_grad(true);
    let before = peak_gibibytes();
    let run = || {
        let (start, mut leaf) = (Instant::now(), z.shallow_clone());
        leaf.zero_grad();
        loss(&leaf).backward();
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        start.elapsed().as_secs_f64()
    };
    run();
    let mut seconds: Vec<f64> = (0..runs).map(|_| run()).collect();
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[(runs - 1) / 2] + seconds[runs / 2]) / 2.0;
    // A product of [2N, D] and [D, 2N] is one unit of work; the whole matrix needs three: forward, and two backward.
    let unit = 2.0 * (2.0 * images as f64).powi(2) * dimensions as f64;
    println!(
        "{form} N {images}: {median:.4} s (min {:.4} max {:.4}), {:.1} GFLOP/s if it were 3 products, above the start \
         {:.3} GiB, {}",
        seconds[0],
        seconds[runs - 1],
        3.0 * unit / median / 1e9,
        peak_gibibytes() - before,
        describe(device),
    );
    Ok(())
}

fn tiles(z: &Tensor) -> Tensor {
    contrastive_loss(z, &LossConfig { temperature: TEMPERATURE, ..LossConfig::default() }).loss
}

/// The paper's formula over one `[2N, 2N]` matrix.
fn matrix(z: &Tensor) -> Tensor {
    let rows = z.size()[0];
    let unit = l2_normalize(z);
    let itself = Tensor::eye(rows, (Kind::Bool, z.device()));
    let logits = (unit.matmul(&unit.tr()) / TEMPERATURE).masked_fill(&itself, f64::NEG_INFINITY);
    let partner = Tensor::arange(rows, (Kind::Int64, z.device())).roll([rows / 2], [0]);
    logits.cross_entropy_loss(&partner, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
}

/// `VmHWM` of Linux; 0 where the system does not tell.
fn peak_gibibytes() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0.0) / f64::from(1 << 20)
}
