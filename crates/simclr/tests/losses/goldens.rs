//! Values computed in f64 by hand or from the official code of a paper.

use simclr::losses::{LossConfig, contrastive_loss};
use tch::{Kind, Tensor};

use super::{loss, nt_xent::Z, rows};

/// Cosines of the first views of `Z` (rows) with its second views.
const COSINES: [[f64; 3]; 3] = [
    [0.894_427_191, 0.316_227_766, -1.0],
    [0.447_213_595, 0.948_683_298, 0.0],
    [-0.316_227_766, 0.447_213_595, std::f64::consts::FRAC_1_SQRT_2],
];

/// Mean over anchors of `of(positive, negatives)`, the anchors being rows of `cosines`.
fn over_anchors(cosines: [[f64; 3]; 3], of: impl Fn(f64, [f64; 2]) -> f64) -> f64 {
    (0..3).map(|i| of(cosines[i][i], [1, 2].map(|k| cosines[i][(i + k) % 3]))).sum::<f64>() / 3.0
}

fn value(config: &LossConfig) -> f64 {
    contrastive_loss(&rows(&Z, 2), config).loss.double_value(&[])
}

/// The goldens are those of first views as anchors and second views as negatives; the loss is the mean of these and the opposite.
fn assert_golden(config: &LossConfig, golden: f64, of: impl Fn(f64, [f64; 2]) -> f64) {
    let first = over_anchors(COSINES, &of);
    assert!((first - golden).abs() < 1e-8, "{first} {golden}");
    let second = over_anchors(std::array::from_fn(|i| COSINES.map(|row| row[i])), &of);
    let found = value(config);
    assert!((found - (golden + second) / 2.0).abs() < 2e-6, "{found} {}", (golden + second) / 2.0);
}

#[test]
fn margin_losses() {
    for (margin, golden) in [(0.4, 0.023_351_135_7), (0.8, 0.176_739_614_5)] {
        let config = loss(&format!("kind = \"margin\", negatives = \"other-view\", margin = {margin:?}"));
        assert_golden(&config, golden, |positive, negatives| {
            negatives.iter().map(|s| (s - positive + margin).max(0.0)).sum::<f64>() / 2.0
        });
    }
}

#[test]
fn nt_logistic_losses() {
    for (temperature, golden) in [(0.2, 2.459_722_671_4), (0.5, 1.763_684_632_9)] {
        let keys = "kind = \"nt-logistic\", negatives = \"other-view\"";
        let config = loss(&format!("{keys}, temperature = {temperature:?}"));
        assert_golden(&config, golden, |positive, negatives| {
            let softplus = |x: f64| (x / temperature).exp().ln_1p();
            softplus(-positive) + negatives.map(softplus).iter().sum::<f64>()
        });
    }
}

/// Two images at angles 0 and 90 degrees, second views at the same places: every anchor has s = 1 with its positive, 0 with the rest.
const SQUARE: [f32; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];

#[test]
fn losses_of_a_square() {
    let e = std::f64::consts::E;
    let softplus = |x: f64| x.exp().ln_1p();
    // Of M = 2 negatives, exp(0) each; temperature 1.
    for (keys, expected) in [
        ("", (e + 2.0).ln() - 1.0),
        ("negatives = \"other-view\"", (e + 1.0).ln() - 1.0),
        ("decoupled = true", 2f64.ln() - 1.0),
        // Equal pairs weigh 1.
        ("decoupled = true, decoupled_weight_sigma = 0.5", 2f64.ln() - 1.0),
        ("debias_prior = 0.1", (e + (2.0 - 0.2 * e) / 0.9).ln() - 1.0),
        // 2 - 1.6 e is below 0: the bound 2 exp(-1).
        ("debias_prior = 0.8", (e + 2.0 / e).ln() - 1.0),
        // Equal negatives weigh the same.
        ("hard_beta = 2.0", (e + 2.0).ln() - 1.0),
        ("semi_hard = true", softplus(-1.0)),
        ("kind = \"nt-logistic\"", softplus(-1.0) + 2.0 * 2f64.ln()),
        ("kind = \"nt-logistic\", semi_hard = true", softplus(-1.0) + 2f64.ln()),
        ("kind = \"margin\", margin = 1.5", 0.5),
        ("kind = \"margin\", margin = 0.5", 0.0),
        ("kind = \"margin\", margin = 1.5, semi_hard = true", 0.5),
    ] {
        let temperature = if keys.is_empty() { "temperature = 1.0" } else { ", temperature = 1.0" };
        let config = loss(&format!("{keys}{temperature}"));
        let found = contrastive_loss(&rows(&SQUARE, 2), &config).loss.double_value(&[]);
        assert!((found - expected).abs() < 1e-6, "{keys}: {found} {expected}");
    }
}

