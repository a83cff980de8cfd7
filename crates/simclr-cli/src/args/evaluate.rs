//! Arguments of `evaluate`.

use std::path::PathBuf;

use clap::Args;
use simclr::{
    data::dataset::Labels,
    eval::{
        EvalKey, KEYS,
        options::{Protocol, TransferSet},
    },
};

use super::{
    ComputeArguments,
    config::{Flag, overrides, quoted, text},
};
use crate::failure::Failure;

/// `simclr evaluate`.
#[derive(Debug, Args)]
#[command(after_help = eval_keys_help())]
pub struct Evaluate {
    /// Folder of the run; with --weights a new folder, which then holds the weights as a run
    pub run: PathBuf,
    /// Labelled images [default: those of the run]; may be given several times
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) instead of the labels in the set [default: the run's data.labels on
    /// the run's own images, else auto]
    #[arg(long, value_name = "FILE|auto|none")]
    pub labels_from: Option<Labels>,
    /// Protocols besides kNN and linear classifiers on frozen features: retrieval, linear-sgd (paper B.6), finetune (B.5),
    /// supervised (B.3), transfer-finetune (B.8.2: 114 trainings of 20,000 or 40,000 steps for each --transfer set by default),
    /// or all (eval.protocols)
    #[arg(long, value_delimiter = ',', value_name = "PROTOCOL")]
    pub protocols: Vec<Protocol>,
    /// Another labelled set: a linear classifier on h there (paper B.8.1), and with --protocols transfer-finetune the whole
    /// network fine-tuned; METRIC is top-1 (default), mean-per-class or map-11 (eval.transfer); may be given several times
    #[arg(long, value_name = "PATH[:METRIC]")]
    pub transfer: Vec<TransferSet>,
    /// File with a section [eval]
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Override any key of [eval], or with --weights of the run; may be given many times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Evaluate these weights: safetensors or a state dict (.pth) under the names of torchvision, timm or Hugging Face, which need the architecture (--encoder) and the
    /// side of an image (--image-size); or a checkpoint of google-research/simclr, TF1 or TF2, by its prefix or folder, which
    /// determines the architecture
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// With --weights: channel statistics that they expect [default: imagenet; none of a checkpoint of google-research/simclr]
    #[arg(long, requires = "weights")]
    pub normalize: Option<Normalize>,
    /// With --weights: architecture, such as resnet18 (encoder.name)
    #[arg(long, requires = "weights")]
    pub encoder: Option<String>,
    /// With --weights: side of an image in pixels (train.image_size)
    #[arg(long, requires = "weights")]
    pub image_size: Option<usize>,
    /// A run or a file of weights to compare with: evaluated on the same images with the same options; prints one table and the p of a
    /// permutation test. A file must determine its architecture (torchvision, timm, Hugging Face, an export of this program); it is
    /// imported into RUN/against. May be given several times
    #[arg(long, value_name = "RUN|FILE")]
    pub against: Vec<PathBuf>,
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
    /// Discard the cached figures of earlier evaluations of the run
    #[arg(long)]
    pub fresh: bool,
    /// Print results.json instead of the table
    #[arg(long)]
    pub json: bool,
}

impl Evaluate {
    /// Those that set keys of the imported run.
    pub fn flags(&self) -> Vec<Flag> {
        vec![
            ("--encoder", "encoder.name", quoted(self.encoder.as_ref())),
            ("--image-size", "train.image_size", text(self.image_size)),
        ]
    }

    /// `--set` values of `[eval]`, and overrides of the imported run.
    pub fn overrides(&self) -> (Vec<String>, Vec<String>) {
        let own = overrides(&self.flags());
        let (eval, run): (Vec<String>, Vec<String>) =
            self.set.iter().cloned().partition(|text| text.trim_start().starts_with("eval."));
        (eval, run.into_iter().chain(own).collect())
    }
}

/// The keys of `[eval]` with their defaults.
fn eval_keys_help() -> String {
    let line = |key: &EvalKey| {
        let default = key.default_value().map(|default| format!(" [default: {default}]"));
        format!("  {:<34} {}{}\n", key.name, key.help, default.unwrap_or_default())
    };
    let keys: String = KEYS.iter().map(line).collect();
    format!("Keys of --set and of the section [eval] of --config; lists as 1,5,20:\n{}", keys.trim_end())
}

/// Flags of earlier versions of `simclr evaluate`, and their replacements.
const REPLACED: [(&str, &str); 30] = [
    ("--with", "--protocols"),
    ("--k", "eval.knn_k"),
    ("--temperature", "eval.knn_temperature"),
    ("--layer", "eval.layers"),
    ("--shots", "eval.labels_per_class"),
    ("--draws", "eval.draws"),
    ("--seed", "eval.seed"),
    ("--retrieval-k", "eval.retrieval_k"),
    ("--transfer-steps", "eval.transfer_finetune.steps"),
    ("--transfer-batch", "eval.transfer_finetune.batch"),
    ("--transfer-lr", "eval.transfer_finetune.rates"),
    ("--transfer-decay", "eval.transfer_finetune.decays"),
    ("--transfer-fresh-steps", "eval.transfer_finetune.fresh_steps"),
    ("--transfer-fresh-lr", "eval.transfer_finetune.fresh_rates"),
    ("--transfer-fresh-decay", "eval.transfer_finetune.fresh_decays"),
    ("--finetune-recipe", "eval.trained.finetune_recipe"),
    ("--finetune-lr", "eval.trained.finetune_rates"),
    ("--finetune-draws", "eval.trained.finetune_draws"),
    ("--finetune-epochs", "eval.trained.epochs"),
    ("--finetune-batch", "eval.trained.batch"),
    ("--keep-head", "eval.trained.head_layers"),
    ("--labels", "eval.label_lists"),
    ("--linear-lr", "eval.trained.linear_rates"),
    ("--linear-decay", "eval.trained.linear_decays"),
    ("--linear-optim", "eval.trained.linear_optim"),
    ("--seeds", "eval.trained.seeds"),
    ("--crop", "eval.transform.crop"),
    ("--interpolation", "eval.transform.interpolation"),
    ("--antialias", "eval.transform.antialias"),
    ("--jpeg", "eval.transform.jpeg"),
];

/// The error for a replaced flag of `simclr evaluate` among the arguments `given`.
pub fn replaced_flag(usage: &clap::Error, given: &[String]) -> Option<Failure> {
    let is_evaluate = given.get(1).is_some_and(|command| command == "evaluate");
    if !is_evaluate || usage.kind() != clap::error::ErrorKind::UnknownArgument {
        return None;
    }
    let (flag, replacement) = given.iter().find_map(|argument| {
        let flag = argument.split('=').next().unwrap_or_default();
        REPLACED.iter().find(|(old, _)| *old == flag)
    })?;
    let usage = if replacement.starts_with("--") {
        (*replacement).to_owned()
    } else {
        format!("--set {replacement}=VALUE, or the key in the file of --config")
    };
    Some(Failure::user(format!("unexpected argument `{flag}`"), Some(format!("it was replaced by {usage}"))))
}

/// Statistics of the images that weights were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Normalize {
    /// Mean 0.485, 0.456, 0.406; deviation 0.229, 0.224, 0.225
    Imagenet,
    /// Images in [0, 1] as they are
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_flags_name_existing_keys() {
        for (flag, replacement) in REPLACED {
            assert!(replacement == "--protocols" || KEYS.iter().any(|key| key.name == replacement), "{flag}");
        }
    }
}
