//! The examples run and do what they claim.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[path = "../examples/custom_loss.rs"]
mod custom_loss;
#[path = "../examples/custom_method.rs"]
mod custom_method;
#[path = "../examples/features.rs"]
mod features;
mod fixtures;
#[path = "../examples/train_loop.rs"]
mod train_loop;

use simclr::tch::{Kind, Tensor};

/// 32 images of stripes that differ in direction, width and colour, as PPM files.
fn images(folder: &Path) {
    for index in 0..32usize {
        let mut bytes = b"P6 48 48 255\n".to_vec();
        let pixel = |row: usize, column: usize| {
            let place = [row, column, row + column, row + 48 - column][index % 4];
            let is_light = (place / (2 + index / 4)).is_multiple_of(2);
            let color = [index * 8, 255 - index * 8, (index * 40) % 256];
            color.map(|value| if is_light { 255 } else { value as u8 / 2 })
        };
        bytes.extend((0..48).flat_map(|row| (0..48).flat_map(move |column| pixel(row, column))));
        fs_err::write(folder.join(format!("{index}.ppm")), bytes).unwrap();
    }
}

/// Mean of the first and of the last ten losses.
fn ends(losses: &[f64]) -> [f64; 2] {
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    [mean(&losses[..10]), mean(&losses[losses.len() - 10..])]
}

#[test]
fn the_training_loop_learns() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let losses = train_loop::run(folder.path(), 120).unwrap();
    let [first, last] = ends(&losses);
    assert!(losses.len() == 120 && last < first - 0.2, "{losses:?}");
}

#[test]
fn a_custom_loss_learns_and_equals_its_formula() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let losses = custom_loss::run(folder.path(), 120).unwrap();
    let [first, last] = ends(&losses);
    assert!(last < first - 0.2, "{losses:?}");
    // Two images, views equal: alignment 0; the two images are orthogonal, so |zi - zj|^2 = 2 and uniformity = -4.
    let z = Tensor::eye(2, (Kind::Float, simclr::tch::Device::Cpu)).repeat([2, 1]);
    let loss = custom_loss::alignment_and_uniformity(&z).double_value(&[]);
    assert!((loss + 4.0).abs() < 1e-5, "{loss}");
}

#[test]
fn a_custom_method_gives_the_same_loss_whole_and_in_chunks() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let [whole, chunked] = custom_method::run(folder.path()).unwrap();
    assert!(whole > 0.0 && (chunked / whole - 1.0).abs() < 1e-4, "{whole} {chunked}");
}

#[test]
fn an_exported_encoder_finds_the_copy_of_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(&folder.path().join("run"), "conv-c3");
    let encoder = folder.path().join("encoder.safetensors");
    simclr::export::export_encoder(&run, &encoder).unwrap();
    let data = folder.path().join("images");
    fixtures::images(&data, 16);
    fs_err::copy(data.join("low/003.png"), data.join("low/copy.png")).unwrap();
    let (names, nearest) = features::run(&encoder, &data).unwrap();
    let row = |name: &str| names.iter().position(|found| found == name).unwrap();
    assert_eq!((names.len(), nearest[row("low/copy.png")]), (33, row("low/003.png") as i64));
}
