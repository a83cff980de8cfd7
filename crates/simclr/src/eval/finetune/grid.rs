//! Candidate pairs of learning rate and weight decay.

use crate::RunConfig;

/// Values of `optim.lr` and `optim.weight_decay`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) rate: f64,
    pub(crate) decay: f64,
}

/// Candidates to compare.
pub(crate) struct Grid {
    pub(crate) candidates: Vec<Candidate>,
    /// With more labels than this, the first candidate is used.
    pub(crate) below: usize,
}

impl Candidate {
    /// Human-readable, also part of folder names.
    pub(crate) fn describe(self) -> String {
        let Self { rate, decay } = self;
        if decay > 0.0 {
            return format!("learning rate {} decay {}", short_number(rate), short_number(decay));
        }
        format!("learning rate {}", short_number(rate))
    }

    pub(crate) fn apply(self, config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        (config.optim.lr, config.optim.weight_decay) = (self.rate, self.decay);
        config
    }
}

impl Grid {
    pub(crate) fn single(rate: f64, decay: f64) -> Self {
        Self { candidates: vec![Candidate { rate, decay }], below: 0 }
    }

    /// Every rate with every decay.
    pub(crate) fn product(rates: &[f64], decays: &[f64]) -> Self {
        let with = |&rate: &f64| decays.iter().map(move |&decay| Candidate { rate, decay });
        Self { candidates: rates.iter().flat_map(with).collect(), below: usize::MAX }
    }

    /// Trainings that the comparison takes with so many labels; 0 without a choice.
    pub(crate) fn trainings(&self, labels: usize) -> usize {
        if self.candidates.len() > 1 && labels <= self.below { self.candidates.len() } else { 0 }
    }

    /// Suffix of the description of a protocol; empty without a choice.
    pub(crate) fn describe(&self) -> String {
        let candidates: Vec<String> = self.candidates.iter().map(|candidate| candidate.describe()).collect();
        let below =
            if self.below == usize::MAX { String::new() } else { format!(" up to {} labels", self.below) };
        match candidates.len() {
            1 => String::new(),
            _ => format!("; compared on a fifth of the labels{below}: {}", candidates.join(", ")),
        }
    }
}

/// All digits up to 7 characters, else three significant ones.
pub(crate) fn short_number(x: f64) -> String {
    let exact = x.to_string();
    if exact.len() <= 7 { exact } else { format!("{x:.2e}") }
}
