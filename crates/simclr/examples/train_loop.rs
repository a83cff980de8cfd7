//! A training loop of your own: images, augmentation, encoder, NT-Xent and optimizer from the library, the loop from you.
//!
//! usage: `train_loop IMAGES [STEPS]`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, path::Path, sync::Arc};

use simclr::{
    data::{AugmentConfig, Dataset, Loader, LoaderConfig, Split, dataset::OpenOptions},
    device::Precision,
    encoder::{EncoderConfig, EncoderName, Mode},
    exec::DeviceBatch,
    head::HeadConfig,
    losses::{LossConfig, contrastive_loss},
    model::Model,
    optim::{OptimConfig, OptimKind, Optimizer},
    tch::Device,
};

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
    let loss_config = LossConfig { temperature: 0.5, ..LossConfig::default() };

    let config = LoaderConfig { batch: 16, size: shape.1, ..LoaderConfig::default() };
    let loader = Loader::new(dataset, AugmentConfig::default(), config)?;
    let mut losses = Vec::new();
    for batch in loader.batches(0, steps)? {
        let views = DeviceBatch::on_host(batch?, shape.0, device).views()?;
        let (_, z) = model.forward(&views, &Mode::train())?;
        let loss = contrastive_loss(&z, &loss_config).loss;
        loss.backward();
        optimizer.step(&model.params, 2e-3)?;
        losses.push(loss.double_value(&[]));
    }
    Ok(losses)
}

#[allow(dead_code, reason = "tests/examples.rs calls `run`")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let images = arguments.first().ok_or("usage: train_loop IMAGES [STEPS]")?;
    let steps = arguments.get(1).map_or(Ok(20), |steps| steps.parse())?;
    for (step, loss) in run(Path::new(images), steps)?.iter().enumerate() {
        println!("step {step}: loss {loss:.4}");
    }
    Ok(())
}
