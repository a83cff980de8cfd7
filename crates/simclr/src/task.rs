//! `[task]`: which method trains, from which weights, on which images.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[task]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskConfig {
    /// Training method.
    pub objective: MethodKind,
    /// Text file with the names of the images to train on, one per line. Unset: all images.
    #[serde(alias = "images")]
    pub subset: Option<PathBuf>,
    /// Train on the validation part of the data set, too.
    #[serde(alias = "validation")]
    pub include_validation: bool,
    /// Initial weights: a run folder or checkpoint (encoder, and head if it fits), an exported encoder, or safetensors or a state dict of
    /// torch.save under the names of torchvision or timm. `pretrain` takes `encoder.*`, and of a run `head.*` and `train.image_size`,
    /// from there if they are not set. Supervised training needs a checkpoint with the kept layers of the head.
    #[serde(alias = "start")]
    pub init_from: Option<PathBuf>,
    /// Supervised: layers of the projection head kept below the classifier (SimCLRv2, arXiv 2006.10029, section 2).
    #[serde(alias = "keep_head")]
    pub head_layers: usize,
    /// Supervised: train the classifier only; the encoder runs in evaluation mode without gradients.
    pub frozen: bool,
}

/// `[distill]`: SimCLR v2's third step (arXiv 2006.10029, section 2.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// Run folder of the teacher, a classifier: fine-tuned, supervised or distilled.
    pub teacher: Option<PathBuf>,
    /// tau of both distributions. SimCLR v2: 0.1 into the same network, 1 into a smaller one.
    pub temperature: f64,
    /// Weight of the cross entropy with labels, 1 - alpha; 0: no labels.
    pub label_weight: f64,
    /// Text file with the names of the images to use labels of, one per line. Unset: all labels of the data set.
    pub labelled: Option<PathBuf>,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self { teacher: None, temperature: 1.0, label_weight: 0.0, labelled: None }
    }
}

/// `task.objective`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// SimCLR: NT-Xent over two views of each image, without labels.
    #[default]
    Contrastive,
    /// SimCLR v2's memory: queries of both views against keys of a momentum encoder, of the batch and of a queue.
    SimclrMomentum,
    /// MoCo v1 and v2: InfoNCE against a queue of keys of a momentum encoder.
    Moco,
    /// MoCo v3: InfoNCE of predictions against the keys of the batch, in both directions, without a queue.
    MocoV3,
    /// Cross entropy of a linear classifier, one view of each labelled image.
    Supervised,
    /// Cross entropy with the outputs of a trained classifier, one view of each image (`[distill]`).
    Distillation,
}

/// `[moco]`: momentum encoder of the methods `moco`, `moco-v3` and `simclr-momentum`, and the queue of the first and the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MocoConfig {
    /// K: number of earlier keys that are negatives, at least the keys of a step.
    pub queue: usize,
    /// m: weight of the old value in the moving average of the weights, 0 to 1. Paper: 0.999 (arXiv 1911.05722, section 4.1).
    pub momentum: f64,
    /// How m changes during a run.
    pub momentum_schedule: MomentumSchedule,
    /// MoCo: both views are queries and keys, and the losses of the two directions are added (FAIR's CIFAR-10 demo). `simclr-momentum`
    /// and `moco-v3` always have both directions.
    pub symmetric: bool,
    /// MoCo: batch norm normalises a query and its positive key with the statistics of different images (shuffling BN). The keys of
    /// `train.batch_norm_groups` are permuted; chunks or processes with statistics of their own require `train.batch_norm` =
    /// "chunk-shuffled"; batch norm over the whole batch needs neither.
    pub shuffle: bool,
    /// MoCo v3: hidden units of the predictor, two dense layers behind the head with its norm and initialisation.
    pub predictor_hidden: i64,
}

/// `moco.momentum_schedule`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentumSchedule {
    /// m is constant.
    #[default]
    Constant,
    /// Half a cosine from `moco.momentum` to 1 at the end of the run (MoCo v3, `--moco-m-cos`).
    Cosine,
}

impl Default for MocoConfig {
    fn default() -> Self {
        Self {
            queue: 65_536,
            momentum: 0.999,
            momentum_schedule: MomentumSchedule::Constant,
            symmetric: false,
            shuffle: true,
            predictor_hidden: 4096,
        }
    }
}

impl MethodKind {
    /// Number of views per image.
    pub fn views(self) -> usize {
        match self {
            Self::Contrastive | Self::SimclrMomentum | Self::Moco | Self::MocoV3 => 2,
            Self::Supervised | Self::Distillation => 1,
        }
    }

    /// Whether training uses pairs of views and no labels.
    pub fn is_contrastive(self) -> bool {
        !matches!(self, Self::Supervised | Self::Distillation)
    }

    /// Whether there is a momentum encoder.
    pub fn has_momentum_encoder(self) -> bool {
        self.has_queue() || self == Self::MocoV3
    }

    /// Whether there are a momentum encoder and a queue.
    pub fn has_queue(self) -> bool {
        matches!(self, Self::SimclrMomentum | Self::Moco)
    }

    /// Which accuracy a step reports: `contrastive` (pretext task), `training` (classifier, on training images) or `agreement` (of
    /// student and teacher).
    pub fn accuracy_name(self) -> &'static str {
        match self {
            Self::Contrastive | Self::SimclrMomentum | Self::Moco | Self::MocoV3 => "contrastive",
            Self::Supervised => "training",
            Self::Distillation => "agreement",
        }
    }
}
