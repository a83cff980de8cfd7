//! Arguments of `finetune`, `distill` and `self-train`.

use std::path::PathBuf;

use clap::Args;
use simclr::{
    data::dataset::Labels,
    eval::{options::FinetuneRecipe, semi_supervised::FinetuneOptions},
};

use super::{ComputeArguments, ConfigArguments};

/// Images and the labels that are used.
#[derive(Debug, Args)]
pub struct LabelledArguments {
    /// Images with labels; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set
    #[arg(long, value_name = "FILE|auto", default_value = "auto")]
    pub labels_from: Labels,
    /// Share of the training labels that is used, the same number of each class
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub labels: f64,
    /// Seed of the choice of labels, and of the hold-out of a set without test part
    #[arg(long, default_value_t = 0)]
    pub label_seed: u64,
}

/// Hyper-parameters of fine-tuning.
#[derive(Debug, Args)]
pub struct FinetuneArguments {
    /// v1 (SGD, paper B.5) or v2 (LARS, official README)
    #[arg(long, default_value = "v1")]
    pub finetune_recipe: FinetuneRecipe,
    /// Layers of the projection head below the classifier; SimCLR v2 keeps 1 of 3
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub head_layers: usize,
    /// Epochs of fine-tuning [default: 60 below 5 % of the labels, else 30]
    #[arg(long, value_name = "EPOCHS")]
    pub finetune_epochs: Option<f64>,
    /// Labelled images per step, at most [default: that of the recipe]
    #[arg(long, value_name = "N")]
    pub finetune_batch: Option<usize>,
    /// Base learning rate [default: that of the recipe]
    #[arg(long, value_name = "LR")]
    pub finetune_lr: Option<f64>,
}

impl FinetuneArguments {
    /// For the library.
    pub fn options(&self) -> FinetuneOptions {
        FinetuneOptions {
            recipe: self.finetune_recipe,
            head_layers: self.head_layers,
            epochs: self.finetune_epochs,
            batch: self.finetune_batch,
            lr: self.finetune_lr,
            from_scratch: false,
            device: None,
            threads: None,
        }
    }
}

/// Loss of distillation.
#[derive(Debug, Args)]
pub struct DistillArguments {
    /// Temperature of both distributions; SimCLR v2: 0.1 into the same network, 1 into a smaller one
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    /// Weight of the cross entropy with labels; 0: no labels
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub label_weight: f64,
}

/// `simclr finetune`.
#[derive(Debug, Args)]
pub struct Finetune {
    /// Folder of the pretrained run
    pub run: PathBuf,
    /// Run folder of the classifier; an existing one is resumed
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Images and labels.
    #[command(flatten)]
    pub data: LabelledArguments,
    /// Hyper-parameters.
    #[command(flatten)]
    pub finetune: FinetuneArguments,
    /// Train the same network from fresh weights: the control
    #[arg(long)]
    pub from_scratch: bool,
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr distill`.
#[derive(Debug, Args)]
pub struct Distill {
    /// Run folder of the teacher, a classifier
    pub teacher: PathBuf,
    /// Run folder of the student; an existing one is resumed
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Images, and labels with --label-weight.
    #[command(flatten)]
    pub data: LabelledArguments,
    /// Optimizer, batch and length as in pretraining, and the network of the student unless it is the teacher's.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Loss.
    #[command(flatten)]
    pub distill: DistillArguments,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr self-train`.
#[derive(Debug, Args)]
pub struct SelfTrain {
    /// Folder of the runs; finished steps in it are not repeated
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Images and labels.
    #[command(flatten)]
    pub data: LabelledArguments,
    /// Pretraining; the distillation has the same optimizer and batch.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Fine-tuning.
    #[command(flatten)]
    pub finetune: FinetuneArguments,
    /// Loss of the distillation.
    #[command(flatten)]
    pub distill: DistillArguments,
    /// Architecture of the student [default: that of the teacher]
    #[arg(long, value_name = "ENCODER")]
    pub student: Option<String>,
    /// Epochs of the distillation [default: those of the pretraining]
    #[arg(long, value_name = "EPOCHS")]
    pub distill_epochs: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
