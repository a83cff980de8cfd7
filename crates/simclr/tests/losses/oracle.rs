//! The losses by their formulas in f64, once over loops and once over whole matrices through autograd. Nothing is tiled, shifted
//! against overflow or derived by hand.

use simclr::losses::{LossConfig, LossKind, Negatives, Reduction, contrastive_loss};
use tch::{Kind, Tensor};

/// Loss of one anchor from its similarity with the positive and those with its negatives; `weight` is DCLW's.
fn of_anchor(config: &LossConfig, positive: f64, negatives: &[f64], weight: f64) -> f64 {
    let count = negatives.len() as f64;
    let softplus = |x: f64| x.exp().ln_1p();
    if config.semi_hard {
        let below = negatives.iter().copied().filter(|&s| s < positive);
        let within = below.filter(|&s| config.kind != LossKind::Margin || s > positive - config.margin);
        let hardest = within.reduce(f64::max);
        let tau = config.temperature;
        return match (config.kind, hardest) {
            (LossKind::NtXent, Some(s)) => {
                -((positive / tau).exp() / ((positive / tau).exp() + (s / tau).exp())).ln()
            }
            (LossKind::NtLogistic, Some(s)) => softplus(-positive / tau) + softplus(s / tau),
            (LossKind::Margin, Some(s)) => s - positive + config.margin,
            (LossKind::NtLogistic, None) => softplus(-positive / tau),
            (_, None) => 0.0,
        };
    }
    let exp = |s: f64| (s / config.temperature).exp();
    let sum: f64 = negatives.iter().map(|&s| exp(s)).sum();
    match config.kind {
        LossKind::Margin => {
            negatives.iter().map(|s| (s - positive + config.margin).max(0.0)).sum::<f64>() / count
        }
        LossKind::NtLogistic => {
            let tau = config.temperature;
            softplus(-positive / tau) + negatives.iter().map(|s| softplus(s / tau)).sum::<f64>()
        }
        LossKind::NtXent if config.decoupled => sum.ln() - weight * positive / config.temperature,
        LossKind::NtXent => {
            let weights: Vec<f64> = negatives.iter().map(|&s| exp(s).powf(config.hard_beta)).collect();
            let mean = weights.iter().sum::<f64>() / count;
            let weighted: f64 = negatives.iter().zip(&weights).map(|(&s, w)| w * exp(s)).sum::<f64>() / mean;
            let prior = config.debias_prior;
            let estimate = (weighted - prior * count * exp(positive)) / (1.0 - prior);
            // Without these options there is no bound either.
            let bound = if config.normalize { count * exp(-1.0) } else { 0.0 };
            -(exp(positive) / (exp(positive) + estimate.max(bound))).ln()
        }
    }
}

/// Mean over anchors, times the factor of the reduction.
pub fn loss(z: &[Vec<f64>], config: &LossConfig) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let length = |v: &[f64]| if config.normalize { dot(v, v).sqrt() } else { 1.0 };
    let similarity = |i: usize, k: usize| dot(&z[i], &z[k]) / (length(&z[i]) * length(&z[k]));
    let n = z.len() / 2;
    let sigma = config.decoupled_weight_sigma;
    let potential = |i: usize| (similarity(i, (i + n) % (2 * n)) / sigma).exp();
    let mean = (0..n).map(potential).sum::<f64>() / n as f64;
    let anchor = |i: usize| {
        let is_negative =
            |&k: &usize| k % n != i % n && (config.negatives == Negatives::BothViews || (k < n) != (i < n));
        let negatives: Vec<f64> = (0..2 * n).filter(is_negative).map(|k| similarity(i, k)).collect();
        let weight = if sigma > 0.0 { 2.0 - potential(i) / mean } else { 1.0 };
        of_anchor(config, similarity(i, (i + n) % (2 * n)), &negatives, weight)
    };
    let factor = if config.reduction == Reduction::Official { 2.0 } else { 1.0 };
    factor * (0..2 * n).map(anchor).sum::<f64>() / (2 * n) as f64
}

/// The loss over whole matrices of `kind`: value and gradient at `z`.
pub fn whole_matrix(z: &Tensor, config: &LossConfig, kind: Kind) -> (f64, Tensor) {
    let leaf = z.detach().to_kind(kind).set_requires_grad(true);
    let rows = leaf.size()[0];
    let unit = match config.normalize {
        true => &leaf / (&leaf * &leaf).sum_dim_intlist([1i64].as_slice(), true, kind).sqrt(),
        false => leaf.shallow_clone(),
    };
    let s = unit.matmul(&unit.tr());
    let partner = Tensor::arange(rows, (Kind::Int64, leaf.device())).roll([rows / 2], [0]).unsqueeze(1);
    let positive = s.gather(1, &partner, false);
    let losses = losses(config, &s, &positive);
    let factor = if config.reduction == Reduction::Official { 2.0 } else { 1.0 };
    let loss = losses.mean(kind) * factor;
    loss.backward();
    (loss.double_value(&[]), leaf.grad())
}

