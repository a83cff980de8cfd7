//! Progress of a run. The library never prints; the command line implements [`Observer`].

use crate::health::Health;

/// Scalars of a step.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// From 0.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean over the batch, in the scale of the configured reduction.
    pub loss: f64,
    /// Loss of equal similarities or logits, in the same scale.
    pub chance_loss: f64,
    /// In `[0, 1]`, over the batch.
    pub accuracy: f64,
    /// Which accuracy this is: `contrastive` (pretext task) or `training` (classifier, on training images).
    pub accuracy_of: &'static str,
    /// L2 norm over all parameters.
    pub gradient_norm: f64,
    /// LARS and LAMB, every `train.health_every` steps: smallest and largest trust ratio over the adapted parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_ratio: Option<[f64; 2]>,
    /// Learning rate.
    pub lr: f64,
    /// Images (not views) per second, smoothed over steps.
    pub images_per_second: f64,
    /// Share of the time spent waiting for data, in `[0, 1]`.
    pub data_wait: f64,
}

/// Receives a run's events. Every method has an empty default.
pub trait Observer {
    /// Facts at the start, in order: (name, value), such as ("encoder", "resnet18, cifar stem, 11.2 M parameters").
    fn start(&mut self, facts: &[(String, String)]) {
        let _ = facts;
    }
    /// Called after every step.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }
    /// Label-free diagnostics, every `train.health_every` steps.
    fn health(&mut self, health: &Health) {
        let _ = health;
    }
    /// `done` of `total` parts of the work `what` are done.
    fn progress(&mut self, what: &str, done: usize, total: usize) {
        let _ = (what, done, total);
    }
    /// A message for the user: health verdict, checkpoint written, skipped image, online kNN.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
}

/// Ignores all events.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
