//! Memory of the losses. One test in a process of its own, so that nothing else moves the peak.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use simclr::losses::{LossConfig, contrastive_loss};
use tch::{Device, Kind, Tensor};

/// Largest resident size of this process so far, in bytes.
fn peak() -> usize {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// 16,384 views: the similarity matrix alone would take 1 GiB, its softmax and gradient as much again.
#[test]
fn loss_and_gradient_of_16384_views_hold_no_matrix_of_similarities() {
    let (views, dimensions) = (16_384, 16);
    let z = Tensor::arange(views * dimensions, (Kind::Float, Device::Cpu)).sin().view([views, dimensions]);
    let z = z.set_requires_grad(true);
    // Libraries and threads are set up by a small loss.
    contrastive_loss(&z.narrow(0, 0, 64), &LossConfig::default()).loss.backward();
    let before = peak();
    for keys in ["", "hard_beta = 1.0", "kind = \"nt-logistic\"", "kind = \"margin\"", "semi_hard = true"] {
        let loss = contrastive_loss(&z, &toml::from_str(keys).unwrap()).loss;
        loss.backward();
        assert!(loss.double_value(&[]).is_finite() && z.grad().defined(), "{keys}");
    }
    let (grown, matrix) = (peak() - before, (views * views * 4) as usize);
    assert!(grown < matrix / 4, "{} MiB more, the matrix has {} MiB", grown >> 20, matrix >> 20);
}
