//! The examples run and do what they claim.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[path = "../examples/custom_loss.rs"]
mod custom_loss;
#[path = "../examples/custom_method.rs"]
mod custom_method;
#[path = "../examples/train_loop.rs"]
mod train_loop;

use simclr::tch::{Kind, Tensor};

/// Coloured squares with a gradient, as PPM files.
fn images(folder: &Path) {
    for index in 0..32u8 {
        let mut bytes = b"P6 24 24 255\n".to_vec();
        let pixel = |at: u8| [index * 8, at.wrapping_mul(10), (index % 4) * 60];
        bytes.extend((0..24u8).flat_map(|row| (0..24u8).flat_map(move |column| pixel(row ^ column))));
        fs_err::write(folder.join(format!("{index}.ppm")), bytes).unwrap();
    }
}

#[test]
fn the_training_loop_learns() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let losses = train_loop::run(folder.path(), 30).unwrap();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(losses.len(), 30);
    assert!(mean(&losses[25..]) < mean(&losses[..5]) - 0.1, "{losses:?}");
}

#[test]
fn a_custom_loss_learns_and_equals_its_formula() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let losses = custom_loss::run(folder.path(), 30).unwrap();
    assert!(losses[29] < losses[0], "{losses:?}");
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
