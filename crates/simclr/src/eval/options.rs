//! Options of an evaluation ([`EvalConfig`], the section `[eval]` of a TOML file), with their defaults and ranges.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use simclr_data::{augment::TransformChange, dataset::Labels};

use super::layer::Layer;
use crate::{device::DeviceChoice, knn, optim::OptimKind};

/// Share of the labelled images that hyper-parameters are chosen on.
pub(crate) const HOLD_OUT: f64 = 0.2;

/// Options of one evaluation; the keys are described in [`KEYS`](super::KEYS).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "`KEYS` describes the keys")]
pub struct EvalConfig {
    pub protocols: Vec<Protocol>,
    pub knn_k: i64,
    pub knn_temperature: Option<f64>,
    pub retrieval_k: i64,
    /// Columns of the table: fractions of the training labels. If the default fractions below 1 come to the same number of
    /// labels on a small set, labels per class replace them.
    pub label_fractions: Vec<f64>,
    pub labels_per_class: Vec<usize>,
    /// Files of image names, one a line. Each replaces the drawn subsets of the column nearest to it in size.
    pub label_lists: Vec<PathBuf>,
    pub draws: usize,
    pub layers: Vec<Layer>,
    pub random_inits: usize,
    pub seed: u64,
    pub transform: TransformChange,
    /// The linear classifier; its seed is replaced by `seed`. Not a configuration key.
    #[serde(skip_deserializing)]
    pub linear: LinearOptions,
    pub trained: TrainedOptions,
    pub transfer: Vec<TransferSet>,
    pub transfer_finetune: TransferFinetune,
    /// Source of the labels of the evaluated set. Part of the fingerprint of the set, hence not of the options.
    #[serde(skip)]
    pub labels: Labels,
    /// Images per forward pass.
    #[serde(skip)]
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    #[serde(skip)]
    pub threads: usize,
    /// Device instead of the run's.
    #[serde(skip)]
    pub device: Option<DeviceChoice>,
    /// Whether to discard the cached figures of earlier evaluations.
    #[serde(skip)]
    pub fresh: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            protocols: Vec::new(),
            knn_k: 0,
            knn_temperature: Some(knn::TEMPERATURE),
            retrieval_k: 10,
            label_fractions: vec![0.01, 0.1, 1.0],
            labels_per_class: Vec::new(),
            label_lists: Vec::new(),
            draws: 5,
            layers: vec![Layer::H],
            random_inits: 1,
            seed: 0,
            transform: TransformChange::default(),
            linear: LinearOptions::default(),
            trained: TrainedOptions::default(),
            transfer: Vec::new(),
            transfer_finetune: TransferFinetune::default(),
            labels: Labels::Auto,
            batch: 256,
            threads: 0,
            device: None,
            fresh: false,
        }
    }
}

/// A protocol that runs on request only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Precision among the nearest training images.
    Retrieval,
    /// Linear classifier by SGD on random crops of all training images, encoder frozen (paper B.6).
    LinearSgd,
    /// Fine-tuning in every column, from the run's weights and from fresh ones (paper B.5).
    Finetune,
    /// The encoder from fresh weights with all labels, with the hyper-parameters of the run (paper B.3).
    Supervised,
    /// Fine-tuning on every transfer set, from the run's weights and from fresh ones (paper B.8.2).
    TransferFinetune,
    /// All of them.
    All,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(text.into()).map_err(|error| error.to_string())
    }
}

/// Protocols that train on the evaluated set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "`KEYS` describes the keys")]
pub struct TrainedOptions {
    /// Images per step, at most; a quarter of the labels if that is fewer. None: 256, or the recipe's.
    pub batch: Option<usize>,
    pub epochs: Option<f64>,
    pub seeds: u64,
    pub finetune_recipe: FinetuneRecipe,
    pub finetune_rates: Vec<f64>,
    pub sweep_below: usize,
    /// Fine-tuned subsets of each column with fewer than all labels: the first of those of the linear classifier.
    pub finetune_draws: usize,
    pub head_layers: Vec<usize>,
    pub linear_rates: Vec<f64>,
    pub linear_decays: Vec<f64>,
    pub linear_optim: OptimKind,
}

