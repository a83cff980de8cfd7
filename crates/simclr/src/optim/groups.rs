//! Parameter groups: which parameters weight decay and layer-wise adaptation apply to.
//!
//! The official code excludes batch norm, biases and the supervised classifier from LARS' adaptation and decay
//! (google-research/simclr tf2/model.py `build_optimizer`) and adds the decay of the classifier's weight to the loss
//! (`add_weight_decay`), so that the classifier is trained by momentum SGD with weight decay.

use serde::{Deserialize, Serialize};

use super::{OptimConfig, OptimKind};
use crate::params::{Params, Role};

/// `optim.decay`: the parameters that weight decay applies to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Weights of convolutions and dense layers (official code with LARS).
    #[default]
    Weights,
    /// Also their biases (official code with other optimizers).
    WeightsAndBiases,
    /// Also scale and shift of batch norm (`torch.optim` with one group).
    All,
}

impl OptimConfig {
    /// Whether weight decay applies to parameters of this role.
    pub fn decays(&self, role: Role) -> bool {
        match role {
            Role::Weight | Role::Classifier => true,
            Role::Bias => self.decay != Decay::Weights,
            Role::NormScale | Role::NormShift => self.decay == Decay::All,
        }
    }

    /// Weight decay of parameters of `role`.
    pub fn decay_of(&self, role: Role) -> f64 {
        if self.decays(role) { self.weight_decay } else { 0.0 }
    }

    /// Whether the trust ratio of LARS or LAMB scales the step of parameters of this role.
    pub fn adapts(&self, role: Role) -> bool {
        matches!(self.kind, OptimKind::Lars | OptimKind::Lamb) && role == Role::Weight
    }
}

/// One line per group: tensors, parameters, decay, adaptation.
pub fn table(config: &OptimConfig, params: &Params) -> String {
    let rows = [
        ("weights", &[Role::Weight][..]),
        ("classifier weight", &[Role::Classifier]),
        ("biases", &[Role::Bias]),
        ("batch-norm scale, shift", &[Role::NormScale, Role::NormShift]),
    ];
    let mut text = format!(
        "{:<24} {:>7} {:>12} {:>13} {:>10}",
        "group", "tensors", "parameters", "weight decay", "adaptation"
    );
    for (name, roles) in rows {
        let selected: Vec<_> = params.params().iter().filter(|param| roles.contains(&param.role)).collect();
        if selected.is_empty() && roles == [Role::Classifier] {
            continue;
        }
        let count: usize = selected.iter().map(|param| param.tensor.numel()).sum();
        let decay = config.decay_of(roles[0]);
        let adaptation = match config.kind {
            _ if config.adapts(roles[0]) => "layer-wise",
            OptimKind::Muon if roles[0] == Role::Weight => "orthogonal",
            _ => "no",
        };
        text += &format!("\n{name:<24} {:>7} {count:>12} {decay:>13e} {adaptation:>10}", selected.len());
    }
    if !params.frozen().is_empty() {
        let count: usize = params.frozen().iter().map(|(_, tensor)| tensor.numel()).sum();
        text += &format!(
            "\n{:<24} {:>7} {count:>12} {:>13} {:>10}",
            "frozen, not trained",
            params.frozen().len(),
            "no",
            "no"
        );
    }
    text
}
