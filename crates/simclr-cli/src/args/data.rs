//! Arguments of the commands on image sets.

use std::path::PathBuf;

use clap::Args;
use simclr::data::{
    RangeChoice,
    dataset::Labels,
    decode::{Jpeg, Pages},
};

use super::ConfigArguments;

/// `simclr views`.
#[derive(Debug, Args)]
pub struct Views {
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// Output picture; or an array (.npy, or .safetensors with a tensor `views`) with a row of C x S x S values for each
    /// original and each view. The parameters of all views are written to FILE.json, such as views.png.json
    #[arg(long, value_name = "FILE.png|FILE.npy|FILE.safetensors", default_value = "views.png")]
    pub out: PathBuf,
    /// Rows: evenly spaced images of the set
    #[arg(long, default_value_t = 8)]
    pub images: usize,
    /// Columns next to the original: views
    #[arg(long, default_value_t = 8)]
    pub views: usize,
    /// Keys of the configuration.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// `simclr inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set, or none
    #[arg(long, value_name = "FILE|none", default_value = "auto", hide_default_value = true)]
    pub labels_from: Labels,
    /// How pages of TIFF files are read: auto (as channels if possible), channels, or images (data.pages)
    #[arg(long, value_name = "auto|channels|images", default_value = "auto", hide_default_value = true)]
    pub pages: Pages,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr pack`.
#[derive(Debug, Args)]
pub struct Pack {
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// Output file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Scale images down to this shorter side. This changes the training: crops are cut from the smaller images [default: keep
    /// all pixels]
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<usize>,
    /// Channels of every image [default: what the set holds]
    #[arg(long)]
    pub channels: Option<usize>,
    /// Decoder of JPEG files: zune, libjpeg (as Pillow) or libjpeg-fast (as TensorFlow)
    #[arg(long, default_value = "zune")]
    pub jpeg: Jpeg,
    /// Stored values that become 0 and 255: auto (8-bit images unchanged, others measured on a sample), full (16 bits from 0 to
    /// 65535), [low, high], or one such pair for each channel
    #[arg(long, default_value = "auto")]
    pub range: RangeChoice,
    /// How pages of TIFF files are read: auto (as channels if possible), channels, or images; recorded in the packed set
    #[arg(long, value_name = "auto|channels|images", default_value = "auto", hide_default_value = true)]
    pub pages: Pages,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set, or none
    #[arg(long, value_name = "FILE|none", default_value = "auto", hide_default_value = true)]
    pub labels_from: Labels,
    /// Decoding threads [default: all processors]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
