//! Sums of exponentials of logits: the part that NT-Xent and its variants share.

use tch::{Kind, Tensor};

use super::pair_loss::Side;

/// Values of [`add`] before the first candidate: the largest logit, and the sum of exp(logit - largest). A single f32 log-sum-exp
/// would round away small losses of confident anchors.
pub(super) fn start(positives: &Tensor) -> Vec<Tensor> {
    // The lowest finite value instead of minus infinity: differences stay finite.
    vec![positives.full_like(f64::from(f32::MIN)), positives.zeros_like()]
}

/// Adds the terms of a tile.
pub(super) fn add(anchors: &Side, logits: &Tensor, spare: &Tensor) {
    add_along(&anchors.values, anchors.along, logits, spare);
}

/// Adds the terms along dimension `along` of `logits` to the two `values` of every anchor.
pub(super) fn add_along(values: &[Tensor], along: i64, logits: &Tensor, spare: &Tensor) {
    let [largest, sum] = values else { unreachable!("two values per anchor") };
    let now = largest.maximum(&logits.amax([along].as_slice(), false));
    let terms = logits.sub_out(spare, &now.unsqueeze(along)).exp_();
    let terms = terms.sum_dim_intlist([along].as_slice(), false, Kind::Float);
    let before = sum * (largest - &now).exp();
    sum.shallow_clone().copy_(&(before + terms));
    largest.shallow_clone().copy_(&now);
}

/// Slopes `factor * exp(logit - largest)` with the coefficients (largest, factor).
pub(super) fn slopes(rows: &Side, columns: &Side, mut logits: Tensor, spare: &Tensor) -> Tensor {
    // The exponent is at most 0 for either row as anchor.
    let by_row = logits.sub_out(spare, &rows.over_tile(0)).exp_();
    let mut slopes = logits.g_sub_(&columns.over_tile(0)).exp_();
    slopes.g_mul_(&columns.over_tile(1)).addcmul_(&by_row, &rows.over_tile(1))
}
