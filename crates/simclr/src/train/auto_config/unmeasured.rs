//! Choices by the images and the device, which need no measurement.

use simclr_data::{Dataset, rng::Key};
use tch::Device;

use super::{choice, paper};
use crate::{
    RunConfig, TrainError,
    config::Written,
    device::choose_device,
    encoder::EncoderName,
    train::init::{self, TakenOver},
};

/// Images decoded to estimate the median size.
const SIZE_SAMPLE: usize = 8;

/// The configuration of which [`crate::train::pretrain`] makes the views of `dataset` on this machine, unless memory forces smaller ones,
/// and a line for each choice by the paper.
///
/// # Errors
/// A device that is absent; a `task.init_from` that cannot be read.
pub fn choose_views(
    mut config: RunConfig,
    written: &Written,
    dataset: &Dataset,
) -> Result<(RunConfig, Vec<String>), TrainError> {
    let device = choose_device(config.train.device, 0)?;
    let chosen = Unmeasured::choose(&mut config, written, dataset, device, 1)?;
    Ok((config, chosen.of_paper))
}

/// What is chosen by the images and the device, without a measurement.
#[derive(Default)]
pub(super) struct Unmeasured {
    /// Keys of the network at `task.init_from`.
    pub(super) taken_over: TakenOver,
    /// Whether `train.image_size` may be chosen again, smaller.
    pub(super) size_may_shrink: bool,
    /// Choices of [`paper::settings`].
    pub(super) of_paper: Vec<String>,
}

impl Unmeasured {
    /// Sets keys of `config` that are not `written`.
    pub(super) fn choose(
        config: &mut RunConfig,
        written: &Written,
        dataset: &Dataset,
        device: Device,
        ranks: usize,
    ) -> Result<Self, TrainError> {
        let taken_over = init::take_over(config, written, dataset.channels())?;
        choose_batch(config, written, dataset.len(), ranks);
        let may_choose_size = !written.has("train.image_size") && !taken_over.has("train.image_size");
        let size_may_shrink = choose_network(config, written, dataset, device, may_choose_size);
        let of_paper = paper::settings(config, written);
        Ok(Self { taken_over, size_may_shrink, of_paper })
    }
}

fn choose_batch(config: &mut RunConfig, written: &Written, images: usize, ranks: usize) {
    let too_few = images >= 2 && images < config.train.batch;
    if too_few && choice::batch(images) >= ranks && !written.has("train.batch") {
        config.train.batch = choice::batch(images);
    }
}

/// Encoder for a CPU and, if it may be chosen, image size. Returns whether a smaller image size may be chosen if memory is short.
fn choose_network(
    config: &mut RunConfig,
    written: &Written,
    dataset: &Dataset,
    device: Device,
    may_choose_size: bool,
) -> bool {
    if written.has("encoder.file") {
        return false;
    }
    let is_cpu = !device.is_cuda();
    if is_cpu && !written.has("encoder.name") && config.task.init_from.is_none() {
        config.encoder.name = EncoderName::Resnet18;
    }
    let shorter_side = may_choose_size.then(|| median_shorter_side(dataset, config.train.seed)).flatten();
    let Some(side) = shorter_side else { return false };
    let most = match is_cpu {
        true => choice::cpu_image_size(dataset.len() as f64 * config.train.epochs),
        false => config.train.image_size,
    };
    config.train.image_size = choice::image_size(most, side);
    is_cpu
}

/// In pixels, over the first images of the first epoch; `None` if none can be decoded.
fn median_shorter_side(dataset: &Dataset, seed: u64) -> Option<usize> {
    let order = Key::order(seed, 0).stream().permutation(dataset.len());
    let images = order.into_iter().take(SIZE_SAMPLE).filter_map(|id| dataset.decode(id).ok());
    let mut sides: Vec<_> = images.map(|image| image.width.min(image.height)).collect();
    sides.sort_unstable();
    sides.get(sides.len() / 2).copied()
}
