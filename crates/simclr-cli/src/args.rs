//! Command-line arguments. Each flag of a run overrides one key of the configuration, which has the default.

mod data;
mod semi_supervised;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use simclr::{
    data::{
        Split,
        augment::{EvalCrop, Interpolation, TransformChange},
        dataset::Labels,
        decode::Jpeg,
    },
    eval::{
        EvalKey, KEYS,
        layer::Layer,
        options::{Protocol, TransferSet},
    },
};

use crate::failure::Failure;
pub use data::{Inspect, Pack, Views};
pub use semi_supervised::{Distill, Finetune, LabelledArguments, SelfTrain};

/// Contrastive pretraining of image encoders (SimCLR): from a folder of images to a verified encoder.
#[derive(Debug, Parser)]
#[command(name = "simclr", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an encoder on images, without labels
    Pretrain(Box<Pretrain>),
    /// Evaluate an encoder: kNN and linear classifiers on frozen features, compared with controls; fine-tuning, transfer
    Evaluate(Box<Evaluate>),
    /// Train a classifier on few labels from a pretrained network (SimCLR v2, step 2)
    Finetune(Finetune),
    /// Distil a classifier into the same or a smaller network with unlabelled images (SimCLR v2, step 3)
    Distill(Distill),
    /// Pretrain, fine-tune and distil (SimCLR v2, all steps), with a control on the labels alone
    SelfTrain(SelfTrain),
    /// Compare the results of several runs in a table and a plot
    Compare(Compare),
    /// Write the feature h of every image of a set (.parquet or .npy)
    Embed(Embed),
    /// Write a run's encoder as safetensors under torchvision's names
    Export(Export),
    /// Write a PNG of images and their augmented views
    Views(Views),
    /// Check on this machine that multi-process and chunked gradients equal those of one process, and print the plan of a run
    Doctor(Doctor),
    /// Describe an image set, and list files that cannot be decoded
    Inspect(Inspect),
    /// Decode an image set into a single file, which all commands accept in place of the set
    Pack(Pack),
}

/// `simclr pretrain`.
#[derive(Debug, Args)]
pub struct Pretrain {
    /// Images: a folder, tar shards, parquet, IDX or CIFAR binary files, a text file of such paths, one per line, or a pattern
    /// such as `train-{000..099}.tar`; may be given several times
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Run folder [default: runs/NAME-N with the name of the data]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Resume the run in --run from its newest checkpoint
    #[arg(long, requires = "run", conflicts_with = "config")]
    pub resume: bool,
    /// Keys of the configuration.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Splits to train on: train, test, validation, unlabelled (data.parts) [default: train, and unlabelled]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub split: Vec<Split>,
    /// Source of labels, which only the online kNN uses: a table of images and labels (.csv, .jsonl, .parquet), or none if
    /// folders are not classes (data.labels)
    #[arg(long, value_name = "FILE|none")]
    pub labels_from: Option<String>,
    /// Start from weights instead of random ones (task.init_from): safetensors or a state dict (.pth, .pt, .bin) of torchvision, timm
    /// or Hugging Face, a folder with model.safetensors, an exported encoder, or a run, of which the head is kept if it fits.
    /// Architecture and input statistics are those of the weights, unless they are set
    #[arg(long, value_name = "FILE|RUN", conflicts_with = "resume")]
    pub init: Option<String>,
    /// Epochs (train.epochs)
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Images per step, N (train.batch)
    #[arg(long)]
    pub batch: Option<usize>,
    /// Images per forward pass, for batches that do not fit into memory (train.chunk)
    #[arg(long)]
    pub chunk: Option<usize>,
    /// Scope of batch-norm statistics with chunks: global, chunk or chunk-shuffled (train.batch_norm)
    #[arg(long)]
    pub batch_norm: Option<String>,
    /// Architecture, such as resnet18 or conv-c3 (encoder.name)
    #[arg(long)]
    pub encoder: Option<String>,
    /// TorchScript module to train as encoder (encoder.file)
    #[arg(long, value_name = "FILE.pt")]
    pub encoder_file: Option<String>,
    /// Temperature of the loss (loss.temperature)
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Base learning rate, before scaling (optim.lr)
    #[arg(long)]
    pub lr: Option<f64>,
    /// auto, f32 or bf16 (train.precision)
    #[arg(long)]
    pub precision: Option<String>,
    /// auto, cpu or cuda (train.device)
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch and of the loader (train.threads, data.threads)
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Sources of a configuration.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Configuration file, such as configs/cifar10_resnet18.toml
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Override any key; may be given many times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Side of a view in pixels (train.image_size)
    #[arg(long)]
    pub image_size: Option<usize>,
    /// Seed of weights, order and augmentation (train.seed)
    #[arg(long)]
    pub seed: Option<u64>,
}

impl ConfigArguments {
    /// All overrides, `--set` first, so that other flags take precedence.
    pub fn overrides(&self, more: &[Option<String>]) -> Vec<String> {
        let own = [key("train.image_size", self.image_size), key("train.seed", self.seed)];
        self.set.iter().chain(own.iter().chain(more).flatten()).cloned().collect()
    }
}

/// `key=value` for a value.
fn key(name: &str, value: Option<impl std::fmt::Display>) -> Option<String> {
    value.map(|value| format!("{name}={value}"))
}

