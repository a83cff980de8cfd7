//! Ranges of the keys of [`EvalConfig`].

use std::fmt;

use super::options::{EvalConfig, Protocol, TrainedOptions, TransferFinetune};
use crate::{ConfigError, optim::OptimKind};

impl EvalConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fractions = &self.label_fractions;
        let fraction = |share: &f64| *share > 0.0 && *share <= 1.0;
        check(
            "label_fractions",
            fractions,
            !fractions.is_empty() && fractions.iter().all(fraction),
            "shares of the labels above 0 and up to 1",
        )?;
        let per_class = &self.labels_per_class;
        let distinct = !per_class.contains(&0) && !repeated(per_class);
        check("labels_per_class", per_class, distinct, "labels per class from 1, each of them once")?;
        let layers = !self.layers.is_empty() && !repeated(&self.layers);
        check("layers", &self.layers, layers, "at least one layer, and each of them once")?;
        check("draws", &self.draws, self.draws >= 1, "at least one draw")?;
        check(
            "linear.lambdas",
            &self.linear.lambdas,
            !self.linear.lambdas.is_empty(),
            "at least one lambda",
        )?;
        check("knn_k", &self.knn_k, self.knn_k >= 0, "0 (automatic) or more neighbours")?;
        check("retrieval_k", &self.retrieval_k, self.retrieval_k >= 0, "0 (none) or more neighbours")?;
        let temperature = self.knn_temperature.is_none_or(|t| t > 0.0 && t.is_finite());
        check("knn_temperature", &self.knn_temperature, temperature, "a temperature above 0")?;
        if self.protocols.contains(&Protocol::TransferFinetune) {
            let sets = "--transfer PATH[:METRIC] or eval.transfer, as there is no set to fine-tune on";
            check("transfer", &self.transfer, !self.transfer.is_empty(), sets)?;
        }
        self.trained.validate()?;
        self.transfer_finetune.validate()
    }
}

impl TrainedOptions {
    fn validate(&self) -> Result<(), ConfigError> {
        let Self { batch, epochs, finetune_rates, linear_rates, linear_decays, .. } = self;
        let rates = "at least one learning rate, all above 0";
        check("trained.batch", batch, batch.is_none_or(|batch| batch >= 2), "a batch of at least 2")?;
        check("trained.epochs", epochs, epochs.is_none_or(|epochs| epochs > 0.0), "epochs above 0")?;
        check("trained.seeds", &self.seeds, self.seeds >= 1, "at least one seed")?;
        check("trained.finetune_draws", &self.finetune_draws, self.finetune_draws >= 1, "at least one draw")?;
        let layers = &self.head_layers;
        check("trained.head_layers", layers, !layers.is_empty(), "at least one layer to start from")?;
        let given = finetune_rates.is_empty() || positive(finetune_rates);
        check("trained.finetune_rates", finetune_rates, given, rates)?;
        check("trained.linear_rates", linear_rates, positive(linear_rates), rates)?;
        let decays = "at least one weight decay, all at least 0";
        check("trained.linear_decays", linear_decays, at_least(linear_decays, 0.0), decays)?;
        let optim = [OptimKind::Sgd, OptimKind::Lars].contains(&self.linear_optim);
        check("trained.linear_optim", &self.linear_optim, optim, "sgd or lars for the linear classifier")
    }
}

impl TransferFinetune {
    fn validate(&self) -> Result<(), ConfigError> {
        check("transfer_finetune.batch", &self.batch, self.batch >= 2, "a batch of at least 2")?;
        for (start, search) in [("", self.pretrained()), ("fresh_", self.fresh())] {
            let key = |name: &str| format!("transfer_finetune.{start}{name}");
            check(&key("steps"), &search.steps, search.steps >= 1, "at least one step")?;
            check(&key("rates"), &search.rates, positive(&search.rates), "learning rates above 0")?;
            let decays = at_least(&search.decays, 0.0);
            check(&key("decays"), &search.decays, decays, "weight decays of at least 0")?;
        }
        Ok(())
    }
}

fn positive(values: &[f64]) -> bool {
    at_least(values, f64::MIN_POSITIVE)
}

/// Whether there are values, all of them finite and at least `low`.
fn at_least(values: &[f64], low: f64) -> bool {
    !values.is_empty() && values.iter().all(|value| value.is_finite() && *value >= low)
}

fn repeated<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(at, one)| list[..at].contains(one))
}

fn check(key: &str, value: &impl fmt::Debug, valid: bool, expected: &str) -> Result<(), ConfigError> {
    let error = || ConfigError::Value {
        key: format!("eval.{key}"),
        value: format!("{value:?}"),
        expected: expected.into(),
    };
    if valid { Ok(()) } else { Err(error()) }
}