impl Default for TrainedOptions {
    fn default() -> Self {
        Self {
            batch: None,
            epochs: None,
            seeds: 1,
            finetune_recipe: FinetuneRecipe::default(),
            finetune_rates: Vec::new(),
            sweep_below: 10_000,
            finetune_draws: 3,
            head_layers: vec![0],
            // Paper B.6: 0.1 * B / 256.
            linear_rates: vec![0.1],
            linear_decays: vec![0.0],
            linear_optim: OptimKind::Sgd,
        }
    }
}

/// Hyper-parameters of fine-tuning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinetuneRecipe {
    /// arXiv 2002.05709, B.5: SGD with Nesterov momentum, 0.05 B / 256.
    #[default]
    V1,
    /// arXiv 2006.10029 and the README of google-research/simclr: LARS, 0.005 sqrt(B), B = 1024.
    V2,
}

impl FromStr for FinetuneRecipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err(format!("`{text}`: expected v1 or v2")),
        }
    }
}

/// Fine-tuning on transfer sets (paper B.8.2). Empty lists stand for the paper's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "`KEYS` describes the keys")]
pub struct TransferFinetune {
    pub batch: usize,
    pub steps: u64,
    pub rates: Vec<f64>,
    /// Weight decays from the run's weights, each divided by the learning rate before use.
    pub decays: Vec<f64>,
    pub fresh_steps: Option<u64>,
    pub fresh_rates: Vec<f64>,
    pub fresh_decays: Vec<f64>,
}

impl Default for TransferFinetune {
    fn default() -> Self {
        let (rates, decays) = (Vec::new(), Vec::new());
        let (fresh_rates, fresh_decays) = (Vec::new(), Vec::new());
        Self { batch: 256, steps: 20_000, rates, decays, fresh_steps: None, fresh_rates, fresh_decays }
    }
}

/// Hyper-parameters tried from one initialisation: every rate with every decay.
pub(crate) struct TransferSearch {
    pub(crate) steps: u64,
    pub(crate) rates: Vec<f64>,
    /// Weight decays times the learning rate.
    pub(crate) decays: Vec<f64>,
}

impl TransferFinetune {
    /// The search from the run's weights. "No weight decay" is one of the paper's candidates here only.
    pub(crate) fn pretrained(&self) -> TransferSearch {
        let decays = || [vec![0.0], log_spaced(1e-6, 1e-3, 7)].concat();
        TransferSearch {
            steps: self.steps,
            rates: first_given([&self.rates], || log_spaced(1e-4, 1e-1, 7)),
            decays: first_given([&self.decays], decays),
        }
    }

    /// The search from fresh weights.
    pub(crate) fn fresh(&self) -> TransferSearch {
        let decays = || log_spaced(1e-5, 10f64.powf(-1.5), 8);
        TransferSearch {
            steps: self.fresh_steps.unwrap_or(2 * self.steps),
            rates: first_given([&self.fresh_rates, &self.rates], || log_spaced(1e-3, 1.0, 7)),
            decays: first_given([&self.fresh_decays, &self.decays], decays),
        }
    }
}

fn first_given<const N: usize>(lists: [&Vec<f64>; N], default: impl FnOnce() -> Vec<f64>) -> Vec<f64> {
    lists.into_iter().find(|list| !list.is_empty()).cloned().unwrap_or_else(default)
}

/// A transfer set and its metric; as text `PATH` or `PATH:METRIC`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TransferSet {
    /// Class folders or any other labelled set.
    pub path: PathBuf,
    /// Reported metric.
    pub metric: Metric,
}

impl TransferSet {
    /// Human-readable, also part of file names.
    pub(crate) fn name(&self) -> String {
        format!("transfer to {}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

impl From<TransferSet> for String {
    fn from(set: TransferSet) -> Self {
        format!("{}:{}", set.path.display(), set.metric.name())
    }
}

impl TryFrom<String> for TransferSet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for TransferSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, metric) = match text.rsplit_once(':') {
            Some((path, name)) if !Path::new(text).exists() => (path, name.parse()?),
            _ => (text, Metric::default()),
        };
        Ok(Self { path: path.into(), metric })
    }
}

/// Metric of a transfer set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Top-1 accuracy (Food-101, CIFAR, Birdsnap, SUN397, Cars, DTD).
    #[default]
    Top1,
    /// Mean over classes of their accuracies (Aircraft, Pets, Caltech-101, Flowers).
    MeanPerClass,
    /// Mean over classes of the 11-point average precision (VOC2007).
    Map11,
}

