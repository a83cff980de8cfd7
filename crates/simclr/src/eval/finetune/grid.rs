//! Learning rates and weight decays that are compared before one pair is trained with.

use crate::RunConfig;

/// One pair, in a run's own terms (`optim.lr`, `optim.weight_decay`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) rate: f64,
    pub(crate) decay: f64,
}

/// Pairs that are compared.
pub(crate) struct Grid {
    pub(crate) candidates: Vec<Candidate>,
    /// With more labels than this the first candidate is taken.
    pub(crate) below: usize,
}

impl Candidate {
    /// For people, and for the names of folders.
    pub(crate) fn said(self) -> String {
        let Self { rate, decay } = self;
        if decay > 0.0 {
            return format!("learning rate {} decay {}", number(rate), number(decay));
        }
        format!("learning rate {}", number(rate))
    }

    /// `config` with this pair.
    pub(crate) fn put(self, config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        (config.optim.lr, config.optim.weight_decay) = (self.rate, self.decay);
        config
    }
}

impl Grid {
    /// One pair: nothing to compare.
    pub(crate) fn one(rate: f64, decay: f64) -> Self {
        Self { candidates: vec![Candidate { rate, decay }], below: 0 }
    }

    /// Every rate with every decay.
    pub(crate) fn product(rates: &[f64], decays: &[f64]) -> Self {
        let with = |&rate: &f64| decays.iter().map(move |&decay| Candidate { rate, decay });
        Self { candidates: rates.iter().flat_map(with).collect(), below: usize::MAX }
    }

    /// Candidates that are tried with so many labels; 0 where there is nothing to compare.
    pub(crate) fn size(&self, labels: usize) -> usize {
        if self.candidates.len() > 1 && labels <= self.below { self.candidates.len() } else { 0 }
    }

    pub(crate) fn words(&self) -> String {
        let tried: Vec<String> = self.candidates.iter().map(|candidate| candidate.said()).collect();
        let below =
            if self.below == usize::MAX { String::new() } else { format!(" up to {} labels", self.below) };
        match tried.len() {
            1 => String::new(),
            _ => format!("; compared on a fifth of the labels{below}: {}", tried.join(", ")),
        }
    }
}

/// As it was written where that is short, else to three digits.
pub(crate) fn number(x: f64) -> String {
    let whole = x.to_string();
    if whole.len() <= 7 { whole } else { format!("{x:.2e}") }
}
