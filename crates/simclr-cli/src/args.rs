//! Command-line arguments. Each flag of a run overrides one key of the configuration, which has the default.

mod classify;
mod config;
mod data;
mod evaluate;
mod explore;
mod launch;
mod semi_supervised;
mod study;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use simclr::{
    RunConfig,
    config::Written,
    data::{
        Split,
        augment::{EvalCrop, Interpolation, TransformChange},
        dataset::Labels,
        decode::Jpeg,
    },
    device::DeviceChoice,
    eval::layer::Layer,
    explore::projection::Projection,
};

use crate::failure::Failure;
use config::{Flag, overrides, quoted, text};

pub use classify::{Classify, Predict};
pub use config::{ConfigArguments, of_flag, several_settings, toml_string};
pub use data::{Inspect, Pack, Views};
pub use evaluate::{Evaluate, Normalize, replaced_flag};
pub use explore::{Neighbours, Report};
pub use launch::Launch;
pub use semi_supervised::{Distill, Finetune, LabelledArguments, SelfTrain};
pub use study::Study;

/// Contrastive pretraining of image encoders (SimCLR): from a folder of images to a verified encoder.
#[derive(Debug, Parser)]
#[command(name = "simclr", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Load the TorchScript module that the run folder of another user names (encoder.file): it runs code with your rights
    #[arg(long, global = true, hide_short_help = true)]
    pub trust_encoder_file: bool,
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
    /// Repeat a study of the paper at the scale of this machine, with a verdict
    Study(Study),
    /// Make a classifier from a run and labelled images: the better one of linear and fine-tuned, with calibrated probabilities
    Classify(Box<Classify>),
    /// Write class and probabilities of every image of a set (.parquet)
    Predict(Predict),
    /// Compare the results of several runs in a table and a plot
    Compare(Compare),
    /// Write the feature h of every image of a set (.parquet, .npy or .tsv)
    Embed(Embed),
    /// Write one HTML page on a run and a set: curves, views, map, neighbours, near-duplicates, possible label errors, facts
    Report(Report),
    /// List the images of a set nearest to given images
    Neighbours(Neighbours),
    /// Explain the keys of the configuration, and list or print the built-in recipes
    Config(Config),
    /// Write a run's encoder for torchvision, timm or ONNX
    Export(Export),
    /// Write a PNG of images and their augmented views
    Views(Views),
    /// Check on this machine that multi-process and chunked gradients equal those of one process, and print the plan of a run
    Doctor(Doctor),
    /// Start a command as several processes on this machine, and on others by the same command there
    Launch(Launch),
    /// Describe an image set, and list files that cannot be decoded
    Inspect(Inspect),
    /// Print completions for a shell, such as: simclr completions bash > /etc/bash_completion.d/simclr
    Completions(Completions),
    /// Write manual pages into a folder
    Man(Man),
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
    /// Resume the run in --run from its newest checkpoint. auto: resume it if it exists, else start it, so that the same command line
    /// starts and continues a run
    #[arg(long, requires = "run", num_args = 0..=1, default_missing_value = "existing", value_name = "auto", hide_possible_values = true)]
    pub resume: Option<Resume>,
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
    /// Scope of batch-norm statistics with chunks: global, chunk or chunk-shuffled (train.batch_norm)
    #[arg(long)]
    pub batch_norm: Option<String>,
    /// TorchScript module to train as encoder (encoder.file); it runs code with your rights, so use files that you trust
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
    /// Form of the progress on stderr: text, or json, one object per line
    #[arg(long, value_enum, default_value_t = Log::Text)]
    pub log: Log,
}

/// `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// For people
    Text,
    /// For programs
    Json,
}

/// `--resume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Resume {
    /// Without a value: a run that exists
    #[value(hide = true)]
    Existing,
    /// A run that exists, or a new one
    Auto,
}

impl Pretrain {
    /// The flags that are not those of [`ConfigArguments`].
    fn flags(&self) -> Vec<Flag> {
        let parts: Vec<&str> = self.split.iter().map(|part| part.name()).collect();
        let parts = (!parts.is_empty()).then(|| format!("{parts:?}"));
        vec![
            ("--labels-from", "data.labels", quoted(self.labels_from.as_ref())),
            ("--split", "data.parts", parts),
            ("--init", "task.init_from", quoted(self.init.as_ref())),
            ("--batch-norm", "train.batch_norm", quoted(self.batch_norm.as_ref())),
            ("--encoder-file", "encoder.file", quoted(self.encoder_file.as_ref())),
            ("--temperature", "loss.temperature", text(self.temperature)),
            ("--lr", "optim.lr", text(self.lr)),
            ("--precision", "train.precision", quoted(self.precision.as_ref())),
        ]
    }