impl Metric {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Top1 => "top-1",
            Self::MeanPerClass => "mean-per-class",
            Self::Map11 => "map-11",
        }
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = [Self::Top1, Self::MeanPerClass, Self::Map11].into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| format!("unknown metric `{name}`; expected top-1, mean-per-class or map-11"))
    }
}

/// How a linear classifier is fitted and its regularisation chosen.
///
/// The `Debug` text is part of the key of cached figures: renaming a field discards them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinearOptions {
    /// Candidates for lambda, any order; see [`log_spaced`].
    pub lambdas: Vec<f64>,
    /// Candidates are tried in descending order until this many in a row lie more than a standard error of the held-out
    /// accuracy below the best one (in every subset fitted in the same call); none: all are tried.
    pub patience: Option<usize>,
    /// Term that the penalty is added to.
    pub penalty: Penalty,
    /// Whether each feature is divided by its standard deviation first.
    pub standardise: bool,
    /// Seed of hold-outs and folds.
    pub seed: u64,
    /// Candidates are compared on at most this many images (class-balanced); the chosen one is refitted on all.
    pub tune_images: usize,
    /// Below this many labels, 5 folds replace the single hold-out of 20 %.
    pub folds_below: usize,
    /// Solver of the final fit.
    pub solver: Lbfgs,
    /// Solver of the comparison, where accuracies settle long before the minimum is exact.
    pub tuning_solver: Lbfgs,
}

impl Default for LinearOptions {
    fn default() -> Self {
        Self {
            // A decade apart: on standardised features the accuracy changes by tenths of a point per decade. With few labels
            // 1 is often best and must not be the end of the range.
            lambdas: log_spaced(1e-5, 100.0, 8),
            patience: Some(2),
            penalty: Penalty::Mean,
            standardise: true,
            seed: 0,
            tune_images: 10_000,
            folds_below: 1000,
            solver: Lbfgs::default(),
            tuning_solver: Lbfgs { tolerance: 1e-4, max_iterations: 200, ..Lbfgs::default() },
        }
    }
}

impl LinearOptions {
    /// The transfer protocol (paper B.8.1): 45 lambdas, features not standardised, penalty added to the sum.
    pub(crate) fn transfer() -> Self {
        let lambdas = log_spaced(1e-6, 1e5, 45);
        Self { lambdas, patience: None, penalty: Penalty::Sum, standardise: false, ..Self::default() }
    }
}

/// Stopping criteria and history length of the L-BFGS solver.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lbfgs {
    /// Stored pairs (step, gradient change).
    pub history: usize,
    /// Largest number of iterations.
    pub max_iterations: usize,
    /// Largest absolute gradient component at convergence.
    pub tolerance: f64,
}

impl Default for Lbfgs {
    fn default() -> Self {
        Self { history: 10, max_iterations: 1000, tolerance: 1e-5 }
    }
}

/// Term that the penalty `lambda/2 |W|^2` is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// The mean of the cross entropies: the same lambda suits few and many images.
    Mean,
    /// Their sum, as in the transfer protocol.
    Sum,
}

impl Penalty {
    /// The lambda that, added to the mean over `rows` images, gives the same objective.
    pub(crate) fn relative_to_mean(self, lambda: f64, rows: i64) -> f64 {
        match self {
            Self::Mean => lambda,
            Self::Sum => lambda / rows as f64,
        }
    }
}

/// `count` values from `low` to `high`, evenly spaced in the logarithm.
pub fn log_spaced(low: f64, high: f64, count: usize) -> Vec<f64> {
    let step = (high / low).ln() / (count.max(2) - 1) as f64;
    (0..count).map(|i| low * (step * i as f64).exp()).collect()
}

impl EvalConfig {
    /// Whether `protocol` was requested.
    pub fn runs(&self, protocol: Protocol) -> bool {
        self.protocols.contains(&protocol) || self.protocols.contains(&Protocol::All)
    }

    /// Neighbours of the retrieval protocol; 0 if it does not run.
    pub(crate) fn retrieval_neighbours(&self) -> i64 {
        if self.runs(Protocol::Retrieval) { self.retrieval_k } else { 0 }
    }

    /// Neighbours of kNN in a bank of `bank` images.
    pub(crate) fn neighbours(&self, bank: usize) -> i64 {
        let bank = bank as i64;
        let k = if self.knn_k == 0 { knn::default_k(bank) } else { self.knn_k };
        k.min(bank)
    }
}

#[cfg(test)]
mod tests;
