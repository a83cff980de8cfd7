//! Momentum SGD, and LARS, which scales each layer's step by |w| / |g| (spec 6.1).

use tch::Tensor;

use super::{LarsNorm, OptimConfig, OptimKind, groups::decays, norm, ratio_or_one};
use crate::params::Param;

/// One update of `param` in place; `velocity` is its momentum buffer.
///
/// With `lr_in_momentum` (google-research/simclr `lars_optimizer.py`, `classic_momentum`): v = m v + s g, w -= v, where
/// s = lr x ratio. Without (PyTorch's convention): v = m v + ratio x g, w -= lr v. Both agree while lr is constant.
pub fn update(config: &OptimConfig, param: &Param, gradient: &Tensor, velocity: &mut Tensor, lr: f64) {
    let decayed = decays(param.role) && config.weight_decay != 0.0;
    let g = if decayed { gradient + &param.tensor * config.weight_decay } else { gradient.shallow_clone() };
    let ratio = if config.kind == OptimKind::Lars && decays(param.role) {
        trust_ratio(config, &param.tensor, gradient, &g)
    } else {
        1.0
    };
    let (inside, outside) = if config.lr_in_momentum { (lr * ratio, 1.0) } else { (ratio, lr) };
    let step = g * inside;
    let _ = velocity.g_mul_scalar_(config.momentum).g_add_(&step);
    let update = if config.nesterov { &*velocity * config.momentum + step } else { velocity.shallow_clone() };
    let _ = param.tensor.shallow_clone().g_sub_(&(update * outside));
}

/// eeta |w| / |g|, by either denominator; 1 where a norm is 0.
fn trust_ratio(config: &OptimConfig, w: &Tensor, gradient: &Tensor, decayed: &Tensor) -> f64 {
    let weight = norm(w);
    let denominator = match config.lars_norm {
        LarsNorm::Decayed => norm(decayed),
        LarsNorm::Separate => norm(gradient) + config.weight_decay * weight,
    };
    ratio_or_one(config.trust * weight, denominator)
}
