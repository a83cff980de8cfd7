//! What a step minimises: NT-Xent over two views of each image, or cross entropy with labels, for the supervised baseline
//! (paper B.3), fine-tuning (B.5) and the linear classifier trained on crops (B.6).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::nt_xent::{AllGather, LossConfig, LossScale, NtXent, nt_xent_sharded};

/// `[task]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskConfig {
    /// What is minimised.
    pub objective: ObjectiveKind,
    /// A text file of image names: train on these only (all: none).
    pub images: Option<PathBuf>,
    /// Train on the set's validation part, too.
    pub validation: bool,
    /// A checkpoint to take the encoder's first weights from, and those of the head's layers that are kept.
    pub start: Option<PathBuf>,
    /// With labels: layers of the projection head kept below the classifier (SimCLRv2, arXiv 2006.10029, section 2).
    pub keep_head: usize,
    /// With labels: the encoder stays as it is, batch norm on running statistics; only the classifier is trained.
    pub frozen: bool,
}

/// `task.objective`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveKind {
    /// NT-Xent; labels are not used.
    #[default]
    Contrastive,
    /// Cross entropy of a linear classifier with the labels, one view of each image.
    Supervised,
}

impl ObjectiveKind {
    /// Views of each image.
    pub fn views(self) -> usize {
        match self {
            Self::Contrastive => 2,
            Self::Supervised => 1,
        }
    }

    /// Whose accuracy it is that falls out of a step.
    pub fn accuracy_name(self) -> &'static str {
        match self {
            Self::Contrastive => "contrastive",
            Self::Supervised => "training",
        }
    }
}

/// An objective with what it needs.
#[derive(Debug, Clone)]
pub enum Objective {
    /// NT-Xent.
    Contrastive(LossConfig),
    /// Cross entropy; the label of every image of the data set, and how many classes there are.
    Supervised {
        /// By index in the data set.
        labels: Vec<i64>,
        /// K.
        classes: usize,
    },
}

/// The value of an objective on a batch.
#[derive(Debug)]
pub struct Value {
    /// Scalar with gradient, f32.
    pub loss: Tensor,
    /// In `[0, 1]`, `[]`, no gradient.
    pub accuracy: Tensor,
}

impl Objective {
    /// Of `z`: `[2m, D]` projections, or `[m, K]` logits of the images `ids`, which are this member's of a batch of
    /// `images`. The values of all members add up to those of the batch.
    pub fn of(&self, z: &Tensor, ids: &[usize], members: &dyn AllGather, images: usize) -> Value {
        match self {
            Self::Contrastive(config) => {
                let NtXent { loss, accuracy } = nt_xent_sharded(z, config, members);
                Value { loss, accuracy }
            }
            Self::Supervised { labels, .. } => {
                let labels: Vec<i64> = ids.iter().map(|&id| labels[id]).collect();
                let labels = Tensor::from_slice(&labels).to_device(z.device());
                let logits = z.to_kind(Kind::Float);
                let share = ids.len() as f64 / images as f64;
                let loss = logits.cross_entropy_for_logits(&labels) * share;
                let right = logits.detach().argmax(1, false).eq_tensor(&labels);
                Value { loss, accuracy: right.to_kind(Kind::Float).mean(Kind::Float) * share }
            }
        }
    }

    /// The loss of guessing among `images` images' views or K classes, in the scale of the loss.
    pub fn chance(&self, images: usize) -> f64 {
        match self {
            Self::Contrastive(config) => {
                let scale = if config.scale == LossScale::Official { 2.0 } else { 1.0 };
                scale * ((2 * images - 1) as f64).ln()
            }
            Self::Supervised { classes, .. } => (*classes as f64).ln(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nt_xent::SingleProcess;

    /// Two images, three classes, by hand: -ln softmax.
    #[test]
    fn cross_entropy_by_hand() {
        let objective = Objective::Supervised { labels: vec![9, 2, 0], classes: 3 };
        let logits = Tensor::from_slice(&[1.0f32, 0.0, 2.0, 0.5, 0.5, 0.0]).view([2, 3]);
        let value = objective.of(&logits, &[1, 2], &SingleProcess, 2);
        let row = |x: [f64; 3], y: usize| x.iter().map(|v| v.exp()).sum::<f64>().ln() - x[y];
        let expected = (row([1.0, 0.0, 2.0], 2) + row([0.5, 0.5, 0.0], 0)) / 2.0;
        assert!((value.loss.double_value(&[]) - expected).abs() < 1e-6);
        assert_eq!(value.accuracy.double_value(&[]), 1.0);
        assert!((objective.chance(2) - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn chance_of_the_contrastive_task_follows_the_scale() {
        let with = |scale| Objective::Contrastive(LossConfig { scale, ..LossConfig::default() }).chance(4);
        assert!((with(LossScale::Paper) - 7f64.ln()).abs() < 1e-12);
        assert!((with(LossScale::Official) - 2.0 * 7f64.ln()).abs() < 1e-12);
    }
}
