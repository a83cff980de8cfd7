//! NT-Xent, the normalised temperature-scaled cross entropy (paper section 2.1; google-research/simclr `objective.py`).

use serde::{Deserialize, Serialize};
use tch::Tensor;

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

/// Computes the loss in f32, whatever the type of `z`.
pub fn nt_xent(z: &Tensor, config: &LossConfig) -> NtXent {
    let _ = (z, config);
    todo!("helper model")
}
