//! Seven steps against PyTorch in f64 (`reference/moco.py`): losses, both networks, queue and pointer.

use std::path::PathBuf;

use simclr::params::Role;

use super::*;

const STEPS: u64 = 7;
const IMAGES: i64 = 6;

/// `wave` of `reference/moco.py`.
fn wave(shape: &[i64], phase: f64, scale: f64) -> Tensor {
    let values = (0..shape.iter().product::<i64>()).map(|i| i as f64);
    let values = values.map(|i| scale * (phase + 0.7 * i + (0.013 * i * i) % 17.0).sin());
    Tensor::from_slice(&values.collect::<Vec<f64>>()).view(shape).to_kind(Kind::Float)
}

fn filled(config: &RunConfig) -> Model {
    let model = model(config);
    for (number, param) in model.params.params().iter().enumerate() {
        let (shape, phase) = (param.tensor.size(), 0.1 * number as f64);
        let fan_in = (param.tensor.numel() as i64 / shape[0]) as f64;
        let value = match param.role {
            Role::Weight | Role::Classifier => wave(&shape, phase, (2.0 / fan_in).sqrt()),
            Role::NormScale => wave(&shape, phase, 0.2) + 1.0,
            Role::Bias | Role::NormShift => wave(&shape, phase, 0.1),
        };
        tch::no_grad(|| param.tensor.shallow_clone().copy_(&value));
    }
    model
}

#[test]
fn training_follows_the_reference() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/moco.safetensors");
    let golden = Tensor::read_safetensors(path).unwrap();
    for (case, set) in [
        ("v1", &["head.kind=linear"][..]),
        ("v2", &["head.layers=2"]),
        ("symmetric", &["head.kind=linear", "moco.symmetric=true"]),
    ] {
        let base = [
            "encoder.width=0.125",
            "head.norm=none",
            "moco.queue=24",
            "loss.temperature=0.2",
            "train.batch=6",
        ];
        let config = config(&[&base[..], set, &["optim.weight_decay=1e-4", "optim.decay=all"]].concat());
        let (losses, state) = steps(&config);
        let expected = |name: &str| {
            let name = format!("{case}.{name}");
            &golden.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no golden {name}")).1
        };
        let reference = Vec::<f64>::try_from(expected("losses")).unwrap();
        for (step, (found, expected)) in losses.iter().zip(&reference).enumerate() {
            assert!((found / expected - 1.0).abs() < 1e-4, "{case}, step {step}: {found} {expected}");
        }
        assert!(state.len() > 20);
        for (name, tensor) in &state {
            let distance = relative(&tensor.to_kind(Kind::Double), &expected(name).to_kind(Kind::Double));
            assert!(distance < 1e-3, "{case}: {name} is {distance:e} away");
        }
    }
}

/// Losses, and weights, running statistics and state after the last step.
fn steps(config: &RunConfig) -> (Vec<f64>, Vec<(String, Tensor)>) {
    let online = filled(config);
    let encoder = MomentumEncoder::new(model(config), &online, Momentum::new(&config.moco, STEPS));
    let mut method = Moco::new(online, encoder, &config.moco, config.loss.temperature, 0);
    let mut values = method.state();
    for (name, tensor) in &mut values {
        *tensor = if name == "moco.queue" { l2_normalize(&wave(&[24, 8], 3.0, 1.0)) } else { tensor.copy() };
    }
    let get =
        |name: &str, _: &[i64]| Ok(values.iter().find(|(found, _)| found == name).unwrap().1.shallow_clone());
    method.load_state(&get).unwrap();
    let mut optimizer = Optimizer::new(&config.optim, method.params());
    let group = ProcessGroup::alone();
    let gradients = GradientBuckets::new(method.params(), &group);
    let norm = NormConfig { scope: BatchNormScope::Global, momentum: MOMENTUM, groups: 1 };
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let view = |view: i32| {
            wave(&[IMAGES, 3, SIZE as i64, SIZE as i64], 0.3 + step as f64 + 0.05 * f64::from(view), 0.5)
                + 0.5
        };
        let mut views = batches(step, IMAGES as usize, None).remove(0);
        views.views = Vec::<f32>::try_from(Tensor::cat(&[view(0), view(1)], 0).view(-1)).unwrap().into();
        let mut views = std::iter::once(Ok(DeviceBatch::on_host(views, 3, Device::Cpu)));
        let context = StepContext { method: &method, norm, group: &group, gradients: &gradients, seed: 0 };
        let id = StepId { step, lr: 0.05 };
        let output = executor(&context, None, false).step(&context, &mut optimizer, id, &mut views).unwrap();
        method.after_step(step, &output.z, &BatchShards::new(&group, output.counts.clone()));
        losses.push(output.loss);
    }
    let named = method.params().named().map(|(name, tensor)| (name.to_owned(), tensor.detach()));
    (losses, named.chain(method.state()).collect())
}
