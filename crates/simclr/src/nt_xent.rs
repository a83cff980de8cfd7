//! NT-Xent, the normalised temperature-scaled cross entropy (paper section 2.1; google-research/simclr `objective.py`).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[loss]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// tau, above 0. Paper: 0.1 on ImageNet (Table 5), 0.5 on CIFAR-10 (B.9).
    pub temperature: f64,
    /// Mean over anchors (paper) or twice that (official code, spec 3.2).
    pub scale: LossScale,
    /// L2-normalise z; off only for the ablation of Table 5.
    pub normalize: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { temperature: 0.1, scale: LossScale::Paper, normalize: true }
    }
}

/// `loss.scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossScale {
    /// Mean over the 2N anchors.
    Paper,
    /// Sum of two means over N anchors each: twice the paper's.
    Official,
}

/// The loss of `z` `[2N, D]`, rows `i` and `i + N` being two views of one image, and what is watched (spec 3.5).
#[derive(Debug)]
pub struct NtXent {
    /// Scalar with gradient, f32.
    pub loss: Tensor,
    /// Contrastive accuracy over the N views of the other side, `[]`, no gradient.
    pub accuracy: Tensor,
}

/// Added under the root of the norm, as TensorFlow's `l2_normalize` does (its default epsilon).
const NORM_EPSILON: f64 = 1e-12;

/// Computes the loss in f32, whatever the type of `z`.
///
/// One `[2N, 2N]` matrix of similarities; the anchor itself is masked to minus infinity before the soft-max, so no
/// gradient flows through it, and the log-sum-exp is libtorch's, which subtracts the row maximum.
///
/// # Panics
/// If `z` does not have an even number of rows: a batch is made of pairs.
pub fn nt_xent(z: &Tensor, config: &LossConfig) -> NtXent {
    let (rows, device) = (z.size()[0], z.device());
    assert!(rows >= 2 && rows % 2 == 0, "rows i and i + N are two views of one image, got {rows} rows");
    let n = rows / 2;
    let z = z.to_kind(Kind::Float);
    let z = if config.normalize { l2_normalize(&z) } else { z };
    let itself = Tensor::eye(rows, (Kind::Bool, device));
    let logits = (z.matmul(&z.tr()) / config.temperature).masked_fill(&itself, f64::NEG_INFINITY); // [2N, 2N]
    let other_view = Tensor::arange(rows, (Kind::Int64, device)).roll([n], [0]); // row i -> i + N mod 2N
    let mean = logits.cross_entropy_loss(&other_view, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0);
    let loss = match config.scale {
        LossScale::Paper => mean,
        LossScale::Official => mean * 2.0,
    };
    NtXent { loss, accuracy: contrastive_accuracy(&logits.detach(), n) }
}

/// Rows to unit length, `[B, D]`.
pub fn l2_normalize(z: &Tensor) -> Tensor {
    let squares = (z * z).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    z * squares.clamp_min(NORM_EPSILON).rsqrt()
}

/// Share of first views whose most similar second view is their own: N candidates (official `model.py`).
fn contrastive_accuracy(logits: &Tensor, n: i64) -> Tensor {
    let best = logits.narrow(0, 0, n).narrow(1, n, n).argmax(1, false);
    best.eq_tensor(&Tensor::arange(n, (Kind::Int64, logits.device()))).to_kind(Kind::Float).mean(Kind::Float)
}
