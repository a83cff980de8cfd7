//! NT-Xent against golden values, the formula in f64, finite differences and its symmetries.

use proptest::prelude::*;
use simclr::losses::{LossConfig, Reduction, contrastive_loss, l2_normalize};
use tch::{Kind, Tensor};

use super::{
    oracle::{both, relative, whole_matrix},
    random_rows, rows,
};

fn config(temperature: f64) -> LossConfig {
    LossConfig { temperature, ..LossConfig::default() }
}

/// Three images, two dimensions; goldens computed in f64 from the formula of paper section 2.1.
pub const Z: [f32; 12] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 2.0, 1.0, 1.0, 3.0, -1.0, 0.0];

#[test]
fn golden_losses_and_accuracy() {
    for (temperature, paper, official) in [
        (0.1, 0.178_588_176_4, 0.357_176_352_7),
        (0.5, 0.716_648_176_0, 1.433_296_351_9),
        (1.0, 1.042_654_641_2, 2.085_309_282_5),
    ] {
        let z = rows(&Z, 2);
        let loss = |reduction| {
            contrastive_loss(&z, &LossConfig { reduction, ..config(temperature) }).loss.double_value(&[])
        };
        assert!(
            (loss(Reduction::Paper) - paper).abs() < 2e-6,
            "tau {temperature}: {}",
            loss(Reduction::Paper)
        );
        assert!((loss(Reduction::Official) - official).abs() < 4e-6, "tau {temperature}");
    }
    // First views against the three second views: rows of cosines (.894 .316 -1) (.447 .949 0) (-.316 .447 .707).
    assert_eq!(contrastive_loss(&rows(&Z, 2), &config(0.5)).accuracy.double_value(&[]), 1.0);
}

