//! DCLW: DCL with a von Mises-Fisher weight on each positive (Yeh et al. 2021, arXiv 2110.06848, equations 5 and 6).

use tch::{Kind, Tensor};

use super::{
    dcl::Dcl,
    pair_loss::{AnchorTerms, Batch, PairLoss, Side},
};

/// l = ln sum over the negatives k of exp(s_k) - w s_positive with w = 2 - exp(c / sigma) / (mean of exp(c / sigma) over the N images),
/// c being the cosine of the pair: pairs that are already close weigh less, and the mean weight is 1.
///
/// The gradient passes through w, as in raminnakhli/Decoupled-Contrastive-Learning `loss/dcl.py`, class `DCLW`. Its revision 50991ef
/// divides by the sum in place of the mean, which makes all weights about 2; the mean is the paper's.
pub(super) struct Dclw {
    pub dcl: Dcl,
    pub sigma: f64,
}

impl PairLoss for Dclw {
    fn name(&self) -> String {
        format!("DCLW with sigma {}", self.sigma)
    }

    fn temperature(&self) -> f64 {
        self.dcl.temperature
    }

    fn chance(&self, negatives: usize) -> (f64, String) {
        self.dcl.chance(negatives)
    }

    fn start(&self, positives: &Tensor) -> Vec<Tensor> {
        self.dcl.start(positives)
    }

    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor) {
        self.dcl.add(anchors, logits, spare);
    }

    fn finish(&self, values: &[Tensor], positives: &Tensor, batch: &Batch<'_>) -> AnchorTerms {
        let terms = self.dcl.finish(values, positives, batch);
        let cosines = positives * self.dcl.temperature;
        let all = batch.group.all_gather(&cosines);
        // Both anchors of a pair have the same weight, so the first views represent the N images.
        let images = all.size()[0] / 2;
        let (own, all) = (cosines / self.sigma, all.narrow(0, 0, images) / self.sigma);
        let shares = (&own - all.logsumexp([0i64].as_slice(), true)).exp();
        let mean = (&all * all.softmax(0, Kind::Float)).sum(Kind::Float);
        let weights: Tensor = 2.0 - &shares * images as f64;
        // The sum of w_i c_i over images i has the derivative w_j - N share_j (c_j - mean of c under the shares) / sigma at c_j.
        let at_positive = (&own - mean) * shares * images as f64 - &weights;
        AnchorTerms { losses: terms.losses + (1.0 - weights) * positives, at_positive, ..terms }
    }

    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor {
        self.dcl.slopes(rows, columns, logits, spare)
    }
}
