//! Vision transformers against timm (reference/vit.py), their sizes, and training with frozen patches.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::collections::HashMap;

use simclr::{
    device::Precision,
    encoder::{Encoder, EncoderConfig, EncoderName, Mode, Positions},
    head::HeadConfig,
    losses::{LossConfig, contrastive_loss},
    model::Model,
    optim::{OptimConfig, OptimKind, Optimizer},
    params::{Params, load_weights},
};
use tch::{Device, Kind, Tensor};

fn golden() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/vit.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// vit-tiny with a quarter of its width.
fn small(positions: Positions, freeze_patches: bool) -> EncoderConfig {
    EncoderConfig {
        name: EncoderName::VitTiny,
        width: 0.25,
        patch: 8,
        positions,
        freeze_patches,
        ..EncoderConfig::default()
    }
}

#[test]
fn features_equal_those_of_timm() {
    let golden = golden();
    let mut params = Params::new(Device::Cpu, 0);
    let encoder = Encoder::new(&small(Positions::Learned, false), 3, 32, &mut params).unwrap();
    let names = golden.keys().filter(|name| name.starts_with("weights."));
    assert_eq!(names.count(), params.named().count());
    load_weights(params.named(), |name, shape| {
        let stored = &golden[&format!("weights.{}", name.strip_prefix("encoder.").unwrap())];
        assert_eq!(stored.size(), shape, "{name}");
        Ok::<_, ()>(stored.to_kind(Kind::Float))
    })
    .unwrap();
    let h = encoder.forward(&golden["images"], &Mode::Eval, Precision::F32).unwrap();
    let difference = (&h - &golden["h"]).abs().max().double_value(&[]);
    assert!(h.std(true).double_value(&[]) > 0.1 && difference < 1e-4, "{difference}");
}

/// Parameters of timm's models without classifier.
#[test]
fn sizes_are_those_of_timm() {
    for (name, expected) in [
        (EncoderName::VitTiny, 5_524_416),
        (EncoderName::VitSmall, 21_665_664),
        (EncoderName::VitBase, 85_798_656),
    ] {
        let mut params = Params::new(Device::Cpu, 0);
        let config = EncoderConfig { name, ..EncoderConfig::default() };
        Encoder::new(&config, 3, 224, &mut params).unwrap();
        let found: usize = params.params().iter().map(|param| param.tensor.numel()).sum();
        assert_eq!(found, expected, "{name:?}");
    }
}

#[test]
fn fixed_positions_equal_moco_v3() {
    let mut params = Params::new(Device::Cpu, 0);
    Encoder::new(&small(Positions::Fixed, true), 3, 32, &mut params).unwrap();
    let found = params.frozen().iter().find(|(name, _)| name == "encoder.pos_embed").unwrap();
    let difference = (&found.1 - &golden()["sines"]).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn patches_that_do_not_fit_are_refused() {
    let mut params = Params::new(Device::Cpu, 0);
    let error = Encoder::new(&small(Positions::Fixed, true), 3, 36, &mut params).unwrap_err().to_string();
    assert!(error.contains("encoder.patch") && error.contains("36"), "{error}");
}

/// MoCo v3's recipe in miniature: AdamW, frozen patches, bf16 as on a GPU. The loss falls and the patches stay.
#[test]
fn a_transformer_learns_with_frozen_patches() {
    let config = small(Positions::Fixed, true);
    for precision in [Precision::F32, Precision::Bf16] {
        let model = Model::new(&config, &HeadConfig::default(), (3, 32), 0, Device::Cpu, precision).unwrap();
        let before: Vec<Tensor> = model.params.frozen().iter().map(|(_, tensor)| tensor.copy()).collect();
        let optim = OptimConfig { kind: OptimKind::Adamw, ..OptimConfig::default() };
        let mut optimizer = Optimizer::new(&optim, &model.params);
        let loss_config = LossConfig { temperature: 0.2, ..LossConfig::default() };
        let draws = |image| simclr::data::rng::Key::weights(5, image).stream().normals(16 * 3 * 32 * 32);
        let images = Tensor::from_slice(&draws(0)).view([16, 3, 32, 32]);
        let mut losses = Vec::new();
        for step in 1..=12 {
            let noise = Tensor::from_slice(&[draws(step), draws(100 + step)].concat()).view([32, 3, 32, 32]);
            let views = images.repeat([2, 1, 1, 1]) + noise * 0.5;
            let (_, z) = model.forward(&views, &Mode::train()).unwrap();
            let loss = contrastive_loss(&z, &loss_config).loss;
            loss.backward();
            optimizer.step(&model.params, 2e-3).unwrap();
            losses.push(loss.double_value(&[]));
        }
        assert!(losses[11] < losses[0] - 0.3, "{precision:?}: {losses:?}");
        assert_eq!(before.len(), 3);
        for (before, (name, after)) in before.iter().zip(model.params.frozen()) {
            assert_eq!(before, after, "{name}");
        }
    }
}
