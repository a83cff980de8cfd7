//! AdamW (decoupled decay, as torch.optim.AdamW) and LAMB (spec 12.3).

use tch::Tensor;

use super::{OptimConfig, OptimKind, groups::decays, norm, ratio_or_one};
use crate::params::Param;

/// Upper bound of phi(|w|) in LAMB (the public port's; the paper leaves it open, spec 12.3).
const LAMB_MAX_NORM: f64 = 10.0;

/// One update of `param` in place; `moments` are its first and second moment, `steps` counts from 1.
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
    let ratio =
        if decays(param.role) { ratio_or_one(norm(&w).min(LAMB_MAX_NORM), norm(&update)) } else { 1.0 };
    let _ = w.g_sub_(&(update * (lr * ratio)));
}
