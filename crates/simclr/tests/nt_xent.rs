//! NT-Xent against published values, a plain f64 oracle, finite differences and its own symmetries.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use simclr::nt_xent::{LossConfig, LossScale, nt_xent};
use tch::{Kind, Tensor};

fn config(temperature: f64) -> LossConfig {
    LossConfig { temperature, ..LossConfig::default() }
}

fn rows(values: &[f32], columns: i64) -> Tensor {
    Tensor::from_slice(values).view([-1, columns])
}

/// Golden vectors of the specification, section 3.6: three images, two dimensions.
const Z: [f32; 12] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 2.0, 1.0, 1.0, 3.0, -1.0, 0.0];

#[test]
fn golden_losses_and_accuracy() {
    for (temperature, paper, official) in [
        (0.1, 0.178_588_176_4, 0.357_176_352_7),
        (0.5, 0.716_648_176_0, 1.433_296_351_9),
        (1.0, 1.042_654_641_2, 2.085_309_282_5),
    ] {
        let z = rows(&Z, 2);
        let loss = |scale| nt_xent(&z, &LossConfig { scale, ..config(temperature) }).loss.double_value(&[]);
        assert!(
            (loss(LossScale::Paper) - paper).abs() < 2e-6,
            "tau {temperature}: {}",
            loss(LossScale::Paper)
        );
        assert!((loss(LossScale::Official) - official).abs() < 4e-6, "tau {temperature}");
    }
    // First views against the three second views: rows of cosines (.894 .316 -1) (.447 .949 0) (-.316 .447 .707).
    assert_eq!(nt_xent(&rows(&Z, 2), &config(0.5)).accuracy.double_value(&[]), 1.0);
}

