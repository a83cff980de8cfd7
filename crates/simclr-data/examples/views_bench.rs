//! Views per second on one thread: 32 px from memory (s = 0.5, no blur), and 224 px from JPEG files (decoded once for two views,
//! all operators) and from memory. The first two are also measured by the script for other libraries. Called by
//! `bench/bench.py`.
//!
//! usage: views_bench [FILE.jpg ...]
#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::{io::Cursor, time::Instant};

use simclr_data::{
    AugmentConfig, Image,
    augment::{self, AugmentBuffers},
    decode,
    rng::Key,
};

/// As in the executable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Duration of each measurement.
const SECONDS: f64 = 3.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let small = Image::new(32, 32, 3, noise(32 * 32 * 3));
    let cifar = AugmentConfig { color: 0.5, blur: 0.0, ..AugmentConfig::default() };
    let rate = rate(&cifar, 32, |_| Ok(small.clone()))?;
    println!("simclr 32 px: {rate:.0} views/s/core");

    let mut files = std::env::args().skip(1).map(fs_err::read).collect::<Result<Vec<_>, _>>()?;
    if files.is_empty() {
        files.push(photo()?);
    }
    let full = AugmentConfig::default();
    let rate = self::rate(&full, 224, |turn| Ok(decode::decode("photo", &files[turn % files.len()], 3)?))?;
    println!("simclr 224 px from JPEG: {rate:.0} views/s/core");
    let decoded = files.iter().map(|file| decode::decode("photo", file, 3)).collect::<Result<Vec<_>, _>>()?;
    let rate = self::rate(&full, 224, |turn| Ok(decoded[turn % decoded.len()].clone()))?;
    println!("simclr 224 px from memory: {rate:.0} views/s/core");
    Ok(())
}

/// Rate of making two views of each image from `load`.
fn rate(
    config: &AugmentConfig,
    size: usize,
    load: impl Fn(usize) -> Result<Image, Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let (mut out, mut scratch) = (vec![0.0; 3 * size * size], AugmentBuffers::default());
    let (mut turn, mut start) = (0, Instant::now());
    loop {
        let image = load(turn)?;
        for view in 0..2 {
            let key = Key { seed: 0, epoch: 0, image: turn as u64, view };
            let params = config.draw(key, image.width, image.height);
            augment::apply(&image, &params, config, size, &mut out, &mut scratch);
        }
        turn += 1;
        if turn == 10 {
            start = Instant::now(); // the first ten warm up
        }
        if turn > 10 && start.elapsed().as_secs_f64() > SECONDS {
            return Ok(2.0 * (turn - 10) as f64 / start.elapsed().as_secs_f64());
        }
    }
}

fn noise(count: usize) -> Vec<u8> {
    let mut stream = Key { seed: 1, epoch: 0, image: 0, view: 0 }.stream();
    (0..count).map(|_| stream.bits() as u8).collect()
}

/// A 500x375 JPEG, quality 92, of smooth colours with fine noise, as in the script for other libraries.
fn photo() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut stream = Key { seed: 2, epoch: 0, image: 0, view: 0 }.stream();
    let low = image::RgbImage::from_raw(32, 24, noise(32 * 24 * 3)).ok_or("32 x 24 pixels")?;
    let mut high = image::imageops::resize(&low, 500, 375, image::imageops::FilterType::CatmullRom);
    for value in high.iter_mut() {
        *value = (f32::from(*value) + 6.0 * stream.normal_pair().0).clamp(0.0, 255.0) as u8;
    }
    let mut bytes = Cursor::new(Vec::new());
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 92).encode_image(&high)?;
    Ok(bytes.into_inner())
}
