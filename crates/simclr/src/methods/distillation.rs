//! Distillation of a fixed classifier into another network (SimCLR v2, arXiv 2006.10029, section 2.3): cross entropy with the
//! teacher's distribution, with or without labels.

use tch::{Kind, Tensor};

use super::{BatchSlice, Branches, LossOutput, Method, MethodTraits, Target};
use crate::{RunConfig, model::Model, task::DistillConfig};

/// A student classifier that learns the outputs of a teacher.
#[derive(Debug)]
pub struct Distillation {
    student: Model,
    teacher: Model,
    temperature: f64,
    /// 1 - alpha of the paper's loss.
    label_weight: f64,
    /// Class of every image of the data set, -1 for images without a label.
    labels: Vec<i64>,
    classes: usize,
}

impl Distillation {
    /// Both models end in `classes` logits. `labels` has the class of every image of the data set, or -1.
    pub fn new(
        student: Model,
        teacher: Model,
        config: &DistillConfig,
        labels: Vec<i64>,
        classes: usize,
    ) -> Self {
        let DistillConfig { temperature, label_weight, .. } = *config;
        Self { student, teacher, temperature, label_weight, labels, classes }
    }

    /// Share of the images with a label.
    fn labelled(&self) -> f64 {
        let labelled = self.labels.iter().filter(|&&label| label >= 0).count();
        labelled as f64 / self.labels.len().max(1) as f64
    }
}

impl Method for Distillation {
    fn model(&self) -> &Model {
        &self.student
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: self.label_weight == 0.0, has_pairs: false }
    }

    fn describe_head(&self, _: &RunConfig) -> String {
        format!("linear classifier of {} classes", self.classes)
    }

    fn describe_loss(&self, config: &RunConfig) -> String {
        let chance = self.chance_loss(config.train.batch);
        let labels = match self.label_weight {
            0.0 => "no labels".to_owned(),
            weight => {
                format!("labels of {:.1} % of the images with weight {weight}", 100.0 * self.labelled())
            }
        };
        format!(
            "distillation from {}, temperature {}, {labels}; at chance {chance:.3}",
            self.teacher.encoder.describe(),
            self.temperature
        )
    }

    fn target(&self) -> Option<Target<'_>> {
        Some(Target { model: &self.teacher, shuffle: None, is_fixed: true })
    }

    /// The logits of student and teacher side by side, `[rows, 2 K]`.
    fn branches(&self) -> Branches {
        Branches::Joint
    }

    /// The accuracy is the share of images on which student and teacher agree.
    fn objective(&self, logits: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let (student, teacher) = self.branches().split(logits);
        let (student, teacher) = (&student.to_kind(Kind::Float), teacher.detach().to_kind(Kind::Float));
        let rows = student.size()[0] as f64;
        let share = rows / slice.batch_images as f64;
        let mut loss =
            (distillation_loss(student, &teacher, self.temperature) * share) * (1.0 - self.label_weight);
        if self.label_weight > 0.0 {
            let labels: Vec<i64> = slice.ids.iter().map(|&id| self.labels[id]).collect();
            loss += label_loss(student, &labels) * (self.label_weight / slice.batch_images as f64);
        }
        let agree = student.detach().argmax(1, false).eq_tensor(&teacher.argmax(1, false));
        LossOutput { loss, accuracy: agree.to_kind(Kind::Float).mean(Kind::Float) * share }
    }

    fn chance_loss(&self, _: usize) -> f64 {
        let teacher = (1.0 - self.label_weight) * self.temperature * self.temperature;
        (teacher + self.label_weight * self.labelled()) * (self.classes as f64).ln()
    }
}

/// tau^2 times the mean cross entropy of softmax(`student` / tau) with softmax(`teacher` / tau), both `[m, K]`. The factor, of the
/// official code (google-research/simclr `colabs/distillation_self_training.ipynb`), keeps the gradient independent of tau
/// (Hinton et al. 2015, arXiv 1503.02531).
fn distillation_loss(student: &Tensor, teacher: &Tensor, temperature: f64) -> Tensor {
    let target = (teacher / temperature).softmax(1, Kind::Float);
    let log_p = (student / temperature).log_softmax(1, Kind::Float);
    let cross_entropy = -(target * log_p).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    cross_entropy.mean(Kind::Float) * (temperature * temperature)
}

/// Sum of the cross entropies of the rows with a label; the paper's sum over the labelled images.
fn label_loss(logits: &Tensor, labels: &[i64]) -> Tensor {
    let labels = Tensor::from_slice(labels).to_device(logits.device());
    let known = labels.ge(0).to_kind(Kind::Float);
    let log_p = logits.log_softmax(1, Kind::Float).gather(1, &labels.clamp_min(0).unsqueeze(1), false);
    -(log_p.squeeze_dim(1) * known).sum(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> (Tensor, Tensor) {
        let row = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3]);
        (row([1.0, 0.5, -0.5]), row([2.0, 0.0, -1.0]))
    }

    /// f64 values of tau^2 times the cross entropy.
    #[test]
    fn distillation_loss_matches_its_formula() {
        let (student, teacher) = logits();
        for (temperature, expected) in [(1.0, 0.724_243_304_2), (2.0, 3.897_752_637_5), (0.1, 6.715_662_7e-5)]
        {
            let loss = distillation_loss(&student, &teacher, temperature).double_value(&[]);
            assert!((loss / expected - 1.0).abs() < 1e-5, "{temperature}: {loss}, expected {expected}");
        }
    }

    /// d loss / d student = tau (softmax(student / tau) - softmax(teacher / tau)) per row.
    #[test]
    fn gradient_matches_the_closed_form() {
        let (student, teacher) = logits();
        let student = student.set_requires_grad(true);
        let temperature = 0.5;
        distillation_loss(&student, &teacher, temperature).backward();
        let softmax = |logits: &Tensor| (logits.detach() / temperature).softmax(1, Kind::Float);
        let expected = (softmax(&student) - softmax(&teacher)) * temperature;
        let difference = (student.grad() - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
    }

    #[test]
    fn rows_without_a_label_do_not_count() {
        let logits = Tensor::from_slice(&[1.0f32, 0.0, 0.5, 0.5, 3.0, 1.0]).view([3, 2]);
        let all = label_loss(&logits, &[0, 1, -1]).double_value(&[]);
        let row = |x: [f64; 2], y: usize| x.iter().map(|v| v.exp()).sum::<f64>().ln() - x[y];
        let expected = row([1.0, 0.0], 0) + row([0.5, 0.5], 1);
        assert!((all - expected).abs() < 1e-6, "{all} {expected}");
        assert_eq!(label_loss(&logits, &[-1, -1, -1]).double_value(&[]), 0.0);
    }
}
