//! `[loss]`: which loss, and its options.

use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// `[loss]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Function of the similarities.
    pub kind: LossKind,
    /// tau, above 0; the margin loss has none. Paper: 0.1 on ImageNet (Table 5), 0.5 on CIFAR-10 (B.9).
    pub temperature: f64,
    /// Mean over anchors (paper) or twice that (official code; docs/method.md 1.1).
    #[serde(alias = "scale")]
    pub reduction: Reduction,
    /// L2-normalise z; off only for the ablation of Table 5.
    pub normalize: bool,
    /// Which views are negatives of an anchor.
    pub negatives: Negatives,
    /// Leave the positive out of the denominator of NT-Xent: DCL (Yeh et al. 2021, arXiv 2110.06848, equation 4).
    pub decoupled: bool,
    /// sigma of the von Mises-Fisher weight of DCLW (same paper, equation 6; 0.5 there); 0 = no weight.
    pub decoupled_weight_sigma: f64,
    /// tau_plus, the share of negatives that belong to the anchor's class (Chuang et al. 2020, arXiv 2007.00224; 0.1 there); 0 = none.
    pub debias_prior: f64,
    /// beta, the concentration on hard negatives (Robinson et al. 2021, arXiv 2010.04592; 1 there); 0 = all negatives weigh the same.
    pub hard_beta: f64,
    /// m of the margin loss, a difference of similarities. Paper (B.10): 0, 0.4, 0.8 or 1.6.
    pub margin: f64,
    /// Only the most similar negative that is less similar than the positive (docs/method.md 1.10).
    pub semi_hard: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: LossKind::NtXent,
            temperature: 0.1,
            reduction: Reduction::Paper,
            normalize: true,
            negatives: Negatives::BothViews,
            decoupled: false,
            decoupled_weight_sigma: 0.0,
            debias_prior: 0.0,
            hard_beta: 0.0,
            margin: DEFAULT_MARGIN,
            semi_hard: false,
        }
    }
}

const DEFAULT_MARGIN: f64 = 0.4;

/// `loss.kind` (paper, Table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Cross entropy of the positive among all candidates.
    NtXent,
    /// Binary cross entropies of positive and negatives.
    NtLogistic,
    /// Triplets with a margin.
    Margin,
}

/// `loss.reduction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Mean over the 2N anchors.
    Paper,
    /// Sum of two means over N anchors each: twice the paper's.
    Official,
}

impl Reduction {
    /// Factor of the mean over anchors.
    pub fn factor(self) -> f64 {
        match self {
            Self::Paper => 1.0,
            Self::Official => 2.0,
        }
    }
}

/// `loss.negatives`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Negatives {
    /// Both views of all other images: 2N - 2.
    BothViews,
    /// The second views of other images for a first view, and the first views for a second one: N - 1. The paper compares losses
    /// with these (Table 4).
    OtherView,
}

impl Negatives {
    /// Negatives of an anchor among `rows` views.
    pub fn count(self, rows: usize) -> usize {
        match self {
            Self::BothViews => rows - 2,
            Self::OtherView => rows / 2 - 1,
        }
    }
}