#[test]
fn golden_gradient() {
    let z = rows(&Z, 2).set_requires_grad(true);
    contrastive_loss(&z, &config(0.5)).loss.backward();
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
fn loss_of_equal_projections_is_ln_of_the_candidates() {
    for n in [1i64, 2, 5, 64] {
        let z = Tensor::ones([2 * n, 8], (Kind::Float, tch::Device::Cpu));
        let loss = contrastive_loss(&z, &config(0.3)).loss.double_value(&[]);
        assert!((loss - ((2 * n - 1) as f64).ln()).abs() < 1e-5, "N = {n}: {loss}");
    }
}

/// exp(1 / 0.001) overflows f32 and f64 without subtraction of the maximum.
#[test]
fn a_tiny_temperature_neither_overflows_nor_gives_nan_gradients() {
    let z = rows(&Z, 2).set_requires_grad(true);
    let loss = contrastive_loss(&z, &config(0.001)).loss;
    loss.backward();
    assert!(loss.double_value(&[]).is_finite());
    assert!(z.grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn bf16_projections_are_compared_in_f32() {
    let loss = contrastive_loss(&rows(&Z, 2).to_kind(Kind::BFloat16), &config(0.5)).loss;
    assert_eq!(loss.kind(), Kind::Float);
    // The values of Z are exact in bf16.
    assert!((loss.double_value(&[]) - 0.716_648_176_0).abs() < 2e-6);
}

#[test]
fn rows_of_zeros_do_not_give_nan() {
    let z = Tensor::zeros([4, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let loss = contrastive_loss(&z, &config(0.5)).loss;
    loss.backward();
    assert!(z.grad().isfinite().all().int64_value(&[]) == 1);
    assert!((loss.double_value(&[]) - 3f64.ln()).abs() < 1e-6);
}

/// Candidates are the second views only (google-research/simclr model.py, accuracy over `logits_ab`). The two first views are nearest to
/// each other, so over all 2N - 1 candidates the accuracy would be 0; among the second views, one of two is correct.
#[test]
fn contrastive_accuracy_excludes_first_views() {
    let z = rows(&[1.0, 0.0, 1.0, 0.01, 1.0, 0.2, 1.0, 0.9], 2);
    assert_eq!(contrastive_loss(&z, &config(0.5)).accuracy.double_value(&[]), 0.5);
}

/// The official loss is the sum of two means (google-research/simclr objective.py).
#[test]
fn the_official_reduction_doubles_the_gradient() {
    let gradient = |reduction| {
        let z = rows(&Z, 2).set_requires_grad(true);
        contrastive_loss(&z, &LossConfig { reduction, ..config(0.5) }).loss.backward();
        z.grad()
    };
    assert_eq!(gradient(Reduction::Official), gradient(Reduction::Paper) * 2.0);
}

/// Without normalisation, the similarity is the inner product.
#[test]
fn unnormalised_loss_uses_inner_products() {
    let z = rows(&[2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 3.0], 2);
    let found = contrastive_loss(&z, &LossConfig { normalize: false, ..config(2.0) }).loss.double_value(&[]);
    // Inner products / tau of each anchor: its partner, then the two negatives.
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
        let found = contrastive_loss(&flat(&z), &config(temperature)).loss.double_value(&[]);
        // f32 similarities divided by tau: relative 1e-6 of values up to 1 / tau.
        prop_assert!((found - expected).abs() < 3e-6 * (1.0 + 1.0 / temperature), "{found} {expected}");
    }

    #[test]
    fn gradient_agrees_with_finite_differences_and_is_orthogonal(z in projections(), temperature in 0.2..2.0f64) {
        let leaf = flat(&z).set_requires_grad(true);
        contrastive_loss(&leaf, &config(temperature)).loss.backward();
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
    fn loss_is_invariant_to_scale_swapped_views_and_order(z in projections(), scale in 0.1..10.0f64) {
        let n = z.len() / 2;
        let loss = |z: &[Vec<f64>]| contrastive_loss(&flat(z), &config(0.5)).loss.double_value(&[]);
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

/// Views near to and far from their partner; sizes that end within a tile, at its edge and just after it.
#[test]
fn agrees_with_the_whole_matrix_in_f64_across_tiles() {
    for (n, d) in [(1, 8), (2, 3), (37, 16), (1023, 8), (1024, 8), (1025, 8), (2500, 24)] {
        for (temperature, reduction, near) in
            [(0.01, Reduction::Paper, 0.5), (0.1, Reduction::Official, 2.0), (1.0, Reduction::Paper, 2.0)]
        {
            let config = LossConfig { temperature, reduction, ..LossConfig::default() };
            let first = random_rows(n, d, 1, 1.0);
            let second = &first + random_rows(n, d, 2, near);
            let z = Tensor::cat(&[first, second], 0);
            let (loss, gradient) = both(&z, &config);
            let (expected, by_autograd) = whole_matrix(&z, &config, Kind::Double);
            let case = format!("N = {n}, tau = {temperature}");
            assert!((loss - expected).abs() <= 1e-4 * expected.abs().max(1e-2), "{case}: {loss} {expected}");
            // With one image the gradient is zero; with two and a small tau, 1 - p is below the resolution of f32.
            if n > 2 {
                let error = relative(&gradient, &by_autograd);
                assert!(error < 1e-4, "{case}: gradient off by {error:e}");
            }
        }
    }
}

/// DCL against the formula in f64, loss and gradient, in one tile and across tiles; tau = 0.01 overflows exp at the positives.
#[test]
fn decoupled_loss_agrees_with_f64_across_tiles() {
    for (n, d) in [(3, 4), (37, 16), (1025, 8)] {
        for (temperature, normalize) in [(0.01, true), (0.1, true), (0.5, true), (1.0, false)] {
            let config = LossConfig { decoupled: true, normalize, ..config(temperature) };
            let first = random_rows(n, d, 1, 1.0);
            let z = Tensor::cat(&[&first, &(&first + random_rows(n, d, 2, 0.7))], 0);
            let (loss, gradient) = both(&z, &config);
            let (expected, by_autograd) = whole_matrix(&z, &config, Kind::Double);
            let case = format!("N = {n}, tau = {temperature}");
            assert!((loss - expected).abs() <= 1e-4 * expected.abs().max(1e-2), "{case}: {loss} {expected}");
            let error = relative(&gradient, &by_autograd);
            assert!(error < 1e-4, "{case}: gradient off by {error:e}");
        }
    }
}

/// Equal rows: every similarity is equal, so the loss is ln of the number of negatives, 2N - 2.
#[test]
fn decoupled_loss_of_equal_rows_is_at_chance() {
    let config = LossConfig { decoupled: true, ..config(0.5) };
    let loss = contrastive_loss(&Tensor::ones([8, 3], (Kind::Float, tch::Device::Cpu)), &config).loss;
    assert!((loss.double_value(&[]) - 6f64.ln()).abs() < 1e-6);
    assert!((config.chance(8) - 6f64.ln()).abs() < 1e-12);
}

/// The exp of unnormalised logits of several hundred overflows f32.
#[test]
fn large_logits_agree_with_f64() {
    for (n, length, temperature) in [(300, 6.0, 0.5), (1100, 10.0, 1.0)] {
        let config = LossConfig { normalize: false, ..config(temperature) };
        let first = random_rows(n, 16, 3, length);
        let z = Tensor::cat(&[&first, &(&first + random_rows(n, 16, 4, length))], 0);
        let (loss, gradient) = both(&z, &config);
        let (expected, by_autograd) = whole_matrix(&z, &config, Kind::Double);
        assert!((loss / expected - 1.0).abs() < 1e-4, "{loss} {expected}");
        let error = relative(&gradient, &by_autograd);
        assert!(error < 1e-4, "gradient off by {error:e}");
    }
}

/// Tiles and the whole matrix differ by rounding only, and tiles are not less accurate.
#[test]
fn tiles_are_as_precise_as_the_whole_matrix_in_f32() {
    let config = config(0.1);
    let first = random_rows(1500, 32, 5, 1.0);
    let z = Tensor::cat(&[&first, &(&first + random_rows(1500, 32, 6, 0.7))], 0);
    let (_, exact) = whole_matrix(&z, &config, Kind::Double);
    let (_, in_f32) = whole_matrix(&z, &config, Kind::Float);
    let (_, tiled) = both(&z, &config);
    let (tiled, in_f32) = (relative(&tiled, &exact), relative(&in_f32, &exact));
    assert!(tiled < 1e-5 && tiled < 3.0 * in_f32, "tiled {tiled:e}, whole {in_f32:e}");
}

/// Against argmax over the whole matrix.
#[test]
fn contrastive_accuracy_across_tiles() {
    let n = 1500;
    let first = random_rows(n, 8, 9, 1.0);
    let z = Tensor::cat(&[&first, &(&first + random_rows(n, 8, 10, 1.0))], 0);
    let unit = |view: i64| l2_normalize(&z.narrow(0, view * n, n));
    let best = unit(0).matmul(&unit(1).tr()).argmax(1, false);
    let expected = best
        .eq_tensor(&Tensor::arange(n, (Kind::Int64, z.device())))
        .to_kind(Kind::Double)
        .mean(Kind::Double);
    let found = contrastive_loss(&z, &config(0.5)).accuracy.double_value(&[]);
    assert!(
        (found - expected.double_value(&[])).abs() < 1e-6 && found > 0.02 && found < 0.9,
        "{found} {expected}"
    );
}

/// For equal projections, independent of how argmax breaks ties.
#[test]
fn ties_are_not_correct() {
    assert_eq!(
        contrastive_loss(&Tensor::ones([64, 4], (Kind::Float, tch::Device::Cpu)), &config(0.5))
            .accuracy
            .double_value(&[]),
        0.0
    );
}