    /// The configuration of a new run.
    pub fn load(&self) -> Result<(RunConfig, Written), Failure> {
        self.config.load_with(&self.flags())
    }

    /// `file`, the configuration of a run to be resumed, with the overrides.
    pub fn load_resumed(&self, file: &Path) -> Result<RunConfig, Failure> {
        if self.config.has_file() {
            let hint = "for a command line that both starts and continues a run, use `--resume auto`";
            return Err(Failure::user(
                "--resume has the configuration of the run: no --config or --recipe",
                Some(hint.into()),
            ));
        }
        let flags = [self.config.flags(), self.flags()].concat();
        let all: Vec<String> = self.config.set.iter().cloned().chain(overrides(&flags)).collect();
        Ok(RunConfig::load_run(file, &all).map_err(|error| of_flag(error, &flags))?.0)
    }
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

/// `simclr config`.
#[derive(Debug, Args)]
pub struct Config {
    /// A key such as optim.lr, or a section such as optim [default: all keys]
    pub key: Option<String>,
    /// List the built-in recipes
    #[arg(long, conflicts_with = "key")]
    pub recipes: bool,
    /// Print a built-in recipe, to be changed and used with --config
    #[arg(long, value_name = "NAME", conflicts_with_all = ["key", "recipes"])]
    pub recipe: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["recipes", "recipe"])]
    pub json: bool,
}

/// Where a command computes, the same flags as those of a configuration.
#[derive(Debug, Args)]
pub struct ComputeArguments {
    /// Images per forward pass, or per step of a training [default: 256]
    #[arg(long)]
    pub batch: Option<usize>,
    /// auto, cpu or cuda [default: that of the run]
    #[arg(long)]
    pub device: Option<DeviceChoice>,
    /// Decoding threads [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
}

/// `simclr compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Run folders
    #[arg(required = true, num_args = 1..)]
    pub runs: Vec<PathBuf>,
    /// Compare the results on this set, given by name of its folder or file, path, or prefix of its fingerprint [default: the
    /// newest results of each run]
    #[arg(long, value_name = "SET")]
    pub data: Option<String>,
    /// Accuracy by share of the labels (results of `evaluate`), or online kNN by seconds of training
    #[arg(long, value_enum, default_value = "labels")]
    pub by: CompareBy,
    /// Plot file
    #[arg(long, value_name = "FILE.svg", default_value = "compare.svg")]
    pub out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `compare --by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompareBy {
    /// Test accuracy by share of the labels.
    Labels,
    /// Accuracy of the online kNN by seconds of training.
    Seconds,
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
    /// Output table: .parquet, .npy, or .tsv for TensorBoard's projector (with a projector_config.pbtxt in its folder)
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
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
    /// Layer to write: h, z (the projection, not normalised) or head.K (output of the K-th dense layer of the head after batch
    /// norm and ReLU)
    #[arg(long, default_value = "h")]
    pub layer: Layer,
    /// Add columns x and y to a .parquet table: two principal components of the rows (pca), or --map=umap, which needs memory for all of h
    #[arg(long, value_name = "pca|umap", num_args = 0..=1, require_equals = true, default_missing_value = "pca")]
    pub map: Option<Projection>,
    /// Add what the encoder sees: to a .parquet table a column image of JPEGs, to a .tsv table a sheet of pictures
    #[arg(long)]
    pub images: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Folder of the run; with --format onnx also a file of `simclr classify`
    pub run: PathBuf,
    /// Output file, or folder of the format timm [default: encoder.safetensors, timm or encoder.onnx in the run folder]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// safetensors, with the names of torchvision (the same as torchvision); timm, a folder of the Hugging Face hub with a model card;
    /// or onnx, with the normalisation inside and a batch of any size
    #[arg(long, value_enum, default_value_t = ExportFormat::Safetensors)]
    pub format: ExportFormat,
    /// Licence field of the model card
    #[arg(long, value_name = "ID")]
    pub license: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr export --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// One file
    #[value(alias = "torchvision")]
    Safetensors,
    /// A folder
    Timm,
    /// One file
    Onnx,
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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    pub shell: clap_complete::Shell,
}

/// `simclr man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Folder for simclr.1, simclr-pretrain.1, ...
    pub folder: PathBuf,
}
