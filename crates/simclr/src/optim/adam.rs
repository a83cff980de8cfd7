//! AdamW (decoupled decay, as torch.optim.AdamW) and LAMB (arXiv 1904.00962).

use simclr_shim::Rule;
use tch::Tensor;

use super::{OptimConfig, OptimKind, ratio_or_one};
use crate::params::Param;

/// Upper bound of phi(|w|) in LAMB: that of public ports; the paper does not specify it.
const LAMB_MAX_NORM: f64 = 10.0;

/// `optim.eps`, by default that of PyTorch's AdamW or of the LAMB paper.
fn eps(config: &OptimConfig) -> f64 {
    config.eps.unwrap_or(if config.kind == OptimKind::Lamb { 1e-6 } else { 1e-8 })
}

fn bias_correction(config: &OptimConfig) -> bool {
    config.kind != OptimKind::Lamb || config.lamb_bias_correction
}

/// The rule for the GPU kernels.
pub fn rule(config: &OptimConfig) -> Rule {
    Rule::Adam {
        decay: config.weight_decay,
        beta1: config.beta1,
        beta2: config.beta2,
        eps: eps(config),
        bias_correction: bias_correction(config),
        max_norm: (config.kind == OptimKind::Lamb).then_some(LAMB_MAX_NORM),
    }
}

/// Updates `param` and its moments in place by ATen operations; `steps` counts from 1. Returns the trust ratio (scalar, on the
/// device) if LAMB adapts the parameter.
pub fn update(
    config: &OptimConfig,
    param: &Param,
    g: &Tensor,
    (first, second): (&mut Tensor, &mut Tensor),
    lr: f64,
    steps: i64,
) -> Option<Tensor> {
    let _ = first.lerp_(g, 1.0 - config.beta1);
    let _ = second.lerp_(&(g * g), 1.0 - config.beta2);
    let corrected = bias_correction(config);
    let unbiased = |beta: f64| if corrected { 1.0 - beta.powf(steps as f64) } else { 1.0 };
    let direction =
        &*first / unbiased(config.beta1) / ((&*second / unbiased(config.beta2)).sqrt() + eps(config));
    let decay = config.decay_of(param.role);
    let mut w = param.tensor.shallow_clone();
    if config.kind != OptimKind::Lamb {
        let _ = w.g_mul_scalar_(1.0 - lr * decay).g_sub_(&(direction * lr));
        return None;
    }
    let update = direction + &w * decay;
    let mut step = update.shallow_clone() * lr;
    let ratio =
        config.adapts(param.role).then(|| ratio_or_one(&w.norm().clamp_max(LAMB_MAX_NORM), &update.norm()));
    if let Some(ratio) = &ratio {
        let _ = step.g_mul_(ratio);
    }
    let _ = w.g_sub_(&step);
    ratio
}
