//! An arm of a study: a run, and what is measured on it. Runs that several arms or studies share are trained once.

use serde::Serialize;
use serde_json::{Value, json};

use super::{images::Images, scale::Scale};
use crate::{ConfigError, RunConfig};

/// Linear classifier on h.
pub const H: &str = "linear h";
/// Linear classifier on z.
pub const Z: &str = "linear z";
/// kNN on h.
pub const KNN: &str = "kNN h";
/// Accuracy of the contrastive task on augmented training views, mean of the last epoch.
pub const PRETEXT: &str = "contrastive accuracy";
/// The run's own classifier.
pub const OWN: &str = "own classifier";

/// How a network comes about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Training by the configuration.
    Fit,
    /// Initial weights: the random-init control.
    Fresh,
    /// A classifier on few labels, from the network `of`.
    Finetune {
        /// Pretrained run.
        of: Box<Run>,
        /// Share of the labels of the run's images.
        labels: f64,
        /// Layers of the projection head that are kept.
        head_layers: usize,
        /// From initial weights instead.
        from_scratch: bool,
    },
    /// A student of the classifier `teacher`.
    Distill {
        /// Run with a classifier.
        teacher: Box<Run>,
        /// Share of the labels that the loss uses.
        labels: f64,
        /// tau.
        temperature: f64,
        /// Weight of the cross entropy with labels.
        label_weight: f64,
    },
}

/// A network, described before it is trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Training images.
    pub images: Images,
    /// Overrides of the recipe.
    pub set: Vec<String>,
    /// From data or from another run.
    pub how: How,
}

/// What is measured on a network. Each has figures, by name, in points unless noted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// `H`, `Z`, `KNN` on the test images, and `PRETEXT` of contrastive runs.
    Frozen,
    /// The classifier of the run, `OWN`.
    Classifier,
    /// Linear classifier on h with a share of the labels, `linear 1 %`.
    FewLabels(Vec<f64>),
    /// Linear classifier on h and on raw pixels of other images, `transfer NAME`.
    Transfer(&'static str, Images),
    /// Accuracy of predicting the transformation of an image, `rotation h`, `rotation z` and so on.
    Transformations,
    /// Squared eigenvalues of a linear head: share of the 10 % largest, `leading share`; series `eigenvalues`.
    Spectrum,
    /// Entropy in nats of the contrastive distribution of views, `entropy`.
    Entropy,
    /// Two principal components of h and z of some test images, series `h` and `z`.
    Projection,
    /// Retrieval of the other crop of an image by its colour histogram, `retrieval`; series `histogram`.
    Histograms,
    /// Linear classifier on raw pixels, `H`.
    Pixels,
}

/// A row of a study's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Unique in the study.
    pub name: String,
    /// The network.
    pub run: Run,
    /// What is measured on it.
    pub probes: Vec<Probe>,
}

impl Arm {
    /// A contrastive run of the recipe with changes.
    pub fn fit(scale: &Scale, name: impl Into<String>, set: &[&str]) -> Self {
        let set = set.iter().map(|text| (*text).to_owned()).collect();
        let run = Run { images: scale.given(), set, how: How::Fit };
        Self { name: name.into(), run, probes: vec![Probe::Frozen] }
    }

    /// The same with further overrides.
    #[must_use]
    pub fn with(mut self, set: impl IntoIterator<Item = String>) -> Self {
        self.run.set.extend(set);
        self
    }

    /// On other images.
    #[must_use]
    pub fn on(mut self, images: Images) -> Self {
        self.run.images = images;
        self
    }

    /// With a further measurement.
    #[must_use]
    pub fn measured(mut self, probe: Probe) -> Self {
        self.probes.push(probe);
        self
    }

    /// Supervised training of the same encoder, measured by its own classifier and on h.
    pub fn supervised(scale: &Scale, name: impl Into<String>, set: &[&str]) -> Self {
        // Without a head, so that h is what the classifier is trained on.
        let own = ["task.objective=supervised", "head.kind=none"];
        Self::fit(scale, name, &[&own, set].concat()).measured(Probe::Classifier)
    }

    /// A classifier fine-tuned from the run of this arm.
    pub fn finetuned(&self, name: impl Into<String>, labels: f64, head_layers: usize) -> Self {
        self.tuned(name, labels, head_layers, false)
    }

    /// The same network from initial weights.
    pub fn from_scratch(&self, name: impl Into<String>, labels: f64) -> Self {
        self.tuned(name, labels, 0, true)
    }

    fn tuned(&self, name: impl Into<String>, labels: f64, head_layers: usize, from_scratch: bool) -> Self {
        let how = How::Finetune { of: Box::new(self.run.clone()), labels, head_layers, from_scratch };
        let run = Run { images: self.run.images, set: self.run.set.clone(), how };
        Self { name: name.into(), run, probes: vec![Probe::Classifier] }
    }
}

impl Run {
    /// The configuration with `seed`; of a run that starts from another one, that of the other with the own overrides.
    ///
    /// # Errors
    /// Overrides that are no valid configuration.
    pub fn config(&self, scale: &Scale, seed: u64) -> Result<RunConfig, ConfigError> {
        let seed = format!("train.seed={seed}");
        let all: Vec<String> = scale.recipe().into_iter().chain(self.set.clone()).chain([seed]).collect();
        RunConfig::load(None, &all)
    }

    /// Runs that must be trained before this one, nearest first.
    pub fn source(&self) -> Option<&Self> {
        match &self.how {
            How::Fit | How::Fresh => None,
            How::Finetune { of, .. } => Some(of),
            How::Distill { teacher, .. } => Some(teacher),
        }
    }

    /// Everything that the weights depend on, apart from the images of `--data`.
    pub fn identity(&self, scale: &Scale, seed: u64) -> Result<Value, ConfigError> {
        let how = match &self.how {
            How::Fit => json!("fit"),
            How::Fresh => json!("fresh"),
            How::Finetune { of, labels, head_layers, from_scratch } => {
                json!([of.identity(scale, seed)?, labels, head_layers, from_scratch])
            }
            How::Distill { teacher, labels, temperature, label_weight } => {
                json!([teacher.identity(scale, seed)?, labels, temperature, label_weight])
            }
        };
        Ok(json!({ "config": self.config(scale, seed)?, "images": self.images, "how": how }))
    }

    /// Whether labels are not used.
    pub fn is_contrastive(&self, config: &RunConfig) -> bool {
        self.how == How::Fit && config.task.objective.is_contrastive()
    }

    /// Whether a network is trained.
    pub fn trains(&self) -> bool {
        self.how != How::Fresh
    }
}

/// Whether training by `config` has a momentum encoder.
pub(super) fn has_second_network(config: &RunConfig) -> bool {
    config.task.objective.has_momentum_encoder()
}
