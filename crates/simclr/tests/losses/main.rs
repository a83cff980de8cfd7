//! Contrastive losses against golden values, formulas in f64, finite differences and their symmetries.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agreement;
mod goldens;
mod nt_xent;
mod oracle;
mod sharded;
mod symmetries;

use simclr::{
    data::rng::Key,
    losses::{LossConfig, LossKind, Negatives, Reduction},
};
use tch::Tensor;

fn rows(values: &[f32], columns: i64) -> Tensor {
    Tensor::from_slice(values).view([-1, columns])
}

fn random_rows(rows: i64, columns: i64, seed: u64, length: f64) -> Tensor {
    // Not libtorch's generator, which concurrent tests share.
    let mut stream = Key { seed, epoch: 0, image: 0, view: 0 }.stream();
    let values: Vec<f32> = (0..rows * columns).map(|_| stream.uniform(-1.0, 1.0) * length as f32).collect();
    Tensor::from_slice(&values).view([rows, columns])
}

/// Rows i and i + n are views of one image, `near` being the length of their difference.
fn pairs(n: i64, columns: i64, seed: u64, near: f64) -> Tensor {
    let first = random_rows(n, columns, seed, 1.0);
    Tensor::cat(&[&first, &(&first + random_rows(n, columns, seed + 1, near))], 0)
}

/// A configuration from keys of `[loss]`.
fn loss(keys: &str) -> LossConfig {
    let config: LossConfig = toml::from_str(&keys.replace(", ", "\n")).unwrap();
    config.validate().unwrap();
    config
}

/// Every loss and option.
fn cases() -> Vec<(String, LossConfig)> {
    let losses = [
        "temperature = 0.2",
        "decoupled = true, temperature = 0.3",
        "decoupled = true, decoupled_weight_sigma = 0.5, temperature = 0.3",
        "decoupled = true, decoupled_weight_sigma = 0.2",
        "debias_prior = 0.1, temperature = 0.5",
        "debias_prior = 0.1",
        "debias_prior = 0.1, temperature = 0.2",
        "hard_beta = 1.0, temperature = 0.5",
        "hard_beta = 0.5",
        "hard_beta = 2.0, debias_prior = 0.1, temperature = 0.5",
        "hard_beta = 1.0, debias_prior = 0.3, temperature = 0.3",
        "semi_hard = true, temperature = 0.3",
        "kind = \"nt-logistic\", temperature = 0.5",
        "kind = \"nt-logistic\", normalize = false, temperature = 2.0",
        "kind = \"nt-logistic\", semi_hard = true, temperature = 0.2",
        "kind = \"margin\", margin = 0.0",
        "kind = \"margin\", margin = 0.8",
        "kind = \"margin\", margin = 0.4, normalize = false",
        "kind = \"margin\", semi_hard = true, margin = 0.4",
    ];
    let mut cases: Vec<_> = losses.iter().map(|&keys| (keys.to_owned(), loss(keys))).collect();
    for index in 0..cases.len() {
        let (keys, config) = cases[index].clone();
        let reduction = if index % 2 == 0 { Reduction::Official } else { Reduction::Paper };
        let other = LossConfig { negatives: Negatives::OtherView, reduction, ..config };
        cases.push((format!("{keys}, other view"), other));
    }
    cases
}

/// Losses of which gradients jump where the most similar allowed negative changes.
fn chooses(config: &LossConfig) -> bool {
    config.semi_hard
}

/// Losses of which gradients jump where a negative enters the margin.
fn has_steps(config: &LossConfig) -> bool {
    config.kind == LossKind::Margin
}
