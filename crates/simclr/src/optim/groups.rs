//! Who is decayed and adapted: kernels are, batch-norm scales and shifts and biases are not (google-research/simclr
//! `lars_optimizer.py`, `exclude_from_weight_decay`; spec 6.1).

use super::{OptimConfig, OptimKind};
use crate::params::{Params, Role};

/// Whether parameters of this role get weight decay and a layer-wise learning rate.
pub fn decays(role: Role) -> bool {
    role == Role::Kernel
}

/// The groups as text, a line each, printed at start so that a wrong exclusion is seen.
pub fn table(config: &OptimConfig, params: &Params) -> String {
    let adapts = matches!(config.kind, OptimKind::Lars | OptimKind::Lamb);
    let rows = [
        ("kernels", &[Role::Kernel][..]),
        ("biases", &[Role::Bias]),
        ("batch-norm scale, shift", &[Role::NormScale, Role::NormShift]),
    ];
    let mut text = format!(
        "{:<24} {:>7} {:>12} {:>13} {:>10}",
        "group", "tensors", "parameters", "weight decay", "adaptation"
    );
    for (name, roles) in rows {
        let members: Vec<_> = params.params().iter().filter(|param| roles.contains(&param.role)).collect();
        let numbers: usize = members.iter().map(|param| param.tensor.numel()).sum();
        let kernel = roles.iter().all(|&role| decays(role));
        let decay = if kernel { config.weight_decay } else { 0.0 };
        let adaptation = if kernel && adapts { "layer-wise" } else { "no" };
        text += &format!("\n{name:<24} {:>7} {numbers:>12} {decay:>13e} {adaptation:>10}", members.len());
    }
    if !params.frozen().is_empty() {
        let numbers: usize = params.frozen().iter().map(|(_, tensor)| tensor.numel()).sum();
        text += &format!(
            "\n{:<24} {:>7} {numbers:>12} {:>13} {:>10}",
            "frozen, not trained",
            params.frozen().len(),
            "no",
            "no"
        );
    }
    text
}