/// A pair that is closer than the others weighs less than 1 and the other one more (arXiv 2110.06848, equation 6).
#[test]
fn weights_of_dclw() {
    // Cosines 1 and 0 of the two pairs; all negatives at 0, in four dimensions.
    let z = [1.0f32, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
    let config = loss("decoupled = true, decoupled_weight_sigma = 0.5, temperature = 1.0");
    let found = contrastive_loss(&rows(&z, 4), &config).loss.double_value(&[]);
    let near = 2.0 - 2f64.exp() / ((2f64.exp() + 1.0) / 2.0);
    let expected = 2f64.ln() - near / 2.0;
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
}

/// Without a negative below the positive, only the term of the positive is left.
#[test]
fn semi_hard_negatives_are_below_the_positive() {
    let z = [1.0f32, 0.5, 0.6, 0.9];
    // Products with the positive and with the negatives: 0.6 and 0.5, 0.9; 0.45 and 0.5, 0.3; 0.6 and 0.3, 0.54; 0.45 and 0.9, 0.54.
    let anchors = [(0.6, Some(0.5)), (0.45, Some(0.3)), (0.6, Some(0.54)), (0.45, None)];
    let softplus = |x: f64| x.exp().ln_1p();
    let mean =
        |of: &dyn Fn(f64, Option<f64>) -> f64| anchors.iter().map(|&(p, n)| of(p, n)).sum::<f64>() / 4.0;
    let base = "semi_hard = true, normalize = false, temperature = 1.0";
    let found =
        |keys: &str| contrastive_loss(&rows(&z, 1), &loss(&format!("{base}{keys}"))).loss.double_value(&[]);
    let nt_xent = mean(&|p, n| n.map_or(0.0, |n| softplus(n - p)));
    assert!((found("") - nt_xent).abs() < 1e-6, "{} {nt_xent}", found(""));
    let logistic = mean(&|p, n| softplus(-p) + n.map_or(0.0, softplus));
    assert!((found(", kind = \"nt-logistic\"") - logistic).abs() < 1e-6);
    // 0.3 is farther than the margin below 0.45, so it is not semi-hard.
    let margin = mean(&|p, n| n.map_or(0.0, |n| (n - p + 0.125).max(0.0)));
    assert!(margin > 0.0 && (found(", kind = \"margin\", margin = 0.125") - margin).abs() < 1e-6);
}

/// Orthogonal rows, and equal rows where the similarity does not matter.
#[test]
fn losses_of_equal_similarities_are_the_values_at_chance() {
    for (keys, config) in super::cases().into_iter().filter(|(_, config)| !config.semi_hard) {
        let options = (Kind::Float, tch::Device::Cpu);
        let mut inputs = vec![Tensor::eye(8, options)];
        if config.chance_decides() {
            inputs.push(Tensor::ones([8, 3], options));
        }
        for z in inputs.iter().filter(|_| config.normalize) {
            let found = contrastive_loss(z, &config).loss.double_value(&[]);
            assert!((found - config.chance(8)).abs() < 1e-5, "{keys}: {found} {}", config.chance(8));
        }
    }
}

/// Of the semi-hard losses it is the limit in which the negatives come close to the positive from below.
#[test]
fn semi_hard_losses_approach_their_values_at_chance() {
    for (keys, config) in super::cases().into_iter().filter(|(_, config)| config.semi_hard) {
        let z = Tensor::eye(8, (Kind::Float, tch::Device::Cpu));
        let z = &z + z.roll([4], [0]) * 1e-3;
        let found = contrastive_loss(&z, &config).loss.double_value(&[]);
        let scale = config.reduction.factor() / config.temperature;
        assert!((found - config.chance(8)).abs() < 3e-3 * scale, "{keys}: {found} {}", config.chance(8));
        assert!(found > 0.0);
    }
}
