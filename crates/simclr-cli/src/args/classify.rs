//! Arguments of `classify` and `predict`.

use std::path::PathBuf;

use clap::Args;
use simclr::data::{Split, dataset::Labels};

use super::{ComputeArguments, TransformArguments, semi_supervised::FinetuneArguments};

/// `simclr classify`.
#[derive(Debug, Args)]
pub struct Classify {
    /// Folder of the pretrained run
    pub run: PathBuf,
    /// Labelled images; may be given several times
    #[arg(long, visible_alias = "data", value_name = "PATH", required = true)]
    pub labels: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set
    #[arg(long, value_name = "FILE|auto", default_value = "auto")]
    pub labels_from: Labels,
    /// File of the classifier: encoder, linear layer, names of the classes, input transform. The report is written to FILE.json
    /// [default: classifier.safetensors in the run folder]
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: Option<PathBuf>,
    /// Compare only this one: linear or fine-tuned [default: the better one of both]
    #[arg(long, value_name = "linear|fine-tuned", value_parser = ["linear", "fine-tuned"])]
    pub only: Option<String>,
    /// Share of the training labels of each class on which the two are compared and the temperature is fitted
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    pub hold_out: f64,
    /// Seed of the hold-outs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Hyper-parameters of fine-tuning.
    #[command(flatten)]
    pub finetune: FinetuneArguments,
    /// What the encoder sees.
    #[command(flatten)]
    pub transform: TransformArguments,
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// File of `simclr classify`, or a fine-tuned or distilled run
    pub model: PathBuf,
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// Output table: path, part, class, probability, and the probabilities of all classes
    #[arg(long, value_name = "FILE.parquet|csv")]
    pub out: PathBuf,
    /// A single split: train, test, validation or unlabelled [default: all splits]
    #[arg(long, value_name = "PART")]
    pub split: Option<Split>,
    /// Labels to compare with: a table of images and labels (.csv, .jsonl, .parquet), those of the set, or none
    #[arg(long, value_name = "FILE|auto|none", default_value = "auto")]
    pub labels_from: Labels,
    /// What the encoder sees.
    #[command(flatten)]
    pub transform: TransformArguments,
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
    /// Print the comparison with the labels as JSON
    #[arg(long)]
    pub json: bool,
}