/// True where the column is a negative of the row.
fn negatives(config: &LossConfig, rows: i64) -> Tensor {
    let number = Tensor::arange(rows, (Kind::Int64, tch::Device::Cpu));
    let (image, view) = (number.remainder(rows / 2), number.floor_divide_scalar(rows / 2));
    let differs = |of: &Tensor| of.unsqueeze(1).ne_tensor(&of.unsqueeze(0));
    match config.negatives {
        Negatives::BothViews => differs(&image),
        Negatives::OtherView => differs(&image).logical_and(&differs(&view)),
    }
}

fn losses(config: &LossConfig, s: &Tensor, positive: &Tensor) -> Tensor {
    let others = negatives(config, s.size()[0]).logical_not();
    let masked = |of: &Tensor| of.masked_fill(&others, f64::NEG_INFINITY);
    let (tau, kind) = (config.temperature, s.kind());
    let count = (s.ones_like() * others.logical_not()).sum_dim_intlist([1i64].as_slice(), true, kind);
    let negative = if config.semi_hard {
        let within = masked(s).masked_fill(&s.ge_tensor(positive), f64::NEG_INFINITY);
        within.amax([1i64].as_slice(), true)
    } else {
        masked(s)
    };
    let over = |terms: Tensor| terms.sum_dim_intlist([1i64].as_slice(), true, kind);
    match (config.kind, config.semi_hard) {
        (LossKind::NtXent, true) => ((negative - positive) / tau).softplus(),
        (LossKind::NtLogistic, _) => (-positive / tau).softplus() + over((negative / tau).softplus()),
        (LossKind::Margin, true) => (negative - positive + config.margin).relu(),
        (LossKind::Margin, false) => over((negative - positive + config.margin).relu()) / count,
        (LossKind::NtXent, false) if config.decoupled => {
            let weight = dclw_weights(config, positive);
            (negative / tau).logsumexp([1i64].as_slice(), true) - positive / tau * weight
        }
        (LossKind::NtXent, false) if config.hard_beta == 0.0 && config.debias_prior == 0.0 => {
            let sum = (negative / tau).logsumexp([1i64].as_slice(), true).logaddexp(&(positive / tau));
            sum - positive / tau
        }
        (LossKind::NtXent, false) => {
            let weighted = (negative * ((1.0 + config.hard_beta) / tau)).exp();
            let weights = (s * (config.hard_beta / tau)).exp().masked_fill(&others, 0.0);
            let weighted = over(weighted) / over(weights) * &count;
            let (prior, exp) = (config.debias_prior, (positive / tau).exp());
            let estimate = (weighted - &exp * &count * prior) / (1.0 - prior);
            let bound = if config.normalize { count * (-1.0 / tau).exp() } else { count * 0.0 };
            (estimate.maximum(&bound) + &exp).log() - positive / tau
        }
    }
}

fn dclw_weights(config: &LossConfig, positive: &Tensor) -> Tensor {
    if config.decoupled_weight_sigma == 0.0 {
        return positive.ones_like();
    }
    let potential = (positive / config.decoupled_weight_sigma).exp();
    2.0 - &potential / potential.mean(positive.kind())
}

/// |a - b| / |b|.
pub fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    ((found.to_kind(Kind::Double) - &expected).norm() / expected.norm()).double_value(&[])
}

/// Number of rows that differ by more than a thousandth of the mean length of a row.
pub fn rows_off(found: &Tensor, expected: &Tensor) -> i64 {
    let expected = expected.to_kind(Kind::Double);
    let length = |of: &Tensor| of.norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
    let off = length(&(found.to_kind(Kind::Double) - &expected));
    off.gt_tensor(&(length(&expected).mean(Kind::Double) * 1e-3)).sum(Kind::Int64).int64_value(&[])
}

/// Value and gradient of the library.
pub fn both(z: &Tensor, config: &LossConfig) -> (f64, Tensor) {
    let leaf = z.detach().set_requires_grad(true);
    let loss = contrastive_loss(&leaf, config).loss;
    loss.backward();
    (loss.double_value(&[]), leaf.grad())
}
