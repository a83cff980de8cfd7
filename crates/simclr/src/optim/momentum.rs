//! Momentum SGD, and LARS (arXiv 1708.03888), which scales each layer's step by |w| / |g|.

use simclr_shim::{Rule, Trust};
use tch::Tensor;

use super::{LarsNorm, OptimConfig, OptimKind, ratio_or_one};
use crate::params::Param;

/// The rule for the GPU kernels.
pub fn rule(config: &OptimConfig) -> Rule {
    Rule::Momentum {
        decay: config.weight_decay,
        momentum: config.momentum,
        nesterov: config.nesterov,
        lr_in_momentum: config.lr_in_momentum,
        trust: (config.kind == OptimKind::Lars).then_some(Trust {
            coefficient: config.lars_trust_coefficient,
            separate_norms: config.lars_norm == LarsNorm::Separate,
        }),
    }
}

/// Updates `param` and its momentum buffer `velocity` in place by ATen operations, without host synchronisation.
///
/// With `lr_in_momentum` (google-research/simclr `lars_optimizer.py`, `classic_momentum`): v = m v + s g, w -= v, where
/// s = lr x ratio. Without (PyTorch's convention): v = m v + ratio x g, w -= lr v. Both agree while lr is constant.
///
/// Returns the trust ratio (scalar, on the device) if LARS adapts the parameter.
pub fn update(
    config: &OptimConfig,
    param: &Param,
    gradient: &Tensor,
    velocity: &mut Tensor,
    lr: f64,
) -> Option<Tensor> {
    let decayed = config.decays(param.role) && config.weight_decay != 0.0;
    let g = if decayed { gradient + &param.tensor * config.weight_decay } else { gradient.shallow_clone() };
    let (inside, outside) = if config.lr_in_momentum { (lr, 1.0) } else { (1.0, lr) };
    let mut step = &g * inside;
    let ratio = config.adapts(param.role).then(|| trust_ratio(config, param, gradient, &g));
    if let Some(ratio) = &ratio {
        let _ = step.g_mul_(ratio);
    }
    let _ = velocity.g_mul_scalar_(config.momentum).g_add_(&step);
    let update = if config.nesterov { &*velocity * config.momentum + step } else { velocity.shallow_clone() };
    let _ = param.tensor.shallow_clone().g_sub_(&(update * outside));
    ratio
}

/// eeta |w| / |g| with either denominator; 1 if a norm is 0. A scalar.
fn trust_ratio(config: &OptimConfig, param: &Param, gradient: &Tensor, decayed: &Tensor) -> Tensor {
    let weight = param.tensor.norm();
    let denominator = match config.lars_norm {
        LarsNorm::Decayed => decayed.norm(),
        LarsNorm::Separate => gradient.norm() + &weight * config.weight_decay,
    };
    ratio_or_one(&(weight * config.lars_trust_coefficient), &denominator)
}
