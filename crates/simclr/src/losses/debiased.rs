//! Debiased contrastive loss (Chuang et al. 2020, arXiv 2007.00224, equation 8).

use tch::{Kind, Tensor};

use super::{
    log_sums,
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// l = ln(exp(s_positive) + G) - s_positive, with G of [`Estimator`] from the sum of exponentials of the negatives.
pub(super) struct Debiased {
    pub temperature: f64,
    pub prior: f64,
}

/// The estimate G of the sum of exponentials over negatives of other classes: of M negatives, the share `prior` (tau_plus) is of the
/// anchor's class and looks like its positive.
///
/// G = max((sum - prior M exp(s_positive)) / (1 - prior), M exp(-1 / temperature)); no similarity is below -1. The gradient passes
/// through both terms and is 0 where the bound is active, as in chingyaoc/DCL `main.py`.
pub(super) struct Estimator {
    pub temperature: f64,
    pub prior: f64,
}

/// Losses and derivatives of [`Estimator`], `[2m]` each.
pub(super) struct Estimated {
    pub losses: Tensor,
    /// Derivative of the loss at the logarithm of the sum, divided by the sum over exp(`largest`).
    pub per_term: Tensor,
    pub at_positive: Tensor,
}

impl Estimator {
    /// From the sum over the negatives, which is `sum * exp(largest)`.
    pub fn evaluate(&self, [largest, sum]: [&Tensor; 2], positives: &Tensor, batch: &Batch<'_>) -> Estimated {
        let (count, prior) = (batch.negatives, self.prior);
        // All terms are divided by exp(top).
        let top = largest.maximum(positives);
        let unit = (largest - &top).exp() / (1.0 - prior);
        let positive = (positives - &top).exp();
        let correction = &positive * (prior * count / (1.0 - prior));
        let unbounded = &unit * sum - &correction;
        let bound = (-1.0 / self.temperature - &top).exp() * count;
        let is_free = unbounded.ge_tensor(&bound).to_kind(Kind::Float);
        let estimate = unbounded.maximum(&bound);
        let total = &estimate + positive;
        Estimated {
            losses: total.log() + &top - positives,
            per_term: unit * &is_free / &total,
            // The derivative of ln(total), minus 1, without the difference of two numbers near 1.
            at_positive: -(estimate + correction * is_free) / total,
        }
    }
}

impl PairLoss for Debiased {
    fn name(&self) -> String {
        format!("debiased NT-Xent with a class prior of {}", self.prior)
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        log_sums::start(positives)
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        log_sums::add(anchors, logits, spare);
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, batch: &Batch<'_>) -> AnchorTerms {
        let estimator = Estimator { temperature: self.temperature, prior: self.prior };
        let Estimated { losses, per_term, at_positive } =
            estimator.evaluate([&values[0], &values[1]], positives, batch);
        AnchorTerms { losses, coefficients: vec![values[0].shallow_clone(), per_term], at_positive }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        log_sums::slopes(rows, columns, logits, &spare)
    }
}