impl Pretrain {
    /// All flags as overrides of the configuration.
    pub fn overrides(&self) -> Vec<String> {
        // Text is quoted, so that TOML does not parse it as a number or date.
        let quoted = |value: &Option<String>| value.as_ref().map(|value| format!("{value:?}"));
        let parts: Vec<&str> = self.split.iter().map(|part| part.name()).collect();
        let parts = (!parts.is_empty()).then(|| format!("{parts:?}"));
        self.config.overrides(&[
            key("data.labels", quoted(&self.labels_from)),
            key("data.parts", parts),
            key("task.init_from", quoted(&self.init)),
            key("train.epochs", self.epochs),
            key("train.batch", self.batch),
            key("train.chunk", self.chunk),
            key("train.batch_norm", quoted(&self.batch_norm)),
            key("encoder.name", quoted(&self.encoder)),
            key("encoder.file", quoted(&self.encoder_file)),
            key("loss.temperature", self.temperature),
            key("optim.lr", self.lr),
            key("train.precision", quoted(&self.precision)),
            key("train.device", quoted(&self.device)),
            key("train.threads", self.threads),
            key("data.threads", self.threads),
        ])
    }
}

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
    /// Evaluate these weights: safetensors under torchvision's or timm's names, which need the architecture (--encoder) and the
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
    /// Decoding threads [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Discard the cached figures of earlier evaluations of the run
    #[arg(long)]
    pub fresh: bool,
    /// Print results.json instead of the table
    #[arg(long)]
    pub json: bool,
}

impl Evaluate {
    /// `--set` values of `[eval]`, and overrides of the imported run.
    pub fn overrides(&self) -> (Vec<String>, Vec<String>) {
        let encoder = key("encoder.name", self.encoder.as_ref().map(|name| format!("{name:?}")));
        let own = [encoder, key("train.image_size", self.image_size)];
        let (eval, run): (Vec<String>, Vec<String>) =
            self.set.iter().cloned().partition(|text| text.trim_start().starts_with("eval."));
        (eval, run.into_iter().chain(own.into_iter().flatten()).collect())
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

/// Changes of the input transform of the run.
#[derive(Debug, Args)]
pub struct TransformArguments {
    /// whole (squeezed to a square), or the share of the shorter side that a central square covers, such as 0.875
    /// [default: the run's transform.crop]
    #[arg(long, value_name = "whole|SHARE")]
    pub crop: Option<EvalCrop>,
    /// bicubic or bilinear [default: the run's transform.interpolation]
    #[arg(long)]
    pub interpolation: Option<Interpolation>,
    /// true: all source pixels count where an image shrinks; false: as `tf.image.resize` [default: the run's
    /// transform.antialias]
    #[arg(long, action = clap::ArgAction::Set)]
    pub antialias: Option<bool>,
    /// Decoder of JPEG files: zune, libjpeg (as Pillow) or libjpeg-fast (as TensorFlow) [default: the run's transform.jpeg]
    #[arg(long)]
    pub jpeg: Option<Jpeg>,
}

impl TransformArguments {
    /// For the library.
    pub fn change(&self) -> TransformChange {
        let Self { crop, interpolation, antialias, jpeg } = *self;
        TransformChange { crop, interpolation, antialias, jpeg }
    }
}

/// Statistics of the images that weights were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Normalize {
    /// Mean 0.485, 0.456, 0.406; deviation 0.229, 0.224, 0.225
    Imagenet,
    /// Images in [0, 1] as they are
    None,
}

/// `simclr compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Run folders with results of `evaluate`
    #[arg(required = true, num_args = 1..)]
    pub runs: Vec<PathBuf>,
    /// Compare the results on this set, given by name of its folder or file, path, or prefix of its fingerprint [default: the
    /// newest results of each run]
    #[arg(long, value_name = "SET")]
    pub data: Option<String>,
    /// Plot file
    #[arg(long, value_name = "FILE.svg", default_value = "compare.svg")]
    pub out: PathBuf,
}

/// `simclr embed`.
#[derive(Debug, Args)]
pub struct Embed {
    /// Folder of the run
    pub run: PathBuf,
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set, or none [default: the run's
    /// data.labels on the run's own images, else auto]
    #[arg(long, value_name = "FILE|auto|none")]
    pub labels_from: Option<Labels>,
    /// Output table, .parquet or .npy
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// A single split: train, test, validation or unlabelled [default: all splits]
    #[arg(long, value_name = "PART")]
    pub split: Option<Split>,
    /// Write the raw pixels that are the control of an evaluation, in place of h
    #[arg(long, conflicts_with = "layer")]
    pub pixels: bool,
    /// What the encoder sees.
    #[command(flatten)]
    pub transform: TransformArguments,
    /// Layer to write: h, z (the projection, not normalised) or head.K (output of the K-th dense layer of the head after batch
    /// norm and ReLU)
    #[arg(long, default_value = "h")]
    pub layer: Layer,
}

/// `simclr export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Folder of the run
    pub run: PathBuf,
    /// Output file [default: encoder.safetensors in the run folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `simclr doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// Keys of the configuration.
    #[command(flatten)]
    pub config: ConfigArguments,
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
