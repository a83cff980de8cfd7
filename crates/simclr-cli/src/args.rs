//! Command-line arguments. Each flag of a run overrides one key of the configuration, which has the default.

mod data;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use simclr::{
    data::{
        Split,
        augment::{EvalCrop, Interpolation, TransformChange},
        dataset::Labels,
        decode::Jpeg,
    },
    eval::layer::Layer,
};

pub use data::{Inspect, Pack, Views};

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
    /// Judge an encoder: kNN and linear classifiers on frozen features next to controls, fine-tuning, transfer
    Evaluate(Box<Evaluate>),
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
pub struct Evaluate {
    /// Folder of the run; with --weights a new folder, which then holds the weights as a run
    pub run: PathBuf,
    /// Labelled images [default: those of the run]; may be given several times
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set [default: the run's data.labels on
    /// the run's own images, else auto]
    #[arg(long, value_name = "FILE|auto|none")]
    pub labels_from: Option<Labels>,
    /// Neighbours of the kNN classifier [default: 200 for 50,000 training images or more, else 20]
    #[arg(long)]
    pub k: Option<i64>,
    /// Temperature of the kNN votes [default: 0.1]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// What is judged: h, z (the projection, not normalised) or head.K (output of the K-th dense layer of the head after batch
    /// norm and ReLU); several give a row each
    #[arg(long, value_delimiter = ',', value_name = "LAYER", default_value = "h")]
    pub layer: Vec<Layer>,
    /// Labels per class of the few-label columns, in place of 1 % and 10 % of the labels [default: 1,5,20 where these shares are
    /// the same number of labels]
    #[arg(long, value_delimiter = ',', value_name = "LABELS")]
    pub shots: Vec<usize>,
    /// Class-balanced subsets drawn for each few-label column [default: 5]
    #[arg(long)]
    pub draws: Option<usize>,
    /// Seed of subsets and hold-outs [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Protocols to run besides kNN and linear classifiers on frozen features
    #[arg(long, value_delimiter = ',', value_name = "PROTOCOL")]
    pub with: Vec<Protocol>,
    /// Neighbours of the retrieval
    #[arg(long, default_value_t = 10)]
    pub retrieval_k: i64,
    /// Another labelled set: a linear classifier on h there (paper B.8.1), and with --with transfer-finetune the whole network
    /// fine-tuned; judged by top-1 (default), mean-per-class or map-11
    #[arg(long, value_name = "PATH[:METRIC]")]
    pub transfer: Vec<String>,
    /// Fine-tuning on transfer sets: steps of each training [default: 20000]
    #[arg(long, value_name = "STEPS")]
    pub transfer_steps: Option<u64>,
    /// Fine-tuning on transfer sets: images per step, at most [default: 256]
    #[arg(long, value_name = "IMAGES")]
    pub transfer_batch: Option<usize>,
    /// Fine-tuning on transfer sets: learning rates to try [default: 7 from 1e-4 to 1e-1, evenly spaced in the logarithm]
    #[arg(long, value_delimiter = ',')]
    pub transfer_lr: Vec<f64>,
    /// Fine-tuning on transfer sets: weight decays to try with each, divided by the learning rate [default: 0 and 7 from 1e-6
    /// to 1e-3]
    #[arg(long, value_delimiter = ',')]
    pub transfer_decay: Vec<f64>,
    /// From fresh weights: steps of each training [default: twice --transfer-steps]
    #[arg(long, value_name = "STEPS")]
    pub transfer_fresh_steps: Option<u64>,
    /// From fresh weights: learning rates to try [default: --transfer-lr if given, else 7 from 1e-3 to 1]
    #[arg(long, value_delimiter = ',')]
    pub transfer_fresh_lr: Vec<f64>,
    /// From fresh weights: weight decays to try with each, divided by the learning rate [default: --transfer-decay if given,
    /// else 8 from 1e-5 to 10^-1.5]
    #[arg(long, value_delimiter = ',')]
    pub transfer_fresh_decay: Vec<f64>,
    /// Fine-tuning: optimizer, rates and batch of SimCLR v1 (SGD, 0.05 x batch / 256) or v2 (LARS, 0.005 x sqrt(batch), batch 1024)
    /// [default: v1]
    #[arg(long, value_name = "RECIPE")]
    pub finetune_recipe: Option<Recipe>,
    /// Fine-tuning: base learning rates, compared on a fifth of the labels [default: 0.05,0.5; v2: 0.005]
    #[arg(long, value_delimiter = ',')]
    pub finetune_lr: Vec<f64>,
    /// Fine-tuning: layers of the projection head kept below the classifier, a row for each (0: from h; SimCLRv2: 1)
    /// [default: 0]
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    pub keep_head: Vec<usize>,
    /// A list of the labelled images' names in place of drawn subsets, for the share of the labels that it is nearest to;
    /// may be given many times
    #[arg(long, value_name = "FILE")]
    pub labels: Vec<PathBuf>,
    /// Fine-tuning: how many of the subsets drawn for each few-label column [default: 3]
    #[arg(long)]
    pub finetune_draws: Option<usize>,
    /// Linear classifier on crops: base learning rates for 256 images; several are compared on a fifth [default: 0.1]
    #[arg(long, value_delimiter = ',')]
    pub linear_lr: Vec<f64>,
    /// Linear classifier on crops: weight decays; several are compared on a fifth [default: 0]
    #[arg(long, value_delimiter = ',')]
    pub linear_decay: Vec<f64>,
    /// Linear classifier on crops: update rule [default: sgd]
    #[arg(long, value_name = "RULE")]
    pub linear_optim: Option<LinearOptim>,
    /// Seeds of what is trained with all labels, for mean and spread [default: 1]
    #[arg(long)]
    pub seeds: Option<u64>,
    /// Protocols that train: epochs [default: 60 with 1 %, 30 with more labels, 90 of the linear classifier]
    #[arg(long)]
    pub finetune_epochs: Option<f64>,
    /// Protocols that train: images per step, at most [default: 256]
    #[arg(long)]
    pub finetune_batch: Option<usize>,
    /// Judge these safetensors weights under torchvision's or timm's names; needs the architecture (--set encoder.name=...)
    /// and the side of an image (--image-size)
    #[arg(long, value_name = "FILE.safetensors")]
    pub weights: Option<PathBuf>,
    /// With --weights: what they take from each channel and divide by
    #[arg(long, requires = "weights", default_value = "imagenet")]
    pub normalize: Normalize,
    /// With --weights: keys of the configuration.
    #[command(flatten)]
    pub config: EncoderArguments,
    /// What the encoder sees.
    #[command(flatten)]
    pub transform: TransformArguments,
    /// Forget what earlier evaluations of the run have found, and do all of it again
    #[arg(long)]
    pub fresh: bool,
    /// Print results.json instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What the encoder sees of an image, where that is not to be as the run says.
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

/// With --weights: what they are weights of.
#[derive(Debug, Args)]
pub struct EncoderArguments {
    /// Architecture, such as resnet18 (encoder.name)
    #[arg(long, requires = "weights")]
    pub encoder: Option<String>,
    /// Side of an image in pixels (train.image_size)
    #[arg(long, requires = "weights")]
    pub image_size: Option<usize>,
    /// Override any key; may be given many times
    #[arg(long = "set", requires = "weights", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

impl EncoderArguments {
    /// All of them as overrides of the configuration.
    pub fn overrides(&self) -> Vec<String> {
        let encoder = key("encoder.name", self.encoder.as_ref().map(|name| format!("{name:?}")));
        let own = [encoder, key("train.image_size", self.image_size)];
        self.set.iter().chain(own.iter().flatten()).cloned().collect()
    }
}

/// Evaluation protocols that are not run unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Precision among the nearest training images
    Retrieval,
    /// Linear classifier by SGD on random crops, encoder frozen (paper B.6)
    LinearSgd,
    /// Fine-tuning with each share of the labels, and from fresh weights (paper B.5)
    Finetune,
    /// The encoder from fresh weights with all labels, by the run's own recipe (paper B.3)
    Supervised,
    /// Fine-tuning on every --transfer set, and from fresh weights (paper B.8.2): 114 trainings of 20,000 or 40,000 steps for
    /// each set unless --transfer-steps, --transfer-lr and --transfer-decay say otherwise
    TransferFinetune,
    /// All of them
    All,
}

/// Update rule of the linear classifier on crops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LinearOptim {
    /// Nesterov momentum
    Sgd,
    /// Layer-wise adaptive rates
    Lars,
}

/// Settings of fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Recipe {
    /// Paper B.5
    V1,
    /// SimCLR v2
    V2,
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
