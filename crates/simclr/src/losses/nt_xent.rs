//! NT-Xent, the normalised temperature-scaled cross entropy (paper section 2.1; google-research/simclr `objective.py`).

use tch::Tensor;

use super::{
    log_sums,
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// l = ln sum over the candidates k of exp(s_k) - s_positive; the positive is a candidate.
pub(super) struct NtXent {
    pub temperature: f64,
}

impl PairLoss for NtXent {
    fn name(&self) -> String {
        "NT-Xent".into()
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn positive_is_candidate(&self) -> bool {
        true
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
            at_positive: positives.zeros_like(),
        }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        log_sums::slopes(rows, columns, logits, &spare)
    }
}
