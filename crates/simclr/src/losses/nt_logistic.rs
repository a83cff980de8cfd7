//! NT-Logistic: every similarity classified on its own (paper, Table 2).

use std::f64::consts::LN_2;

use tch::{Kind, Tensor};

use super::pair_loss::{AnchorTerms, Batch, PairLoss, Side};

/// l = -ln sigmoid(s_positive) - sum over the negatives k of ln sigmoid(-s_k).
pub(super) struct NtLogistic {
    pub temperature: f64,
}

impl PairLoss for NtLogistic {
    fn name(&self) -> String {
        "NT-Logistic".into()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    /// At similarity 0: the 2N rows cannot have a mean similarity below -1 / (2N - 1).
    fn chance(&self, negatives: usize) -> (f64, String) {
        let terms = negatives + 1;
        (terms as f64 * LN_2, format!("{terms} ln 2"))
    }

    /// Of M + 1 terms only one depends on the positive, and clusters of similar images raise the others.
    fn chance_decides(&self) -> bool {
        false
    }

    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        vec![positives.zeros_like()]
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        let along = anchors.along;
        let terms = logits.softplus_out(spare).sum_dim_intlist([along].as_slice(), false, Kind::Float);
        let _ = anchors.values[0].shallow_clone().g_add_(&terms);
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, _: &Batch<'_>) -> AnchorTerms {
        AnchorTerms {
            losses: &values[0] + positives.neg().softplus(),
            coefficients: vec![positives.zeros_like()],
            at_positive: -positives.neg().sigmoid(),
        }
    }

    /// The slope depends on the logit only, so both sides have the same.
    fn slopes(&self, _: &Side, _: &Side, mut logits: Tensor, _: Tensor) -> Tensor {
        logits.sigmoid_().g_mul_scalar_(2.0)
    }
}
