//! Cross entropy with labels: the supervised baseline (paper B.3), fine-tuning (B.5) and the linear classifier trained on
//! crops (B.6).

use tch::{Kind, Tensor};

use super::{BatchSlice, LossOutput, Method, MethodTraits};
use crate::{RunConfig, model::Model};

/// Encoder under a linear classifier.
#[derive(Debug)]
pub struct Classifier {
    model: Model,
    /// Class of every image of the data set.
    labels: Vec<i64>,
    classes: usize,
}

impl Classifier {
    /// `model` ends in `classes` logits; `labels` has the class of every image of the data set.
    pub fn new(model: Model, labels: Vec<i64>, classes: usize) -> Self {
        Self { model, labels, classes }
    }
}

impl Method for Classifier {
    fn model(&self) -> &Model {
        &self.model
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: false, has_pairs: false }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        let task = &config.task;
        let below = match task.head_layers {
            0 => String::new(),
            layers => format!(" on layer {layers} of the projection head"),
        };
        let frozen = if task.frozen { ", encoder frozen" } else { "" };
        format!("linear classifier of {} classes{below}{frozen}", self.classes)
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        let images = config.train.batch;
        let chance = self.chance_loss(images);
        format!("cross entropy over {images} images; at chance ln({}) = {chance:.3}", self.classes)
    }

    fn objective(&self, logits: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let labels: Vec<i64> = slice.ids.iter().map(|&id| self.labels[id]).collect();
        let share = slice.ids.len() as f64 / slice.batch_images as f64;
        cross_entropy(logits, &labels, share)
    }

    fn chance_loss(&self, _: usize) -> f64 {
        (self.classes as f64).ln()
    }
}

/// Mean cross entropy and top-1 accuracy of `logits` `[m, K]`, both times `share`.
fn cross_entropy(logits: &Tensor, labels: &[i64], share: f64) -> LossOutput {
    let labels = Tensor::from_slice(labels).to_device(logits.device());
    let logits = logits.to_kind(Kind::Float);
    let loss = logits.cross_entropy_for_logits(&labels) * share;
    let correct = logits.detach().argmax(1, false).eq_tensor(&labels);
    LossOutput { loss, accuracy: correct.to_kind(Kind::Float).mean(Kind::Float) * share }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images, three classes: -ln softmax in f64.
    #[test]
    fn cross_entropy_equals_the_formula() {
        let logits = Tensor::from_slice(&[1.0f32, 0.0, 2.0, 0.5, 0.5, 0.0]).view([2, 3]);
        let output = cross_entropy(&logits, &[2, 0], 1.0);
        let row = |x: [f64; 3], y: usize| x.iter().map(|v| v.exp()).sum::<f64>().ln() - x[y];
        let expected = (row([1.0, 0.0, 2.0], 2) + row([0.5, 0.5, 0.0], 0)) / 2.0;
        assert!((output.loss.double_value(&[]) - expected).abs() < 1e-6);
        assert_eq!(output.accuracy.double_value(&[]), 1.0);
        let half = cross_entropy(&logits, &[2, 0], 0.5);
        assert!((half.loss.double_value(&[]) - expected / 2.0).abs() < 1e-6);
    }
}
