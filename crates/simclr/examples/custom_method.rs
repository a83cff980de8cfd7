//! A method of your own: Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230) as a `Method`. Because its loss depends on the embeddings
//! only, every executor runs it: here a whole batch, and the same batch in chunks with gradient caching and SyncBN.
//!
//! usage: `custom_method IMAGES`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, path::Path, sync::Arc};

use simclr::{
    RunConfig, TrainError,
    data::{AugmentConfig, Chunking, Dataset, Loader, LoaderConfig, Split, dataset::OpenOptions},
    device::Precision,
    dist::{GradientBuckets, ProcessGroup},
    encoder::{BatchNormScope, EncoderConfig, EncoderName},
    exec::{DeviceBatch, NormConfig, StepContext, executor},
    head::HeadConfig,
    methods::{BatchSlice, LossOutput, Method, MethodTraits},
    model::Model,
    tch::{Device, Kind, Tensor},
};

/// Weight of the off-diagonal terms (section 3.1 of the paper).
const LAMBDA: f64 = 5e-3;

/// Makes the cross-correlation of the two views' embeddings the identity.
#[derive(Debug)]
struct BarlowTwins {
    model: Model,
}

impl Method for BarlowTwins {
    fn model(&self) -> &Model {
        &self.model
    }

    fn traits(&self) -> MethodTraits {
        MethodTraits { graph_capturable: true, has_pairs: true }
    }

    fn describe_head(&self, config: &RunConfig) -> String {
        format!("{} dimensions", config.head.out)
    }

    fn describe_loss(&self, _: &RunConfig) -> String {
        format!("Barlow Twins, lambda {LAMBDA}")
    }

    /// For one process: the statistics of the batch are those of `z`.
    fn objective(&self, z: &Tensor, slice: &BatchSlice<'_>) -> LossOutput {
        let images = slice.batch_images as i64;
        let views = [z.narrow(0, 0, images), z.narrow(0, images, images)].map(|z| {
            let centred = &z - z.mean_dim(0, true, Kind::Float);
            let std = centred.square().mean_dim(0, true, Kind::Float).sqrt();
            centred / (std + 1e-6)
        });
        let correlation = views[0].tr().matmul(&views[1]) / images as f64;
        let diagonal = correlation.diagonal(0, 0, 1);
        let on = (&diagonal - 1.0).square().sum(Kind::Float);
        let off = correlation.square().sum(Kind::Float) - diagonal.square().sum(Kind::Float);
        LossOutput { loss: on + off * LAMBDA, accuracy: diagonal.detach().mean(Kind::Float) }
    }

    /// Without any correlation.
    fn chance_loss(&self, _: usize) -> f64 {
        self.model.head.widths().last().map_or(f64::NAN, |&width| width as f64)
    }
}

/// Loss of one batch whole and in chunks.
pub fn run(images: &Path) -> Result<[f64; 2], Box<dyn Error>> {
    let dataset = Arc::new(Dataset::open(images, Split::Train, OpenOptions::default())?);
    let shape = (dataset.channels(), 32);
    let encoder = EncoderConfig { name: EncoderName::ConvC3, ..EncoderConfig::default() };
    let head = HeadConfig { out: 16, ..HeadConfig::default() };
    let input = (shape.0 as i64, shape.1 as i64);
    let model = Model::new(&encoder, &head, input, 0, Device::Cpu, Precision::F32)?;
    let method = BarlowTwins { model };

    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let norm = NormConfig { scope: BatchNormScope::Global, momentum: 0.1, groups: 1 };
    let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 0 };

    let config = LoaderConfig { batch: 16, size: shape.1, ..LoaderConfig::default() };
    let loader = Loader::new(dataset, AugmentConfig::default(), config)?;
    let chunking = Chunking { images: 4, shuffle_views: false, passes: 1 };
    let mut losses = [0.0; 2];
    for (loss, chunked) in losses.iter_mut().zip([false, true]) {
        let loader = if chunked { loader.clone().chunked(chunking) } else { loader.clone() };
        let batches = loader.batches(0, 1)?;
        let mut batches =
            batches.map(|batch| Ok::<_, TrainError>(DeviceBatch::on_host(batch?, shape.0, Device::Cpu)));
        let mut executor = executor(&context, chunked.then_some(1), false);
        *loss = executor.gradients(&context, 0, &mut batches)?.loss;
    }
    Ok(losses)
}

#[allow(dead_code, reason = "tests/examples.rs calls `run`")]
fn main() -> Result<(), Box<dyn Error>> {
    let images = std::env::args().nth(1).ok_or("usage: custom_method IMAGES")?;
    let [whole, chunked] = run(Path::new(&images))?;
    println!("loss {whole:.6} of the whole batch, {chunked:.6} in chunks of 4 images");
    Ok(())
}
