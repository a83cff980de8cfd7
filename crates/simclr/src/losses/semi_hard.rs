//! Semi-hard negative mining (Schroff et al. 2015, arXiv 1503.03832, section 3.2; paper, Table 4).

use std::f64::consts::LN_2;

use tch::{Kind, Tensor};

use super::{
    margin::Margin,
    nt_logistic::NtLogistic,
    nt_xent::NtXent,
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// A loss of one negative per anchor: the most similar one among those that are less similar than the positive. The paper does not
/// define it further; this is the reading that can be implemented. An anchor without such a negative has no negative term. Of equally
/// similar negatives one is chosen.
pub(super) struct SemiHard<L> {
    pub loss: L,
}

/// A loss of an anchor with one negative.
pub(super) trait Triplet: PairLoss {
    /// `found` is 1, or 0 for anchors without negative, of which `negative` has no meaning but is finite.
    fn terms(&self, positive: &Tensor, negative: &Tensor, found: &Tensor) -> TripletTerms;

    /// The loss if the negative is as similar as the positive, and its formula.
    fn chance(&self) -> (f64, String);
}

/// Losses and their derivatives, `[2m]` each.
pub(super) struct TripletTerms {
    pub losses: Tensor,
    pub at_positive: Tensor,
    pub at_negative: Tensor,
}

impl<L: Triplet> PairLoss for SemiHard<L> {
    fn name(&self) -> String {
        format!("{} with semi-hard negatives", self.loss.name())
    }

    fn temperature(&self) -> f64 {
        self.loss.temperature()
    }

    fn chance(&self, _: usize) -> (f64, String) {
        Triplet::chance(&self.loss)
    }

    fn chance_decides(&self) -> bool {
        self.loss.chance_decides()
    }

    /// The logit of the positive, the largest one below it, and the number of that candidate, or -1.
    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        vec![positives.shallow_clone(), positives.full_like(f64::NEG_INFINITY), positives.full_like(-1.0)]
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        let [_, best, chosen] = &anchors.values[..] else { unreachable!("three values per anchor") };
        let is_above = logits.ge_tensor(&anchors.over_tile(0));
        let mut candidates = spare.shallow_clone();
        candidates.copy_(logits);
        let candidates = candidates.masked_fill_(&is_above, f64::NEG_INFINITY);
        let (largest, position) = candidates.max_dim(anchors.along, false);
        let is_better = largest.gt_tensor(best);
        chosen.shallow_clone().copy_(&anchors.number(&position).where_self(&is_better, chosen));
        best.shallow_clone().copy_(&largest.where_self(&is_better, best));
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, _: &Batch<'_>) -> AnchorTerms {
        let [_, best, chosen] = values else { unreachable!("three values per anchor") };
        let found = chosen.ge(0.0);
        let negative = best.where_self(&found, positives);
        let terms = self.loss.terms(positives, &negative, &found.to_kind(Kind::Float));
        AnchorTerms {
            losses: terms.losses,
            coefficients: vec![chosen.shallow_clone(), terms.at_negative],
            at_positive: terms.at_positive,
        }
    }

    /// Candidates are compared by number: two processes may compute a similarity with different rounding.
    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        let slope = |anchors: &Side, into: &Tensor| {
            let candidates = anchors.candidates(into);
            candidates.eq_tensor_out(into, &anchors.over_tile(0)).g_mul_(&anchors.over_tile(1))
        };
        let by_row = slope(rows, &spare);
        slope(columns, &logits).g_add_(&by_row)
    }
}

/// The two-way cross entropy of positive and negative, 0 without negative.
impl Triplet for NtXent {
    fn terms(&self, positive: &Tensor, negative: &Tensor, found: &Tensor) -> TripletTerms {
        let difference = negative - positive;
        let slope = difference.sigmoid() * found;
        TripletTerms { losses: difference.softplus() * found, at_positive: -&slope, at_negative: slope }
    }

    fn chance(&self) -> (f64, String) {
        (LN_2, "ln 2".into())
    }
}

impl Triplet for NtLogistic {
    fn terms(&self, positive: &Tensor, negative: &Tensor, found: &Tensor) -> TripletTerms {
        TripletTerms {
            losses: positive.neg().softplus() + found * negative.softplus(),
            at_positive: -positive.neg().sigmoid(),
            at_negative: found * negative.sigmoid(),
        }
    }

    fn chance(&self) -> (f64, String) {
        (2.0 * LN_2, "2 ln 2".into())
    }
}

impl Triplet for Margin {
    /// A negative below the positive by the margin or more has loss and slope 0, as if there were none.
    fn terms(&self, positive: &Tensor, negative: &Tensor, found: &Tensor) -> TripletTerms {
        let excess = (negative - positive + self.margin).relu() * found;
        let is_inside = excess.gt(0.0).to_kind(Kind::Float);
        TripletTerms { losses: excess, at_positive: -&is_inside, at_negative: is_inside }
    }

    fn chance(&self) -> (f64, String) {
        PairLoss::chance(self, 1)
    }
}
