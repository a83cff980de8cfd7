//! Who decays ([`groups`]), how to step ([`lars`], [`sgd`], [`adamw`], [`lamb`]), how fast ([`schedule`]).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{CheckpointError, params::Params};

/// `[optim]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Update rule.
    pub kind: OptimKind,
    /// Base learning rate, before scaling.
    pub lr: f64,
    /// How the base is scaled with the batch of N images.
    pub scaling: Scaling,
    /// Weight decay of kernels.
    pub weight_decay: f64,
    /// Momentum of LARS and SGD.
    pub momentum: f64,
    /// Nesterov momentum (SGD, LARS).
    pub nesterov: bool,
    /// LARS trust coefficient (eeta).
    pub trust: f64,
    /// LARS denominator.
    pub lars_norm: LarsNorm,
    /// Where the learning rate enters the momentum buffer (LARS, SGD).
    pub lr_in_momentum: bool,
    /// AdamW and LAMB.
    pub beta1: f64,
    /// AdamW and LAMB.
    pub beta2: f64,
    /// AdamW and LAMB.
    pub eps: f64,
    /// Linear warm-up, in epochs.
    pub warmup_epochs: f64,
    /// After warm-up.
    pub schedule: ScheduleKind,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            kind: OptimKind::Lars,
            lr: 0.3,
            scaling: Scaling::Linear,
            weight_decay: 1e-6,
            momentum: 0.9,
            nesterov: false,
            trust: 1e-3,
            lars_norm: LarsNorm::Decayed,
            lr_in_momentum: true,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            warmup_epochs: 10.0,
            schedule: ScheduleKind::Cosine,
        }
    }
}

/// `optim.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimKind {
    /// Layer-wise adaptive rate scaling (spec 6.1).
    Lars,
    /// Momentum SGD.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Layer-wise adaptive moments (spec 12.3).
    Lamb,
}

/// `optim.scaling` (spec 6.2). B is the number of images of the whole batch, not of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// lr * B / 256.
    Linear,
    /// lr * sqrt(B).
    Sqrt,
    /// lr * sqrt(B / 256), for Adam-like rules anchored at 256.
    SqrtOf256,
    /// lr.
    None,
}

/// `optim.lars_norm` (spec 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LarsNorm {
    /// |g + wd * w| (google-research/simclr `lars_optimizer.py`).
    Decayed,
    /// |g| + wd * |w| (LARS paper; lightly, solo-learn).
    Separate,
}

/// `optim.schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine to 0 (spec 6.3).
    Cosine,
    /// Constant.
    Constant,
}

/// An optimizer with its state, over the parameters it was built for.
#[derive(Debug)]
pub struct Optimizer {}

impl Optimizer {
    /// Zero state for `params`.
    pub fn new(config: &OptimConfig, params: &Params) -> Self {
        let _ = (config, params);
        todo!("helper optim")
    }

    /// One update with learning rate `lr` from the parameters' gradients, which are cleared.
    pub fn step(&mut self, params: &Params, lr: f64) {
        let _ = (params, lr);
        todo!("helper optim")
    }

    /// State by name (`optim.momentum.encoder.conv1.weight`, ...), for checkpoints.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        todo!("helper optim")
    }

    /// Puts a state back.
    ///
    /// # Errors
    /// The name that is missing or has another shape.
    pub fn load_state(&mut self, get: &dyn Fn(&str) -> Result<Tensor, CheckpointError>) -> Result<(), CheckpointError> {
        let _ = get;
        todo!("helper optim")
    }

    /// The parameter groups for people: role, tensors, numbers, decay, adaptation.
    pub fn group_table(&self) -> String {
        todo!("helper optim")
    }
}

/// Learning rate of every step, from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Peak.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Step at which the cosine reaches 0.
    pub total_steps: u64,
    /// Shape.
    pub kind: ScheduleKind,
}

impl Schedule {
    /// Learning rate at `step`.
    pub fn at(&self, step: u64) -> f64 {
        let _ = step;
        todo!("helper optim")
    }
}
