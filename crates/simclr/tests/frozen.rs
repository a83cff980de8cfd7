//! Evaluation changes no byte of the encoder, batch-norm buffers included.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use simclr::{
    RunConfig,
    data::{DataError, Dataset, Image, Sample, dataset::Source, decode::Decoding},
    encoder::Mode,
    eval::{
        features::{FrozenEncoder, ReadOptions, features, label_tensor, raw_pixels},
        options::LinearOptions,
        probes::linear::fit,
    },
    knn::{knn_predict, precision_at_k},
};
use tch::{Device, Kind, Tensor};

/// Freshly drawn weights.
fn random(encoder: &str, seed: u64) -> FrozenEncoder {
    // Tests run side by side: one thread each.
    tch::set_num_threads(1);
    FrozenEncoder::random_init(&config(encoder), 3, seed).unwrap()
}

/// Squares of `label`-dependent brightness; image 7 cannot be decoded where `broken`.
struct Squares {
    broken: bool,
}

impl Source for Squares {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        if self.broken && index == 7 {
            return Err(DataError::Decode { name: name(index), reason: "cut".into() });
        }
        let pixel = |i: usize| (60 * (index % 3) + (i * (index + 13) * 7) % 50) as u8;
        Ok(Image::new(16, 16, channels, (0..256 * channels).map(pixel).collect()))
    }

    fn stored_bytes(&self, _: usize) -> u64 {
        256
    }
}

fn name(index: usize) -> String {
    format!("{index}.png")
}

fn squares(count: usize, broken: bool) -> Dataset {
    let sample = |index| Sample { name: name(index), label: Some((index % 3) as u32) };
    let classes = ["a", "b", "c"].map(String::from).to_vec();
    Dataset::from_source((0..count).map(sample).collect(), classes, 3, Box::new(Squares { broken }))
}

fn config(encoder: &str) -> RunConfig {
    let overrides =
        [format!("encoder.name=\"{encoder}\""), "train.image_size=16".into(), "train.device=\"cpu\"".into()];
    RunConfig::load(None, &overrides).unwrap()
}

fn options(frozen: &FrozenEncoder) -> ReadOptions {
    ReadOptions::of(frozen, 16, 2)
}

/// Every parameter and buffer, byte for byte.
fn bytes(frozen: &FrozenEncoder) -> Vec<(String, Vec<u8>)> {
    let of = |tensor: &Tensor| {
        let tensor = tensor.contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    frozen.model().params.named().map(|(name, tensor)| (name.to_owned(), of(tensor))).collect()
}

#[test]
fn evaluation_changes_no_byte() {
    for encoder in ["resnet18", "conv-c3"] {
        let frozen = random(encoder, 1);
        let before = bytes(&frozen);
        assert!(before.iter().any(|(name, _)| name.ends_with("running_var")), "{encoder} has batch norm");
        let set = squares(60, false);
        let indices: Vec<usize> = (0..60).collect();
        let h = features(&frozen, &set, &indices, &options(&frozen), &mut |_, _| {}).unwrap();
        let h = &h.features[0];
        let labels: Vec<i64> = (0..60).map(|i| i % 3).collect();
        let labels = label_tensor(&labels, &indices);
        let _ = knn_predict(h, &labels, h, 3, 5, Some(0.1));
        let _ = precision_at_k(h, &labels, h, &labels, 5);
        fit(h, &labels, 3, &LinearOptions::default());
        assert!(bytes(&frozen) == before, "{encoder} was changed");
        assert!(!h.requires_grad());
    }
}

/// What the test above rests on: a single batch through the encoder as in training is seen, in statistics alone.
#[test]
fn a_changed_statistic_is_detected() {
    let frozen = random("conv-c3", 1);
    let (before, fingerprint) = (bytes(&frozen), frozen.fingerprint());
    let other = random("conv-c3", 1);
    assert!(!frozen.differs(other.model()));
    let images = Tensor::rand([4, 3, 16, 16], (Kind::Float, Device::Cpu));
    let _ = tch::no_grad(|| frozen.model().forward(&images, &Mode::train())).unwrap();
    let changed: Vec<_> = before.iter().zip(bytes(&frozen)).filter(|(was, is)| **was != *is).collect();
    assert!(!changed.is_empty() && changed.iter().all(|(was, _)| was.0.contains("running_")));
    assert!(frozen.fingerprint() != fingerprint && frozen.differs(other.model()));
}

#[test]
fn features_do_not_depend_on_the_batch() {
    let frozen = random("conv-c3", 1);
    let set = squares(40, false);
    let indices: Vec<usize> = (0..40).collect();
    let read = |batch| {
        let options = ReadOptions { batch, ..options(&frozen) };
        features(&frozen, &set, &indices, &options, &mut |_, _| {}).unwrap().features.remove(0)
    };
    let difference = (read(40) - read(7)).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "batch norm must use running statistics: {difference}");
}

#[test]
fn bad_images_are_left_out_and_too_many_are_an_error() {
    let frozen = random("conv-c3", 1);
    let set = squares(20, true);
    let indices: Vec<usize> = (0..20).collect();
    let mut last = (0, 0);
    let tolerant = ReadOptions { max_bad_share: 0.01, ..options(&frozen) };
    let read = raw_pixels(&set, &indices, &tolerant, &mut |done, of| last = (done, of)).unwrap();
    assert_eq!(read.features[0].size(), [19, 3 * 16 * 16]);
    assert_eq!((read.indices.len(), read.bad.len(), read.bad[0].name.as_str()), (19, 1, "7.png"));
    assert!(!read.indices.contains(&7));
    assert_eq!(last, (20, 20));
    let strict = ReadOptions { max_bad_share: 0.0, ..options(&frozen) };
    let error = raw_pixels(&set, &indices, &strict, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("7.png") && error.contains("more than the 0 "), "{error}");
}

#[test]
fn raw_pixels_of_large_images_are_averaged_down() {
    let pixels = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
    let flat = simclr::eval::features::flat_pixels(&pixels);
    assert_eq!(flat.size(), [2, 3 * 32 * 32]);
    let mean = pixels.narrow(2, 0, 2).narrow(3, 0, 2).mean_dim([2, 3].as_slice(), false, Kind::Float);
    let difference =
        (flat.view([2, 3, 32, 32]).select(2, 0).select(2, 0) - mean).abs().max().double_value(&[]);
    assert!(difference < 1e-6);
}

#[test]
fn random_init_depends_on_the_seed_alone() {
    let of = |seed| bytes(&random("conv-c3", seed));
    assert!(of(1) == of(1));
    assert!(of(1) != of(2));
}
