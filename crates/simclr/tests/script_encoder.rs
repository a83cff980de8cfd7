//! TorchScript files that cannot serve as an encoder: each is refused with its path and what is wrong.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use simclr::{
    device::Precision,
    encoder::{Encoder, EncoderConfig, Mode},
    params::Params,
};
use tch::{CModule, Device, Kind, Tensor};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/script.pt")
}

fn load(file: &Path, channels: i64) -> Result<(Encoder, Params), String> {
    let mut params = Params::new(Device::Cpu, 0);
    let config = EncoderConfig { file: Some(file.to_owned()), ..EncoderConfig::default() };
    let encoder = Encoder::new(&config, channels, 16, &mut params).map_err(|error| error.to_string())?;
    Ok((encoder, params))
}

/// A module without parameters that applies `f`, traced on two images.
fn traced(file: &Path, f: impl Fn(&Tensor) -> Tensor) {
    let probe = Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu));
    let mut closure = |inputs: &[Tensor]| vec![f(&inputs[0])];
    CModule::create_by_tracing("Traced", "forward", &[probe], &mut closure).unwrap().save(file).unwrap();
}

#[track_caller]
fn refused(file: &Path, channels: i64, words: &[&str]) {
    let said = load(file, channels).expect_err("refused");
    assert!(said.contains(&file.display().to_string()), "{said}");
    assert!(!said.contains('\n'), "one line: {said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
}

#[test]
fn files_that_are_no_modules() {
    let place = tempfile::tempdir().unwrap();
    refused(&place.path().join("absent.pt"), 3, &["no such file"]);
    let text = place.path().join("text.pt");
    fs_err::write(&text, "not a module").unwrap();
    refused(&text, 3, &["not a usable TorchScript module"]);
    let cut = place.path().join("cut.pt");
    let whole = fs_err::read(golden()).unwrap();
    fs_err::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&cut, 3, &["not a usable TorchScript module"]);
}

#[test]
fn modules_that_give_no_features() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("flat.pt");
    traced(&file, |images| images.flatten(2, 3));
    refused(&file, 3, &["[2, 3, 256]", "expected [2, F] or [2, F, h, w]"]);
    traced(&file, |images| images.flatten(1, 3));
    refused(&file, 3, &["no parameters"]);
    refused(&golden(), 5, &["3 channels, but got 5 channels"]);
}

/// A batch that the module's own code cannot take is an error value, in both modes and precisions.
#[test]
fn a_batch_that_does_not_fit_is_an_error() {
    let (encoder, _params) = load(&golden(), 3).unwrap();
    assert_eq!(encoder.feature_dim(), 8);
    let wrong = Tensor::zeros([2, 4, 16, 16], (Kind::Float, Device::Cpu));
    for precision in [Precision::F32, Precision::Bf16] {
        for mode in &[Mode::train(), Mode::Eval] {
            assert!(encoder.forward(&wrong, mode, precision).is_err());
        }
    }
}

/// Autocast ends with the forward pass, also when that fails: a product afterwards is f32 again.
#[test]
fn autocast_does_not_leak() {
    let (encoder, _params) = load(&golden(), 3).unwrap();
    let options = (Kind::Float, Device::Cpu);
    for channels in [3, 4] {
        let h =
            encoder.forward(&Tensor::zeros([2, channels, 16, 16], options), &Mode::train(), Precision::Bf16);
        assert_eq!(h.is_ok(), channels == 3);
        let a = Tensor::ones([2, 2], options);
        assert_eq!(a.matmul(&a).kind(), Kind::Float);
    }
}
