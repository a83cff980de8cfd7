//! Deferred batches of the loader, augmented by the kernels, against batches augmented by the loader.

use std::sync::Arc;

use simclr::{
    data::{
        AugmentConfig, Batch, Chunking, DataError, Dataset, Image, Loader, LoaderConfig, Sample,
        augment::{Interpolation, Policy},
        dataset::Source,
        decode::Decoding,
        rng::Key,
    },
    views::upload,
};
use simclr_shim::gpu::{Order, emulated};
use tch::Device;

use crate::{CPU_RESIZE_ROUNDING, by_kernels, max_difference, noise};

/// Noise images larger than the views; image 5 cannot be decoded.
struct Noise;

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        if index == 5 {
            return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
        }
        Ok(noise(50 + 9 * (index % 4), 40 + 7 * (index % 3), channels, index as u64))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        index as u64
    }
}

fn crops_and_flips() -> AugmentConfig {
    AugmentConfig { crop: true, flip: 0.5, ..AugmentConfig::nothing() }
}

fn loader(augment: AugmentConfig) -> Loader {
    let samples = (0..12).map(|index| Sample { name: format!("{index:02}"), label: None }).collect();
    let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(Noise)));
    let config = LoaderConfig {
        views: 2,
        batch: 6,
        size: 16,
        seed: 5,
        threads: 2,
        prefetch: 2,
        max_bad_share: 0.5,
        ..LoaderConfig::default()
    };
    Loader::new(dataset, augment, config).unwrap()
}

fn views_of(batch: &Batch, order: Order) -> Vec<f32> {
    let views = emulated(order, || {
        upload(&batch.views, batch.ids.len() + batch.second_view_ids.len(), 3, Device::Cpu)
            .unwrap()
            .views()
            .unwrap()
    });
    Vec::<f32>::try_from(views.contiguous().view(-1)).unwrap()
}

/// Two epochs, in whole batches and in chunks with two passes.
#[test]
fn deferred_batches_give_the_views_of_the_loader() {
    let chunking = Chunking { images: 2, shuffle_views: true, passes: 2 };
    for chunked in [None, Some(chunking)] {
        let stream = |loader: Loader| {
            let loader = match chunked {
                Some(chunking) => loader.chunked(chunking),
                None => loader,
            };
            loader.batches(0, 4).unwrap().map(Result::unwrap).collect::<Vec<_>>()
        };
        let (pixels, deferred) =
            (stream(loader(crops_and_flips())), stream(loader(crops_and_flips()).deferred()));
        assert!(pixels.iter().any(|batch| !batch.failed.is_empty()));
        for (pixels, deferred) in pixels.iter().zip(&deferred) {
            let (expected, found) = (views_of(pixels, Order::Rising), views_of(deferred, Order::Rising));
            let worst = max_difference(&found, &expected);
            assert!(worst <= CPU_RESIZE_ROUNDING, "step {}: off by {} levels", pixels.step, worst * 255.0);
            assert_eq!(found, views_of(deferred, Order::Falling));
        }
    }
}

/// A deferred batch holds only the rectangle of each image that its crop needs.
#[test]
fn partial_images_give_the_views_of_whole_images() {
    let config = AugmentConfig {
        crop_scale: [0.02, 0.3],
        policy: Policy::AutoaugmentCifar10,
        noise: 0.5,
        ..AugmentConfig::default()
    };
    for interpolation in [Interpolation::Bicubic, Interpolation::Bilinear] {
        let config = AugmentConfig { interpolation, ..config.clone() };
        for batch in loader(config.clone()).deferred().batches(0, 2).unwrap().map(Result::unwrap) {
            let images: Vec<Image> = batch
                .ids
                .iter()
                .chain(&batch.second_view_ids)
                .map(|&id| Noise.decode(id, &3.into()).unwrap())
                .collect();
            let views =
                batch.ids.iter().map(|&id| (id, 0)).chain(batch.second_view_ids.iter().map(|&id| (id, 1)));
            let whole: Vec<_> = images
                .iter()
                .zip(views)
                .map(|(image, (id, view))| {
                    let key = Key { seed: 5, epoch: batch.epoch, image: id as u64, view };
                    (image, config.draw(key, image.width, image.height))
                })
                .collect();
            assert_eq!(by_kernels(&whole, &config, 16).concat(), views_of(&batch, Order::Rising));
        }
    }
}
