//! DCL, decoupled contrastive learning (Yeh et al. 2021, arXiv 2110.06848, equation 4).

use tch::Tensor;

use super::{
    log_sums,
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// NT-Xent with the positive left out of the denominator: l = ln sum over the negatives k of exp(s_k) - s_positive.
pub(super) struct Dcl {
    pub temperature: f64,
}

impl PairLoss for Dcl {
    fn name(&self) -> String {
        "DCL".into()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn chance(&self, negatives: usize) -> (f64, String) {
        ((negatives as f64).ln(), format!("ln {negatives}"))
    }

    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        log_sums::start(positives)
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        log_sums::add(anchors, logits, spare);
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, _: &Batch<'_>) -> AnchorTerms {
        let (largest, sum) = (&values[0], &values[1]);
        AnchorTerms {
            losses: (largest - positives) + sum.log(),
            coefficients: vec![largest.shallow_clone(), sum.reciprocal()],
            at_positive: positives.full_like(-1.0),
        }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        log_sums::slopes(rows, columns, logits, &spare)
    }
}
