//! Contrastive loss with hard negatives (Robinson et al. 2021, arXiv 2010.04592, equation 4; joshr17/HCL `image/main.py`).

use tch::{Kind, Tensor};

use super::{
    debiased::{Estimated, Estimator},
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// The debiased loss with M sum exp((1 + beta) s_k) / sum exp(beta s_k) in place of the sum over the M negatives: negatives are
/// weighted by exp(beta s_k). The gradient passes through the weights, as in the official code.
pub(super) struct Hard {
    pub temperature: f64,
    pub prior: f64,
    /// Concentration, above 0.
    pub beta: f64,
}

impl Hard {
    /// `steep * exp((1 + beta) x) - flat * exp(beta x)` with x = logit - largest, from the coefficients (largest, steep, flat).
    fn slope(&self, anchors: &Side, logits: &Tensor, into: &Tensor) -> Tensor {
        let mut shifted = logits.sub_out(into, &anchors.over_tile(0));
        let weights = (&shifted * self.beta).exp();
        let _ = shifted.exp_().g_mul_(&anchors.over_tile(1)).g_sub_(&anchors.over_tile(2));
        shifted.g_mul_(&weights)
    }
}

impl PairLoss for Hard {
    fn name(&self) -> String {
        format!("NT-Xent with hard negatives, concentration {}, class prior {}", self.beta, self.prior)
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The largest logit, and the sums of exp((1 + beta) x) and of exp(beta x) with x = logit - largest.
    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        vec![positives.full_like(f64::from(f32::MIN)), positives.zeros_like(), positives.zeros_like()]
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        let [largest, steep, flat] = &anchors.values[..] else { unreachable!("three values per anchor") };
        let along = anchors.along;
        let now = largest.maximum(&logits.amax([along].as_slice(), false));
        let shifted = logits.sub_out(spare, &now.unsqueeze(along));
        let shrunk = largest - &now;
        for (sum, exponent) in [(steep, 1.0 + self.beta), (flat, self.beta)] {
            let terms = (&shifted * exponent).exp_();
            let terms = terms.sum_dim_intlist([along].as_slice(), false, Kind::Float);
            sum.shallow_clone().copy_(&(sum * (&shrunk * exponent).exp() + terms));
        }
        largest.shallow_clone().copy_(&now);
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, batch: &Batch<'_>) -> AnchorTerms {
        let [largest, steep, flat] = values else { unreachable!("three values per anchor") };
        let weighted = steep / flat * batch.negatives;
        let estimator = Estimator { temperature: self.temperature, prior: self.prior };
        let Estimated { losses, per_term, at_positive } =
            estimator.evaluate([largest, &weighted], positives, batch);
        let at_sum = per_term * weighted;
        let coefficients =
            vec![largest.shallow_clone(), &at_sum * (1.0 + self.beta) / steep, at_sum * self.beta / flat];
        AnchorTerms { losses, coefficients, at_positive }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        let by_row = self.slope(rows, &logits, &spare);
        self.slope(columns, &logits, &logits).g_add_(&by_row)
    }
}
