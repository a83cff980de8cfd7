//! Deferred views equal the loader's pixels: the same images, parameters and order, also with failures, chunks and parts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use simclr_data::{
    AugmentConfig, Batch, Chunking, DataError, Dataset, DeferredView, DeferredViews, Image, Loader,
    LoaderConfig, Sample, Views,
    augment::{AugmentBuffers, Interpolation, Policy, SecondView, apply},
    dataset::Source,
    decode::Decoding,
    rng::Key,
};

const SIZE: usize = 12;
const VIEW: usize = 3 * SIZE * SIZE;

/// Random pixels, sizes between a few and many times that of a view; some images fail.
struct Noise {
    bad: HashSet<usize>,
}

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        if self.bad.contains(&index) {
            return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
        }
        let (width, height) = (7 + 37 * (index % 5), 5 + 29 * (index % 3));
        let mut stream = Key { seed: 77, epoch: 0, image: index as u64, view: 0 }.stream();
        let data = (0..width * height * channels).map(|_| stream.below(256) as u8).collect();
        Ok(Image::new(width, height, channels, data))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        index as u64
    }
}

fn loader(interpolation: Interpolation, bad: &[usize]) -> Loader {
    let samples = (0..40).map(|index| Sample { name: format!("{index:04}"), label: None }).collect();
    let source = Noise { bad: bad.iter().copied().collect() };
    let dataset = Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(source)));
    let config = LoaderConfig {
        views: 2,
        batch: 10,
        size: SIZE,
        seed: 5,
        threads: 3,
        prefetch: 2,
        max_bad_share: 0.5,
        ..LoaderConfig::default()
    };
    let second_view =
        SecondView { crop_scale: Some([0.3, 1.0]), equalize: Some(0.5), ..SecondView::default() };
    let augment = AugmentConfig {
        interpolation,
        crop_scale: [0.02, 0.6],
        motion_blur: 0.5,
        policy: Policy::AutoaugmentCifar10,
        second_view: Some(second_view),
        ..AugmentConfig::default()
    };
    Loader::new(dataset, augment, config).unwrap()
}

fn augment(interpolation: Interpolation) -> AugmentConfig {
    AugmentConfig { interpolation, ..AugmentConfig::default() }
}

fn deferred_views(batch: &Batch) -> &DeferredViews {
    match &batch.views {
        Views::Deferred(views) => views,
        Views::Pixels(_) => panic!("pixels"),
    }
}

/// The pixels of a row, from the batch only.
fn pixels_of(views: &DeferredViews, row: &DeferredView) -> Vec<f32> {
    let len = row.width * row.height * 3;
    let image = Image::new(row.width, row.height, 3, views.bytes[row.at..][..len].to_vec());
    let mut out = vec![f32::NAN; VIEW];
    let augment = augment(views.method.interpolation);
    apply(&image, &row.params, &augment, SIZE, &mut out, &mut AugmentBuffers::default());
    out
}

/// All rows are identical over two epochs: the bounding box of the crops gives the same pixels as the whole image.
#[track_caller]
fn same(pixels: &Loader, deferred: &Loader) {
    let pixels: Vec<_> = pixels.batches(0, 8).unwrap().map(Result::unwrap).collect();
    let deferred: Vec<_> = deferred.batches(0, 8).unwrap().map(Result::unwrap).collect();
    assert_eq!(pixels.len(), deferred.len());
    for (pixels, batch) in pixels.iter().zip(&deferred) {
        let place = |batch: &Batch| (batch.step, batch.epoch, batch.chunk, batch.failed.clone());
        assert_eq!(place(pixels), place(batch));
        assert_eq!((&pixels.ids, &pixels.second_view_ids), (&batch.ids, &batch.second_view_ids));
        let views = deferred_views(batch);
        assert_eq!(views.rows.len() * VIEW, pixels.pixels().len());
        for (row, expected) in views.rows.iter().zip(pixels.pixels().chunks_exact(VIEW)) {
            assert!(pixels_of(views, row) == expected, "{row:?}");
        }
    }
}

#[test]
fn deferred_views_equal_pixels() {
    for how in [Interpolation::Bicubic, Interpolation::Bilinear] {
        same(&loader(how, &[]), &loader(how, &[]).deferred());
        same(&loader(how, &[3, 17, 31]), &loader(how, &[3, 17, 31]).deferred());
    }
}

#[test]
fn chunks_parts_and_passes_equal_those_of_pixels() {
    let both = |with: &dyn Fn(Loader) -> Loader| {
        let plain = || loader(Interpolation::Bicubic, &[3, 17]);
        same(&with(plain()), &with(plain().deferred()));
    };
    for shuffle_views in [false, true] {
        for passes in [1, 2] {
            let chunking = Chunking { images: 4, shuffle_views, passes };
            both(&|loader| loader.chunked(chunking));
            both(&|loader| loader.chunked(chunking).part(1, 2));
        }
    }
    both(&|loader| loader.part(0, 2));
}

#[test]
fn batches_hold_the_needed_part_of_each_image_once() {
    let batches = loader(Interpolation::Bicubic, &[]).deferred().batches(0, 4).unwrap();
    let (mut held, mut whole) = (0, 0);
    for batch in batches.map(Result::unwrap) {
        let views = deferred_views(&batch);
        let mut places = HashMap::new();
        for (id, row) in batch.ids.iter().chain(&batch.second_view_ids).zip(&views.rows) {
            let place = (row.at, row.width, row.height);
            assert_eq!(*places.entry(*id).or_insert(place), place);
            let crop = row.params.crop;
            assert!(crop.x + crop.width <= row.width && crop.y + crop.height <= row.height);
        }
        let bytes: usize = places.values().map(|(_, width, height)| width * height * 3).sum();
        assert_eq!(bytes, views.bytes.len());
        held += bytes;
        whole += batch.ids.iter().map(|id| (7 + 37 * (id % 5)) * (5 + 29 * (id % 3)) * 3).sum::<usize>();
    }
    assert!(4 * held < 3 * whole, "{held} of {whole} bytes");
}

#[test]
fn memory_is_reused() {
    let loader = loader(Interpolation::Bicubic, &[]).deferred();
    let mut places = HashSet::new();
    for batch in loader.batches(0, 60).unwrap().map(Result::unwrap) {
        places.insert(deferred_views(&batch).bytes.as_ptr() as usize);
    }
    assert!(places.len() < 30, "{} blocks for 60 batches", places.len());
}