#[test]
fn golden_gradient() {
    let z = rows(&Z, 2).set_requires_grad(true);
    nt_xent(&z, &config(0.5)).loss.backward();
    let expected = [
        0.0,
        0.037_306_62,
        -0.092_552_05,
        0.0,
        0.260_475_42,
        0.260_475_42,
        -0.081_182_77,
        0.162_365_53,
        0.062_416_3,
        -0.020_805_43,
        0.0,
        -0.100_680_62,
    ];
    let found = Vec::<f32>::try_from(z.grad().view(-1)).unwrap();
    assert!(found.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{found:?}");
}

#[test]
fn equal_projections_cost_ln_of_the_candidates() {
    for n in [1i64, 2, 5, 64] {
        let z = Tensor::ones([2 * n, 8], (Kind::Float, tch::Device::Cpu));
        let loss = nt_xent(&z, &config(0.3)).loss.double_value(&[]);
        assert!((loss - ((2 * n - 1) as f64).ln()).abs() < 1e-5, "N = {n}: {loss}");
    }
}

/// exp(1 / 0.001) overflows f32 and f64: only a log-sum-exp that subtracts the maximum survives.
#[test]
fn a_tiny_temperature_neither_overflows_nor_gives_nan_gradients() {
    let z = rows(&Z, 2).set_requires_grad(true);
    let loss = nt_xent(&z, &config(0.001)).loss;
    loss.backward();
    assert!(loss.double_value(&[]).is_finite());
    assert!(z.grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn bf16_projections_are_compared_in_f32() {
    let loss = nt_xent(&rows(&Z, 2).to_kind(Kind::BFloat16), &config(0.5)).loss;
    assert_eq!(loss.kind(), Kind::Float);
    // The values of Z are exact in bf16.
    assert!((loss.double_value(&[]) - 0.716_648_176_0).abs() < 2e-6);
}

#[test]
fn a_row_of_zeros_is_no_nan() {
    let z = Tensor::zeros([4, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let loss = nt_xent(&z, &config(0.5)).loss;
    loss.backward();
    assert!(z.grad().isfinite().all().int64_value(&[]) == 1);
    assert!((loss.double_value(&[]) - 3f64.ln()).abs() < 1e-6);
}

/// Only the views of the other side are candidates (spec 3.5). Both first views are nearest to each other, which over all
/// 2N - 1 candidates would be 0; among the second views the first one is right and the second takes its neighbour's.
#[test]
fn contrastive_accuracy_leaves_out_the_own_side() {
    let z = rows(&[1.0, 0.0, 1.0, 0.01, 1.0, 0.2, 1.0, 0.9], 2);
    assert_eq!(nt_xent(&z, &config(0.5)).accuracy.double_value(&[]), 0.5);
}

/// Twice the loss is twice the gradient (spec 3.2).
#[test]
fn the_official_scale_doubles_the_gradient() {
    let gradient = |scale| {
        let z = rows(&Z, 2).set_requires_grad(true);
        nt_xent(&z, &LossConfig { scale, ..config(0.5) }).loss.backward();
        z.grad()
    };
    assert_eq!(gradient(LossScale::Official), gradient(LossScale::Paper) * 2.0);
}

/// Without normalisation the similarity is the plain product: anchor 0 of two pairs by hand.
#[test]
fn without_normalisation_lengths_count() {
    let z = rows(&[2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 3.0], 2);
    let found = nt_xent(&z, &LossConfig { normalize: false, ..config(2.0) }).loss.double_value(&[]);
    // Products / tau of each anchor with its partner first, then the two negatives.
    let rows = [[1.0, 0.0, 0.0], [1.5, 0.0, 0.5], [1.0, 0.5, 1.5], [1.5, 0.0, 1.5f64]];
    let cost = |row: &[f64; 3]| row.iter().map(|s| s.exp()).sum::<f64>().ln() - row[0];
    let expected = rows.iter().map(cost).sum::<f64>() / 4.0;
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
}

/// The formula of paper section 2.1, written out.
fn oracle(z: &[Vec<f64>], temperature: f64) -> f64 {
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let cosine =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / (norm(a) * norm(b));
    let n = z.len() / 2;
    let anchor = |i: usize| {
        let partner = (i + n) % (2 * n);
        let others = (0..2 * n).filter(|&k| k != i);
        let sum: f64 = others.map(|k| (cosine(&z[i], &z[k]) / temperature).exp()).sum();
        sum.ln() - cosine(&z[i], &z[partner]) / temperature
    };
    (0..2 * n).map(anchor).sum::<f64>() / (2 * n) as f64
}

fn flat(z: &[Vec<f64>]) -> Tensor {
    let values: Vec<f32> = z.iter().flatten().map(|&x| x as f32).collect();
    rows(&values, z[0].len() as i64)
}

fn projections() -> impl Strategy<Value = Vec<Vec<f64>>> {
    (1usize..6, 2usize..5).prop_flat_map(|(n, d)| {
        let value = prop_oneof![-2.0..-0.1, 0.1..2.0f64];
        prop::collection::vec(prop::collection::vec(value, d), 2 * n)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_the_formula(z in projections(), temperature in 0.05..2.0f64) {
        let expected = oracle(&z, temperature);
        let found = nt_xent(&flat(&z), &config(temperature)).loss.double_value(&[]);
        // f32 similarities divided by tau: relative 1e-6 of values up to 1 / tau.
        prop_assert!((found - expected).abs() < 3e-6 * (1.0 + 1.0 / temperature), "{found} {expected}");
    }

    #[test]
    fn gradient_agrees_with_finite_differences_and_is_orthogonal(z in projections(), temperature in 0.2..2.0f64) {
        let leaf = flat(&z).set_requires_grad(true);
        nt_xent(&leaf, &config(temperature)).loss.backward();
        let gradient = leaf.grad();
        for (i, row) in z.iter().enumerate() {
            let mut along = 0.0;
            for (j, &x) in row.iter().enumerate() {
                let found = gradient.double_value(&[i as i64, j as i64]);
                along += found * x;
                let step = 1e-5;
                let moved = |by: f64| { let mut z = z.clone(); z[i][j] += by; oracle(&z, temperature) };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                prop_assert!((found - expected).abs() < 2e-5 / temperature, "{found} {expected}");
            }
            prop_assert!(along.abs() < 2e-5 / temperature, "not orthogonal to z: {along}");
        }
    }

    #[test]
    fn neither_scale_nor_swapped_views_nor_order_matter(z in projections(), scale in 0.1..10.0f64) {
        let n = z.len() / 2;
        let loss = |z: &[Vec<f64>]| nt_xent(&flat(z), &config(0.5)).loss.double_value(&[]);
        let whole = loss(&z);
        let mut scaled = z.clone();
        scaled[0].iter_mut().for_each(|x| *x *= scale);
        let mut swapped = z.clone();
        swapped.rotate_left(n);
        let mut reversed: Vec<_> = z[..n].iter().rev().cloned().collect();
        reversed.extend(z[n..].iter().rev().cloned());
        for other in [scaled, swapped, reversed] {
            prop_assert!((loss(&other) - whole).abs() < 1e-5, "{} {whole}", loss(&other));
        }
    }
}
