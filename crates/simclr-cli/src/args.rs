//! The command line. No default of a run lives here: every flag overrides one key of the configuration.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Contrastive pretraining of image encoders (SimCLR): from a folder of images to a verified encoder.
#[derive(Debug, Parser)]
#[command(name = "simclr", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn an encoder from images; labels are not needed
    Pretrain(Pretrain),
    /// Judge a run's encoder: kNN and linear classifiers on frozen features, next to controls
    Evaluate(Evaluate),
    /// Write the feature h of every image of a set (.parquet or .npy)
    Embed(Embed),
    /// Write a run's encoder as safetensors under torchvision's names
    Export(Export),
    /// Draw originals and augmented views into a PNG
    Views(Views),
    /// Say what an image set holds, and which of its files cannot be decoded
    Inspect(Inspect),
}

/// `simclr pretrain`.
#[derive(Debug, Args)]
pub struct Pretrain {
    /// Images: a folder, tar shards, parquet, IDX or CIFAR binary files
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Folder of the run [default: runs/NAME-N, after the name of the data]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on with the run in --run from its newest checkpoint
    #[arg(long, requires = "run", conflicts_with = "config")]
    pub resume: bool,
    /// Keys of the configuration.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Passes over the images (train.epochs)
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Images per step, N (train.batch)
    #[arg(long)]
    pub batch: Option<usize>,
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

/// Where a configuration comes from.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Recipe, such as configs/cifar10_resnet18.toml
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
    /// All overrides, `--set` first: a flag of its own wins over it.
    pub fn overrides(&self, more: &[Option<String>]) -> Vec<String> {
        let own = [key("train.image_size", self.image_size), key("train.seed", self.seed)];
        self.set.iter().chain(own.iter().chain(more).flatten()).cloned().collect()
    }
}

/// `key=value`, if there is a value.
fn key(name: &str, value: Option<impl std::fmt::Display>) -> Option<String> {
    value.map(|value| format!("{name}={value}"))
}

impl Pretrain {
    /// All flags as overrides of the configuration.
    pub fn overrides(&self) -> Vec<String> {
        // Text is quoted, so that a path is never read as a number or a date.
        let quoted = |value: &Option<String>| value.as_ref().map(|value| format!("{value:?}"));
        self.config.overrides(&[
            key("train.epochs", self.epochs),
            key("train.batch", self.batch),
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
pub struct Evaluate {
    /// Folder of the run
    pub run: PathBuf,
    /// Labelled images [default: those of the run]
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Neighbours of the kNN classifier [default: 200 for 50,000 training images or more, else 20]
    #[arg(long)]
    pub k: Option<i64>,
    /// Temperature of the kNN votes [default: 0.1]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Class-balanced subsets drawn for 1 % and 10 % of the labels [default: 5]
    #[arg(long)]
    pub draws: Option<usize>,
    /// Seed of subsets and hold-outs [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print results.json instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `simclr embed`.
#[derive(Debug, Args)]
pub struct Embed {
    /// Folder of the run
    pub run: PathBuf,
    /// Images
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Table to write, .parquet or .npy
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `simclr export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Folder of the run
    pub run: PathBuf,
    /// File to write [default: encoder.safetensors in the run folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `simclr views`.
#[derive(Debug, Args)]
pub struct Views {
    /// Images
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Picture to write
    #[arg(long, value_name = "FILE.png", default_value = "views.png")]
    pub out: PathBuf,
    /// Rows: images, spread evenly over the set
    #[arg(long, default_value_t = 8)]
    pub images: usize,
    /// Columns beside the original: views
    #[arg(long, default_value_t = 8)]
    pub views: usize,
    /// Keys of the configuration.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// `simclr inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Images
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
}
