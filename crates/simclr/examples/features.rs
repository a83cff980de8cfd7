//! Features of a folder of images by an exported encoder, and the most similar images of each.
//!
//! usage: `features ENCODER.safetensors IMAGES`
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, path::Path};

use simclr::{
    data::{Dataset, Split},
    eval::features::{ReadOptions, features},
    export::load_exported,
    knn::Neighbours,
    tch::Tensor,
};

/// Names of the images, and for each the row of the most similar other image.
pub fn run(encoder: &Path, images: &Path) -> Result<(Vec<String>, Vec<i64>), Box<dyn Error>> {
    let encoder = load_exported(encoder)?;
    let dataset = Dataset::open_as(images, Split::Train, &encoder.decoding())?;
    let all: Vec<usize> = (0..dataset.len()).collect();
    let read = features(&encoder, &dataset, &all, &ReadOptions::of(&encoder, 64, 0), &mut |_, _| {})?;
    let h: &Tensor = &read.features[0]; // [n, F]
    let nearest = Vec::<Vec<i64>>::try_from(Neighbours::of(h, h, 2).positions())?;
    // One of the two most similar rows is the image itself.
    let other = |(row, two): (usize, &Vec<i64>)| two[usize::from(two[0] == row as i64)];
    let nearest = nearest.iter().enumerate().map(other).collect();
    let names = read.indices.iter().map(|&index| dataset.samples()[index].name.clone()).collect();
    Ok((names, nearest))
}

#[allow(dead_code, reason = "tests/examples.rs calls `run`")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [encoder, images] = &arguments[..] else { return Err("usage: features ENCODER IMAGES".into()) };
    let (names, nearest) = run(Path::new(encoder), Path::new(images))?;
    for (name, other) in names.iter().zip(nearest) {
        println!("{name}  {}", names[other as usize]);
    }
    Ok(())
}
