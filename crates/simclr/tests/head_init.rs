//! The first ten losses of a head without batch norm against PyTorch, over 20 seeds (`reference/head_init.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use simclr::{
    device::Precision,
    encoder::Mode,
    head::{Head, HeadConfig, HeadInit, HeadNorm},
    losses::{LossConfig, contrastive_loss},
    optim::{OptimConfig, OptimKind, Optimizer},
    params::Params,
};
use tch::{Device, Tensor};

const IMAGES: usize = 32;
const FEATURES: usize = 64;
const STEPS: usize = 10;
const SEEDS: u64 = 20;

/// `[2 * IMAGES, FEATURES]`; rows i and i + IMAGES are two views of image i.
fn features() -> Tensor {
    let value = |row: usize, column: usize| {
        let (view, i, j) = ((row / IMAGES) as f64, (row % IMAGES) as f64, column as f64);
        let image = (1.3 * i + 0.7 * j + 0.1 * i * j).sin();
        (image + 0.5 * (2.1 * i + 1.7 * j + 0.9 * view + 0.3 * i * j).sin()) as f32
    };
    let values: Vec<f32> =
        (0..2 * IMAGES * FEATURES).map(|index| value(index / FEATURES, index % FEATURES)).collect();
    Tensor::from_slice(&values).view([2 * IMAGES as i64, FEATURES as i64])
}

fn losses(init: HeadInit, seed: u64) -> Vec<f64> {
    let mut params = Params::new(Device::Cpu, seed);
    let config = HeadConfig { hidden: 128, out: 32, norm: HeadNorm::None, init, ..HeadConfig::default() };
    let head = Head::new(&config, FEATURES as i64, &mut params);
    let optim = OptimConfig {
        kind: OptimKind::Sgd,
        weight_decay: 0.0,
        lr_in_momentum: false,
        ..OptimConfig::default()
    };
    let mut optimizer = Optimizer::new(&optim, &params);
    let h = features();
    let loss = LossConfig { temperature: 0.5, ..LossConfig::default() };
    let step = |_| {
        let value = contrastive_loss(&head.forward(&h, &Mode::train(), Precision::F32).unwrap(), &loss).loss;
        value.backward();
        optimizer.step(&params, 0.02).unwrap();
        value.double_value(&[])
    };
    (0..STEPS).map(step).collect()
}

/// Mean over the seeds of the loss at each step.
fn mean_curve(init: HeadInit) -> Vec<f64> {
    let curves: Vec<Vec<f64>> = (0..SEEDS).map(|seed| losses(init, seed)).collect();
    (0..STEPS).map(|step| curves.iter().map(|curve| curve[step]).sum::<f64>() / SEEDS as f64).collect()
}

fn golden(init: &str, statistic: &str) -> Vec<f64> {
    let golden: Value = serde_json::from_str(include_str!("golden/head_init.json")).unwrap();
    serde_json::from_value(golden[init][statistic].clone()).unwrap()
}

/// Whether the means over 20 seeds each differ by at most four standard errors.
fn follows(curve: &[f64], init: &str) -> bool {
    let mean = golden(init, "mean");
    let std = golden(init, "std");
    let error = |std: f64| 4.0 * std * (2.0 / SEEDS as f64).sqrt() + 1e-3;
    curve.iter().zip(mean.iter().zip(&std)).all(|(ours, (theirs, std))| (ours - theirs).abs() < error(*std))
}

#[test]
fn first_losses_without_batch_norm_match_pytorch() {
    let auto = mean_curve(HeadInit::Auto);
    assert!(follows(&auto, "linear"), "{auto:?}, PyTorch {:?}", golden("linear", "mean"));
    assert!(!follows(&auto, "official"));
    assert_eq!(auto, mean_curve(HeadInit::Linear), "auto is `linear` without batch norm");
}

/// N(0, 0.01^2) without batch norm: one step makes all projections equal, and the loss stays at chance.
#[test]
fn official_initialisation_without_batch_norm_stays_at_chance() {
    let official = mean_curve(HeadInit::Official);
    assert!(follows(&official, "official"), "{official:?}, PyTorch {:?}", golden("official", "mean"));
    let chance = ((2 * IMAGES - 1) as f64).ln();
    assert!((official[STEPS - 1] - chance).abs() < 0.01 * chance, "{official:?}, chance {chance}");
}
