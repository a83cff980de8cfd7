//! AdamW (decoupled decay, as torch.optim.AdamW) and LAMB (spec 12.3).

use simclr_shim::Rule;
use tch::Tensor;

use super::{OptimConfig, OptimKind, groups::decays, ratio_or_one};
use crate::params::Param;

/// Upper bound of phi(|w|) in LAMB (the public port's; the paper leaves it open, spec 12.3).
const LAMB_MAX_NORM: f64 = 10.0;

/// The rule for the CPU's kernels.
pub fn rule(config: &OptimConfig, lr: f64, steps: i64) -> Rule {
    Rule::Adam {
        lr,
        decay: config.weight_decay,
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        steps,
        max_norm: (config.kind == OptimKind::Lamb).then_some(LAMB_MAX_NORM),
    }
}

/// One update of `param` in place, by libtorch's operations; `moments` are its first and second moment, `steps` counts from 1.
pub fn update(
    config: &OptimConfig,
    param: &Param,
    g: &Tensor,
    (first, second): (&mut Tensor, &mut Tensor),
    lr: f64,
    steps: i64,
) {
    let _ = first.g_mul_scalar_(config.beta1).g_add_(&(g * (1.0 - config.beta1)));
    let _ = second.g_mul_scalar_(config.beta2).g_add_(&(g * g * (1.0 - config.beta2)));
    let unbiased = |beta: f64| 1.0 - beta.powf(steps as f64);
    let direction =
        &*first / unbiased(config.beta1) / ((&*second / unbiased(config.beta2)).sqrt() + config.eps);
    let decay = if decays(param.role) { config.weight_decay } else { 0.0 };
    let mut w = param.tensor.shallow_clone();
    if config.kind == OptimKind::Adamw {
        let _ = w.g_mul_scalar_(1.0 - lr * decay).g_sub_(&(direction * lr));
        return;
    }
    let update = direction + &w * decay;
    let mut step = update.shallow_clone() * lr;
    if decays(param.role) {
        let _ = step.g_mul_(&ratio_or_one(&w.norm().clamp_max(LAMB_MAX_NORM), &update.norm()));
    }
    let _ = w.g_sub_(&step);
}
