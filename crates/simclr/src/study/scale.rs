//! Size of the runs of a study: the recipe that its arms change, for a CPU, a GPU, or a smoke run.

use std::str::FromStr;

use serde::Serialize;

use super::images::{Classes, ImageSet, Images};

/// `--budget` and `--quick`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// All studies with three seeds in at most 6 hours on two cores.
    Cpu,
    /// ResNet-18 on 50,000 images.
    Gpu,
    /// Every step of every study on a few synthetic images; the figures mean nothing.
    Quick,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            _ => Err(format!("`{text}`: expected cpu or gpu")),
        }
    }
}

/// The recipe of a budget.
#[derive(Debug, Clone, Serialize)]
pub struct Scale {
    /// As given.
    pub budget: Budget,
    /// Training images of a run, fewer if the set has fewer.
    pub images: usize,
    /// Epochs of a run.
    pub epochs: f64,
    /// N.
    pub batch: usize,
    /// Overrides of every run, after the recipe and before those of an arm.
    pub set: Vec<String>,
}

/// Encoder, head, loss, augmentation and optimizer of configs/cifar10_conv_c3.toml, with a head that learns from the first step.
const CPU: &[&str] = &[
    "augment.color=0.5",
    "augment.blur=0",
    "encoder.name=conv-c3",
    "head.hidden=128",
    "head.out=64",
    "head.norm=hidden",
    "loss.temperature=0.5",
    "optim.kind=adamw",
    "optim.lr=3e-3",
    "optim.scaling=sqrt-of256",
    "train.device=cpu",
    "train.precision=f32",
];

/// ResNet-18 with the settings of dkobak/simclr-cifar10.
const GPU: &[&str] = &[
    "augment.color=0.5",
    "augment.blur=0",
    "augment.crop_scale=[0.2, 1.0]",
    "encoder.name=resnet18",
    "head.hidden=1024",
    "head.out=128",
    "head.norm=hidden",
    "loss.temperature=0.5",
    "optim.kind=sgd",
    "optim.lr=0.06",
    "optim.scaling=linear",
    "optim.weight_decay=5e-4",
];

const QUICK: &[&str] = &["encoder.width=0.25", "head.hidden=16", "head.out=16", "train.image_size=16"];

/// In every recipe: views of 32 pixels, no online kNN, one checkpoint.
const COMMON: &[&str] =
    &["train.image_size=32", "train.knn_every=0", "train.keep_checkpoints=1", "train.health_every=200"];

/// Warm-up as a share of the epochs.
const WARMUP: f64 = 0.05;

impl Scale {
    /// The recipe of `budget`.
    pub fn of(budget: Budget, set: &[String]) -> Self {
        let (images, epochs, batch) = match budget {
            Budget::Cpu => (10_000, 20.0, 256),
            Budget::Gpu => (50_000, 60.0, 512),
            Budget::Quick => (80, 1.0, 16),
        };
        Self { budget, images, epochs, batch, set: set.to_vec() }
    }

    /// Overrides of the default configuration that every run starts from.
    pub fn recipe(&self) -> Vec<String> {
        let own = if self.budget == Budget::Gpu { GPU } else { CPU };
        let quick = if self.budget == Budget::Quick { QUICK } else { &[] };
        let listed = own.iter().chain(COMMON).chain(quick).map(|text| (*text).to_owned());
        let batch = format!("train.batch={}", self.batch);
        listed.chain(self.epochs(1.0)).chain([batch]).chain(self.set.clone()).collect()
    }

    /// Overrides for `factor` times the epochs of the recipe, warm-up in proportion.
    pub fn epochs(&self, factor: f64) -> Vec<String> {
        let epochs = self.epochs * factor;
        vec![format!("train.epochs={epochs:?}"), format!("optim.warmup_epochs={:?}", WARMUP * epochs)]
    }

    /// Base learning rate of the recipe.
    pub fn rate(&self) -> f64 {
        if self.budget == Budget::Gpu { 0.06 } else { 3e-3 }
    }

    /// `batch` images per step on the CPU; scaled for other budgets, and at most half of the images of a run.
    pub fn batch(&self, batch: usize) -> usize {
        let scaled = match self.budget {
            Budget::Quick => batch / 16,
            Budget::Cpu | Budget::Gpu => batch,
        };
        scaled.clamp(4, self.images / 2)
    }

    /// The training images of a run by default.
    pub fn given(&self) -> Images {
        self.share(1.0)
    }

    /// `share` of them.
    pub fn share(&self, share: f64) -> Images {
        Images { set: ImageSet::Given, count: (share * self.images as f64) as usize, classes: Classes::All }
    }

    /// The synthetic images.
    pub fn tinted(&self) -> Images {
        let count = if self.budget == Budget::Quick { self.images } else { 4000 };
        Images { set: ImageSet::Tinted, count, classes: Classes::All }
    }
}
