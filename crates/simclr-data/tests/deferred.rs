//! Batches of recipes are those of pixels: the same images, dice and order, whatever fails and however the batch is parted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use simclr_data::{
    AugmentConfig, Batch, Chunking, DataError, Dataset, DeferredView, DeferredViews, Image, Loader,
    LoaderConfig, Sample, Views,
    augment::{AugmentBuffers, Interpolation, apply},
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
    };
    let augment = AugmentConfig { interpolation, crop_scale: [0.02, 0.6], ..AugmentConfig::default() };
    Loader::new(dataset, augment, config).unwrap()
}

fn augment(interpolation: Interpolation) -> AugmentConfig {
    AugmentConfig { interpolation, ..AugmentConfig::default() }
}

fn recipes(batch: &Batch) -> &DeferredViews {
    match &batch.views {
        Views::Deferred(recipes) => recipes,
        Views::Pixels(_) => panic!("pixels"),
    }
}

/// The pixels of a row, from nothing but what the batch holds.
fn view(recipes: &DeferredViews, recipe: &DeferredView) -> Vec<f32> {
    let len = recipe.width * recipe.height * 3;
    let image = Image::new(recipe.width, recipe.height, 3, recipes.bytes[recipe.at..][..len].to_vec());
    let mut out = vec![f32::NAN; VIEW];
    let augment = augment(recipes.method.interpolation);
    apply(&image, &recipe.params, &augment, SIZE, &mut out, &mut AugmentBuffers::default());
    out
}

/// Row for row, bit for bit, over two epochs: a rectangle of an image gives the same pixels as the image.
#[track_caller]
fn same(pixels: &Loader, recipes_of: &Loader) {
    let pixels: Vec<_> = pixels.batches(0, 8).unwrap().map(Result::unwrap).collect();
    let made: Vec<_> = recipes_of.batches(0, 8).unwrap().map(Result::unwrap).collect();
    assert_eq!(pixels.len(), made.len());
    for (pixels, made) in pixels.iter().zip(&made) {
        let place = |batch: &Batch| (batch.step, batch.epoch, batch.chunk, batch.failed.clone());
        assert_eq!(place(pixels), place(made));
        assert_eq!((&pixels.ids, &pixels.second_view_ids), (&made.ids, &made.second_view_ids));
        let recipes = recipes(made);
        assert_eq!(recipes.rows.len() * VIEW, pixels.pixels().len());
        for (recipe, expected) in recipes.rows.iter().zip(pixels.pixels().chunks_exact(VIEW)) {
            assert!(view(recipes, recipe) == expected, "{recipe:?}");
        }
    }
}

#[test]
fn recipes_are_the_pixels_to_be() {
    for how in [Interpolation::Bicubic, Interpolation::Bilinear] {
        same(&loader(how, &[]), &loader(how, &[]).deferred());
        same(&loader(how, &[3, 17, 31]), &loader(how, &[3, 17, 31]).deferred());
    }
}

#[test]
fn chunks_parts_and_passes_are_those_of_pixels() {
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

/// Each image once, and of it what its views look at.
#[test]
fn an_image_is_there_once_and_no_more_of_it_than_is_seen() {
    let batches = loader(Interpolation::Bicubic, &[]).deferred().batches(0, 4).unwrap();
    let (mut held, mut whole) = (0, 0);
    for batch in batches.map(Result::unwrap) {
        let recipes = recipes(&batch);
        let mut places = HashMap::new();
        for (id, recipe) in batch.ids.iter().chain(&batch.second_view_ids).zip(&recipes.rows) {
            let place = (recipe.at, recipe.width, recipe.height);
            assert_eq!(*places.entry(*id).or_insert(place), place);
            let crop = recipe.params.crop;
            assert!(crop.x + crop.width <= recipe.width && crop.y + crop.height <= recipe.height);
        }
        let bytes: usize = places.values().map(|(_, width, height)| width * height * 3).sum();
        assert_eq!(bytes, recipes.bytes.len());
        held += bytes;
        whole += batch.ids.iter().map(|id| (7 + 37 * (id % 5)) * (5 + 29 * (id % 3)) * 3).sum::<usize>();
    }
    assert!(4 * held < 3 * whole, "{held} of {whole} bytes");
}

/// As with pixels, the memory of a batch goes from one to a later one.
#[test]
fn memory_comes_back() {
    let loader = loader(Interpolation::Bicubic, &[]).deferred();
    let mut places = HashSet::new();
    for batch in loader.batches(0, 60).unwrap().map(Result::unwrap) {
        places.insert(recipes(&batch).bytes.as_ptr() as usize);
    }
    assert!(places.len() < 30, "{} blocks for 60 batches", places.len());
}
