//! The projection head g: h `[B, F]` to z `[B, D]`, thrown away after pretraining (spec 4.3).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{device::Precision, encoder::Mode, params::Params};

/// `[head]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// Shape of the head.
    pub kind: HeadKind,
    /// Dense layers of a nonlinear head: 2 (paper v1), 3 (v2).
    pub layers: usize,
    /// Width of hidden layers; 0 = F.
    pub hidden: i64,
    /// D.
    pub out: i64,
    /// Batch norm in the head.
    pub norm: HeadNorm,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { kind: HeadKind::Nonlinear, layers: 2, hidden: 0, out: 128, norm: HeadNorm::All }
    }
}

/// `head.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// z = h.
    None,
    /// One dense layer.
    Linear,
    /// Dense layers with ReLU between.
    Nonlinear,
}

/// `head.norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadNorm {
    /// After every dense layer, the last one without shift (google-research/simclr `model_util.py`); dense layers
    /// have no bias.
    All,
    /// After hidden layers only; the last dense layer has a bias.
    Hidden,
    /// Nowhere; dense layers have biases (the paper's formula taken literally).
    None,
}

/// A projection head.
#[derive(Debug)]
pub struct Head {}

impl Head {
    /// Builds the head for features of width `features` under the names `head.*`.
    pub fn new(config: &HeadConfig, features: i64, params: &mut Params) -> Self {
        let _ = (config, features, params);
        todo!("helper model")
    }

    /// z `[B, D]` in f32, not normalised.
    pub fn forward(&self, h: &Tensor, mode: Mode, precision: Precision) -> Tensor {
        let _ = (h, mode, precision);
        todo!("helper model")
    }
}
