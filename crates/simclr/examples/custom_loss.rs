//! A loss of your own on the embeddings: alignment and uniformity (Wang & Isola 2020, arXiv 2005.10242), differentiated by
//! autograd.
//!
//! usage: `custom_loss IMAGES [STEPS]`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, path::Path, sync::Arc};

use simclr::{
    data::{AugmentConfig, Dataset, Loader, LoaderConfig, Split, dataset::OpenOptions},
    device::Precision,
    encoder::{EncoderConfig, EncoderName, Mode},
    exec::DeviceBatch,
    head::HeadConfig,
    losses::l2_normalize,
    model::Model,
    optim::{OptimConfig, OptimKind, Optimizer},
    tch::{Device, Kind, Tensor},
};

/// Mean |z1 - z2|^2 of the pairs plus ln of the mean of exp(-2 |zi - zj|^2) within each of the two views. Rows `i` and `i + N` of
/// `z` `[2N, D]` are two views of one image.
pub fn alignment_and_uniformity(z: &Tensor) -> Tensor {
    let images = z.size()[0] / 2;
    let unit = l2_normalize(&z.to_kind(Kind::Float));
    let views = [unit.narrow(0, 0, images), unit.narrow(0, images, images)];
    let alignment = (&views[0] - &views[1]).square().sum(Kind::Float) / images as f64;
    let uniformity = views.map(|view| {
        let squared: Tensor = (view.matmul(&view.tr()) - 1.0) * -2.0;
        let others = (squared * -2.0).exp().sum(Kind::Float) - images as f64;
        (others / (images * (images - 1)) as f64).log()
    });
    alignment + (&uniformity[0] + &uniformity[1]) * 0.5
}

/// Trains a small encoder on views of 32 px and returns the loss of every step.
pub fn run(images: &Path, steps: u64) -> Result<Vec<f64>, Box<dyn Error>> {
    let device = Device::Cpu;
    let dataset = Arc::new(Dataset::open(images, Split::Train, OpenOptions::default())?);
    let shape = (dataset.channels(), 32);
    let encoder = EncoderConfig { name: EncoderName::ConvC3, ..EncoderConfig::default() };
    let input = (shape.0 as i64, shape.1 as i64);
    let model = Model::new(&encoder, &HeadConfig::default(), input, 0, device, Precision::F32)?;
    let optim = OptimConfig { kind: OptimKind::Adamw, ..OptimConfig::default() };
    let mut optimizer = Optimizer::new(&optim, &model.params);
    let config = LoaderConfig { batch: 16, size: shape.1, ..LoaderConfig::default() };
    let loader = Loader::new(dataset, AugmentConfig::default(), config)?;
    let mut losses = Vec::new();
    for batch in loader.batches(0, steps)? {
        let views = DeviceBatch::on_host(batch?, shape.0, device).views()?;
        let (_, z) = model.forward(&views, &Mode::train())?;
        let loss = alignment_and_uniformity(&z);
        loss.backward();
        optimizer.step(&model.params, 2e-3)?;
        losses.push(loss.double_value(&[]));
    }
    Ok(losses)
}

#[allow(dead_code, reason = "tests/examples.rs calls `run`")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let images = arguments.first().ok_or("usage: custom_loss IMAGES [STEPS]")?;
    let steps = arguments.get(1).map_or(Ok(20), |steps| steps.parse())?;
    for (step, loss) in run(Path::new(images), steps)?.iter().enumerate() {
        println!("step {step}: loss {loss:.4}");
    }
    Ok(())
}
