//! Margin loss over triplets (paper, Table 2).

use tch::{Kind, Tensor};

use super::pair_loss::{AnchorTerms, Batch, PairLoss, Side};

/// l = mean over the negatives k of max(s_k - s_positive + margin, 0), in similarities: there is no temperature.
pub(super) struct Margin {
    pub margin: f64,
}

impl PairLoss for Margin {
    fn name(&self) -> String {
        format!("margin loss ({})", self.margin)
    }

    fn temperature(&self) -> f64 {
        1.0
    }

    fn chance(&self, _: usize) -> (f64, String) {
        (self.margin, "the margin".into())
    }

    fn chance_decides(&self) -> bool {
        self.margin > 0.0
    }

    /// The similarity above which a negative counts, the sum of the excess, and the number of negatives above.
    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        vec![positives - self.margin, positives.zeros_like(), positives.zeros_like()]
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        let dims = [anchors.along];
        let excess = logits.sub_out(spare, &anchors.over_tile(0)).relu_();
        let sum = excess.sum_dim_intlist(dims.as_slice(), false, Kind::Float);
        let _ = anchors.values[1].shallow_clone().g_add_(&sum);
        let count = excess.gt(0.0).sum_dim_intlist(dims.as_slice(), false, Kind::Float);
        let _ = anchors.values[2].shallow_clone().g_add_(&count);
    }

    fn finish(&self, values: &[Tensor], _: &Tensor, batch: &Batch<'_>) -> AnchorTerms {
        let share = 1.0 / batch.negatives;
        AnchorTerms {
            losses: &values[1] * share,
            coefficients: vec![values[0].shallow_clone(), values[0].full_like(share)],
            at_positive: &values[2] * -share,
        }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        let by_row = logits.gt_tensor_out(&spare, &rows.over_tile(0)).g_mul_(&rows.over_tile(1));
        logits.gt_tensor_out(&logits, &columns.over_tile(0)).g_mul_(&columns.over_tile(1)).g_add_(&by_row)
    }
}
