//! Arguments of `report` and `neighbours`.

use std::path::{Path, PathBuf};

use clap::Args;
use simclr::{
    RunConfig,
    data::{Split, dataset::Labels},
    explore::{ExploreOptions, projection::Projection},
};

use super::ComputeArguments;

/// The images that a command looks at.
#[derive(Debug, Args)]
pub struct SetArguments {
    /// Images; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// A table of images and labels (.csv, .jsonl, .parquet) in place of the labels in the set, or none [default: the run's
    /// data.labels on the run's own images, else auto]
    #[arg(long, value_name = "FILE|auto|none")]
    pub labels_from: Option<Labels>,
    /// A single split: train, test, validation or unlabelled [default: all splits]
    #[arg(long, value_name = "PART")]
    pub split: Option<Split>,
    /// Device, threads, batch.
    #[command(flatten)]
    pub compute: ComputeArguments,
}

impl SetArguments {
    /// For the library; at most `images` images, 0 = all. `data` is the set as one path, `config` that of the run.
    pub fn options(&self, data: &Path, config: &RunConfig, images: usize) -> ExploreOptions {
        let default = ExploreOptions::default();
        ExploreOptions {
            split: self.split,
            labels: self.labels_from.clone().unwrap_or_else(|| config.data.labels_of(data)),
            images,
            batch: self.compute.batch.unwrap_or(default.batch),
            threads: self.compute.threads.unwrap_or(default.threads),
            device: self.compute.device,
            seed: default.seed,
        }
    }
}

/// `simclr report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Folder of the run
    pub run: PathBuf,
    /// The images.
    #[command(flatten)]
    pub set: SetArguments,
    /// The page
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    pub out: PathBuf,
    /// Images at most, chosen at random; 0: all
    #[arg(long, value_name = "N", default_value_t = ExploreOptions::default().images)]
    pub images: usize,
    /// Images on the map at most, chosen at random
    #[arg(long, value_name = "N", default_value_t = 5000)]
    pub points: usize,
    /// Places on the map: pca, two principal components, or umap
    #[arg(long, default_value = "pca")]
    pub map: Projection,
    /// Neighbours of every image, for odd images and label errors
    #[arg(long, value_name = "K", default_value_t = 10)]
    pub k: usize,
    /// Least cosine of near-duplicates
    #[arg(long, value_name = "COSINE", default_value_t = 0.99)]
    pub duplicates: f64,
    /// Least share of the neighbours that agree on another class than the label of a possible label error
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    pub agreement: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `simclr neighbours`.
#[derive(Debug, Args)]
pub struct Neighbours {
    /// Folder of the run
    pub run: PathBuf,
    /// The images.
    #[command(flatten)]
    pub set: SetArguments,
    /// Image files inside or outside of the set, or names of images of the set
    #[arg(long, value_name = "IMAGE", required = true, num_args = 1..)]
    pub query: Vec<PathBuf>,
    /// Images listed for each
    #[arg(long, value_name = "K", default_value_t = 10)]
    pub k: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
