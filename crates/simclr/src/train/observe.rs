//! What a run tells while it goes on. The library never prints: the command line implements [`Observer`].

use crate::health::Health;

/// After every step.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Step just done, from 0.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// What is minimised.
    pub loss: f64,
    /// The loss if all similarities, or all classes' logits, were equal; in the same scale.
    pub chance_loss: f64,
    /// In `[0, 1]`, over this batch.
    pub accuracy: f64,
    /// Whose: `contrastive` is the pretext task's, not a classifier's; `training` is the classifier's on its own images.
    pub accuracy_of: &'static str,
    /// Norm of the gradient of all parameters together.
    pub gradient_norm: f64,
    /// LARS and LAMB, every `train.health_every` steps: smallest and largest trust ratio over the adapted parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_ratio: Option<[f64; 2]>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Images (not views) per second since the last report.
    pub images_per_second: f64,
    /// Share of the time spent waiting for data, in `[0, 1]`.
    pub data_wait: f64,
}

/// Receives a run's events. Every method has an empty default.
pub trait Observer {
    /// Facts at start, in order: (name, value) such as ("encoder", "resnet18, cifar stem, 11.2 M parameters").
    fn start(&mut self, facts: &[(String, String)]) {
        let _ = facts;
    }
    /// A step is done.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }
    /// Label-free figures, every `train.health_every` steps.
    fn health(&mut self, health: &Health) {
        let _ = health;
    }
    /// `done` of `of` parts of a longer piece of work are done.
    fn progress(&mut self, what: &str, done: usize, of: usize) {
        let _ = (what, done, of);
    }
    /// A sentence worth showing: health verdict, checkpoint written, bad image, online kNN.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
}

/// Ignores everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
