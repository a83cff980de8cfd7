//! Every loss and option against the formulas in f64.

use simclr::losses::{LossConfig, contrastive_loss};
use tch::{Kind, Tensor};

use super::{
    cases, chooses, has_steps, loss, oracle,
    oracle::{both, relative, rows_off, whole_matrix},
    pairs, rows,
};

fn flat(z: &[Vec<f64>]) -> Tensor {
    let values: Vec<f32> = z.iter().flatten().map(|&x| x as f32).collect();
    rows(&values, z[0].len() as i64)
}

fn lists(z: &Tensor) -> Vec<Vec<f64>> {
    let columns = z.size()[1] as usize;
    let values = Vec::<f64>::try_from(z.to_kind(Kind::Double).view(-1)).unwrap();
    values.chunks(columns).map(<[f64]>::to_vec).collect()
}

#[test]
fn values_and_gradients_agree_with_loops_and_finite_differences() {
    for (keys, config) in cases() {
        for (n, seed) in [(2, 11), (5, 21), (6, 31)] {
            // With two images and one negative each, a sum has one term.
            let z = lists(&pairs(n, 3, seed, 0.6));
            let (value, gradient) = both(&flat(&z), &config);
            let expected = oracle::loss(&z, &config);
            let tolerance = 1e-5 * (1.0 + 1.0 / config.temperature);
            assert!((value - expected).abs() < tolerance, "{keys}, N = {n}: {value} {expected}");
            for (i, j) in (0..z.len()).flat_map(|i| (0..3).map(move |j| (i, j))) {
                let step = 1e-6;
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[i][j] += by;
                    oracle::loss(&z, &config)
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let found = gradient.double_value(&[i as i64, j as i64]);
                assert!(
                    (found - expected).abs() < 4.0 * tolerance,
                    "{keys}, N = {n}, {i} {j}: {found} {expected}"
                );
            }
        }
    }
}

/// Length of the difference of two views.
const NEAR: f64 = 1.5;

/// In one tile and across tiles. Two similarities may compare differently in f32 and f64, so of the losses that choose a negative a few
/// rows may differ: an anchor and the two negatives.
#[test]
fn values_and_gradients_agree_with_autograd_across_tiles() {
    for (keys, config) in cases() {
        for (n, d) in [(37, 16), (1030, 8)] {
            let z = pairs(n, d, 41, NEAR);
            let (value, gradient) = both(&z, &config);
            let (expected, by_autograd) = whole_matrix(&z, &config, Kind::Double);
            let case = format!("{keys}, N = {n}");
            assert!(
                (value - expected).abs() <= 1e-5 * expected.abs().max(1e-2),
                "{case}: {value} {expected}"
            );
            let off = rows_off(&gradient, &by_autograd);
            let error = relative(&gradient, &by_autograd);
            if chooses(&config) {
                assert!(off <= 6, "{case}: gradients of {off} rows differ");
            } else {
                // The debiased sum is the difference of terms up to prior * M times as large.
                let is_difference = config.debias_prior > 0.0;
                let limit = if has_steps(&config) || is_difference { 2e-4 } else { 2e-5 };
                let limit_rows = if is_difference { 6 } else { 0 };
                assert!(error < limit && off <= limit_rows, "{case}: gradient off by {error:e}, {off} rows");
            }
        }
    }
}

/// The bound of the debiased estimate: active for some anchors and inactive for others in the cases above.
#[test]
fn both_branches_of_the_debiased_estimate_are_tested() {
    let bounded = |keys: &str| {
        let z = lists(&pairs(37, 16, 41, NEAR));
        let unit = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let config = loss(keys);
        let exp = |i: usize, k: usize| {
            let dot: f64 = z[i].iter().zip(&z[k]).map(|(a, b)| a * b).sum();
            (dot / (unit(&z[i]) * unit(&z[k]) * config.temperature)).exp()
        };
        let is_bounded = |&i: &usize| {
            let sum: f64 = (0..74).filter(|&k| k % 37 != i % 37).map(|k| exp(i, k)).sum();
            sum < config.debias_prior * 72.0 * exp(i, (i + 37) % 74)
        };
        (0..74).filter(is_bounded).count()
    };
    assert_eq!(bounded("debias_prior = 0.1, temperature = 0.5"), 0);
    let some = bounded("debias_prior = 0.1, temperature = 0.2");
    assert!((5..70).contains(&some), "{some} of 74");
}

/// exp(1 / tau) overflows f32 and f64 at the smallest temperature.
#[test]
fn small_temperatures_give_finite_values_and_gradients() {
    for (keys, config) in cases() {
        for temperature in [0.001, 0.01] {
            let config = LossConfig { temperature, ..config.clone() };
            for z in [pairs(20, 4, 51, 0.5), Tensor::ones([8, 3], (Kind::Float, tch::Device::Cpu))] {
                let leaf = z.set_requires_grad(true);
                let loss = contrastive_loss(&leaf, &config).loss;
                loss.backward();
                assert!(loss.double_value(&[]).is_finite(), "{keys}, temperature {temperature}");
                assert!(
                    leaf.grad().isfinite().all().int64_value(&[]) == 1,
                    "{keys}, temperature {temperature}"
                );
            }
        }
    }
}

/// Operations with which the host reads a value or a shape that depends on one: a CUDA graph cannot capture them.
const SYNCS: [&str; 5] =
    ["aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"];

#[test]
fn no_loss_synchronises_with_the_host() {
    for (keys, config) in cases() {
        let z = pairs(5, 4, 55, 0.5).set_requires_grad(true);
        let run = || contrastive_loss(&z, &config).loss.backward();
        let (_, names) = simclr_shim::operations(run).unwrap();
        assert!(names.len() > 20, "{keys}: {names:?}");
        let syncs: Vec<_> = names.iter().filter(|name| SYNCS.contains(&name.as_str())).collect();
        assert!(syncs.is_empty(), "{keys}: {syncs:?}");
    }
}