impl LossConfig {
    /// # Errors
    /// [`ConfigError::Value`] for the first key out of range, or without effect on the other ones.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_ranges()?;
        self.validate_combination()
    }

    fn validate_ranges(&self) -> Result<(), ConfigError> {
        let positive = self.temperature.is_finite() && self.temperature > 0.0;
        check(positive, "temperature", self.temperature, "a number above 0")?;
        let prior = self.debias_prior;
        check((0.0..1.0).contains(&prior), "debias_prior", prior, "a share of at least 0 and below 1")?;
        for (key, value) in [
            ("decoupled_weight_sigma", self.decoupled_weight_sigma),
            ("hard_beta", self.hard_beta),
            ("margin", self.margin),
        ] {
            check(value.is_finite() && value >= 0.0, key, value, "a number of at least 0")?;
        }
        Ok(())
    }

    fn validate_combination(&self) -> Result<(), ConfigError> {
        let Self { decoupled, semi_hard, normalize, .. } = *self;
        let (sigma, prior, beta) = (self.decoupled_weight_sigma, self.debias_prior, self.hard_beta);
        let is_nt_xent = self.kind == LossKind::NtXent;
        let plain = is_nt_xent && !semi_hard;
        let expected = "false, unless loss.kind = \"nt-xent\" without loss.semi_hard";
        check(!decoupled || plain, "decoupled", decoupled, expected)?;
        let expected = "0, unless loss.decoupled and loss.normalize are on";
        check(sigma == 0.0 || (decoupled && normalize), "decoupled_weight_sigma", sigma, expected)?;
        let may_weight = plain && !decoupled && normalize;
        let expected = "0, unless loss.kind = \"nt-xent\" with loss.normalize and without loss.decoupled and loss.semi_hard";
        check(prior == 0.0 || may_weight, "debias_prior", prior, expected)?;
        check(beta == 0.0 || may_weight, "hard_beta", beta, expected)?;
        let is_margin = self.kind == LossKind::Margin;
        let expected = format!("{DEFAULT_MARGIN} (the default), unless loss.kind = \"margin\"");
        check(is_margin || self.margin == DEFAULT_MARGIN, "margin", self.margin, &expected)?;
        let expected = "above 0 with loss.semi_hard: no negative lies within a margin of 0";
        check(!(is_margin && semi_hard) || self.margin > 0.0, "margin", self.margin, expected)
    }
}

fn check(valid: bool, key: &str, value: impl ToString, expected: &str) -> Result<(), ConfigError> {
    if valid {
        return Ok(());
    }
    Err(ConfigError::Value {
        key: format!("loss.{key}"),
        value: value.to_string(),
        expected: expected.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut LossConfig)) -> String {
        let mut config = LossConfig::default();
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(refused(|_| ()), "accepted");
        let cases: [(&str, fn(&mut LossConfig)); 7] = [
            ("loss.temperature = 0:", |loss| loss.temperature = 0.0),
            ("loss.temperature = NaN:", |loss| loss.temperature = f64::NAN),
            ("loss.debias_prior = 1:", |loss| loss.debias_prior = 1.0),
            ("loss.debias_prior = -0.1:", |loss| loss.debias_prior = -0.1),
            ("loss.hard_beta = inf:", |loss| loss.hard_beta = f64::INFINITY),
            ("loss.decoupled_weight_sigma = -1:", |loss| loss.decoupled_weight_sigma = -1.0),
            ("loss.margin = -1:", |loss| (loss.kind, loss.margin) = (LossKind::Margin, -1.0)),
        ];
        for (expected, change) in cases {
            assert!(refused(change).starts_with(expected), "{expected} {}", refused(change));
        }
    }

    #[test]
    fn options_of_another_loss_are_refused() {
        let cases: [(&str, fn(&mut LossConfig)); 9] = [
            ("loss.decoupled = true:", |loss| (loss.kind, loss.decoupled) = (LossKind::Margin, true)),
            ("loss.decoupled = true:", |loss| (loss.semi_hard, loss.decoupled) = (true, true)),
            ("loss.decoupled_weight_sigma = 0.5:", |loss| loss.decoupled_weight_sigma = 0.5),
            ("loss.debias_prior = 0.1:", |loss| (loss.debias_prior, loss.decoupled) = (0.1, true)),
            ("loss.debias_prior = 0.1:", |loss| (loss.debias_prior, loss.normalize) = (0.1, false)),
            ("loss.hard_beta = 1:", |loss| (loss.hard_beta, loss.kind) = (1.0, LossKind::NtLogistic)),
            ("loss.hard_beta = 1:", |loss| (loss.hard_beta, loss.semi_hard) = (1.0, true)),
            ("loss.margin = 0.8:", |loss| loss.margin = 0.8),
            ("loss.margin = 0:", |loss| {
                (loss.kind, loss.margin, loss.semi_hard) = (LossKind::Margin, 0.0, true);
            }),
        ];
        for (expected, change) in cases {
            assert!(refused(change).starts_with(expected), "{expected} {}", refused(change));
        }
    }
}
