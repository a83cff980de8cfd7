//! Ten steps of every update rule against PyTorch and explicit formulas (`reference/optim.py`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use simclr::{
    ModelError,
    data::rng::Key,
    device::{DeviceChoice, choose_device},
    optim::{Decay, LarsNorm, OptimConfig, OptimKind, Optimizer, gradient_norm, kernels_available},
    params::{Params, Role},
};
use simclr_shim::gpu::{Order, emulated};
use tch::{Device, Kind, Tensor};

const STEPS: i64 = 10;
const PARAMS: [(&str, &[i64], Role); 4] = [
    ("kernel", &[4, 3], Role::Weight),
    ("zero_kernel", &[2, 2], Role::Weight),
    ("bias", &[5], Role::Bias),
    ("scale", &[6], Role::NormScale),
];

fn wave(shape: &[i64], phase: f64, scale: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|i| scale * (phase + 0.7 * i as f64).sin()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(Kind::Float)
}

fn start() -> Params {
    start_on(Device::Cpu)
}

fn start_on(device: Device) -> Params {
    let mut params = Params::new(device, 0);
    for (name, shape, role) in PARAMS {
        let scale = if name == "zero_kernel" { 0.0 } else { 1.0 };
        let _ = params.add(name, role, wave(shape, 0.2, scale));
    }
    params
}

/// Sets the gradient of `param` through autograd: d(sum(w g)) / dw = g.
fn set_gradient(param: &Tensor, gradient: &Tensor) {
    (param * gradient.to_device(param.device())).sum(Kind::Float).backward();
}

/// `step` by ATen operations, or by emulated GPU kernels.
type Step = fn(&mut Optimizer, &Params, f64) -> Result<(), ModelError>;

fn on_gpu(optimizer: &mut Optimizer, params: &Params, lr: f64) -> Result<(), ModelError> {
    emulated(Order::Rising, || optimizer.step(params, lr))
}

fn on_gpu_falling(optimizer: &mut Optimizer, params: &Params, lr: f64) -> Result<(), ModelError> {
    emulated(Order::Falling, || optimizer.step(params, lr))
}

fn run(config: &OptimConfig, steps: i64, step_once: Step) -> Params {
    run_on(Device::Cpu, config, steps, step_once)
}

fn run_on(device: Device, config: &OptimConfig, steps: i64, step_once: Step) -> Params {
    let params = start_on(device);
    let mut optimizer = Optimizer::new(config, &params);
    for step in 0..steps {
        for (param, (name, shape, _)) in params.params().iter().zip(PARAMS) {
            set_gradient(&param.tensor, &wave(shape, 0.5 + step as f64 + name.len() as f64, 0.4));
        }
        step_once(&mut optimizer, &params, 0.3 * (1 + step) as f64 / STEPS as f64).unwrap();
    }
    params
}

fn base(kind: OptimKind) -> OptimConfig {
    OptimConfig {
        kind,
        weight_decay: 1e-2,
        lr_in_momentum: kind == OptimKind::Lars,
        ..OptimConfig::default()
    }
}

#[test]
fn ten_steps_of_every_rule() {
    for step_once in [Optimizer::step as Step, Optimizer::step_via_aten, on_gpu, on_gpu_falling] {
        ten_steps(Device::Cpu, step_once);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn ten_steps_of_every_rule_on_a_gpu() {
    let device = choose_device(DeviceChoice::Cuda, 0).unwrap();
    assert!(kernels_available(&start_on(device)));
    for step_once in [Optimizer::step as Step, Optimizer::step_via_aten] {
        ten_steps(device, step_once);
    }
}

fn ten_steps(device: Device, step_once: Step) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/optim.safetensors");
    let golden = Tensor::read_safetensors(path).unwrap();
    let lars = || base(OptimKind::Lars);
    for (run_name, config) in [
        ("lars", lars()),
        ("lars_separate", OptimConfig { lars_norm: LarsNorm::Separate, ..lars() }),
        ("lars_outside", OptimConfig { lr_in_momentum: false, ..lars() }),
        ("lars_nesterov", OptimConfig { nesterov: true, ..lars() }),
        ("lars_no_decay", OptimConfig { weight_decay: 0.0, ..lars() }),
        ("sgd", base(OptimKind::Sgd)),
        ("sgd_nesterov", OptimConfig { nesterov: true, ..base(OptimKind::Sgd) }),
        ("adamw", base(OptimKind::Adamw)),
        ("lamb", base(OptimKind::Lamb)),
        ("lamb_uncorrected", OptimConfig { lamb_bias_correction: false, ..base(OptimKind::Lamb) }),
        ("sgd_decay_all", OptimConfig { decay: Decay::All, ..base(OptimKind::Sgd) }),
        ("muon", OptimConfig { momentum: 0.95, nesterov: true, ..base(OptimKind::Muon) }),
        ("muon_plain", OptimConfig { momentum: 0.95, ..base(OptimKind::Muon) }),
    ] {
        for param in run_on(device, &config, STEPS, step_once).params() {
            let name = format!("{run_name}.{}", param.name);
            let expected = &golden.iter().find(|(found, _)| *found == name).unwrap().1;
            let found = param.tensor.to_kind(Kind::Double).to_device(Device::Cpu);
            let difference = (found - expected).abs().max().double_value(&[]);
            // Values of order 1 after ten f32 updates. Muon amplifies rounding in the null space of a gradient by 3.4445^5, and computes
            // in bf16 on a GPU.
            let tolerance = match config.kind {
                OptimKind::Muon if device.is_cuda() => 0.1,
                OptimKind::Muon => 2e-4,
                _ => 5e-6,
            };
            assert!(difference < tolerance, "{name}: {difference}");
        }
    }
}

/// The official optimizer and loss on variables under the official names, `head_supervised` among them: the classifier's weight is
/// decayed (by the loss) and not adapted, its bias neither (`reference/official_optim.py`).
#[test]
fn ten_steps_of_lars_with_a_classifier_match_the_official_code() {
    for step_once in [Optimizer::step as Step, Optimizer::step_via_aten, on_gpu, on_gpu_falling] {
        official_lars(step_once);
    }
}

fn official_lars(step_once: Step) {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/official_lars.json")).unwrap();
    let mut params = Params::new(Device::Cpu, 0);
    for param in golden["params"].as_array().unwrap() {
        let name = param["name"].as_str().unwrap();
        let shape: Vec<i64> = serde_json::from_value(param["shape"].clone()).unwrap();
        let start = param["start_phase"].as_f64();
        let role = match param["role"].as_str().unwrap() {
            "kernel" if name.starts_with("head_supervised") => Role::Classifier,
            "kernel" => Role::Weight,
            "bias" => Role::Bias,
            "norm_scale" => Role::NormScale,
            _ => Role::NormShift,
        };
        let _ = params.add(
            name,
            role,
            wave(&shape, start.unwrap_or(0.0), if start.is_some() { 1.0 } else { 0.0 }),
        );
    }
    let config = OptimConfig {
        weight_decay: golden["weight_decay"].as_f64().unwrap(),
        momentum: golden["momentum"].as_f64().unwrap(),
        ..OptimConfig::default()
    };
    let mut optimizer = Optimizer::new(&config, &params);
    for (step, lr) in golden["lr"].as_array().unwrap().iter().enumerate() {
        for (at, param) in params.params().iter().enumerate() {
            let phase = 0.5 + step as f64 + at as f64;
            set_gradient(&param.tensor, &wave(&param.tensor.size(), phase, 0.4));
        }
        step_once(&mut optimizer, &params, lr.as_f64().unwrap()).unwrap();
        for param in params.params() {
            let expected = &golden["with_loss_decay"][step][&param.name];
            let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
            let found = param.tensor.to_kind(Kind::Double).view([-1]);
            let difference = (found - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
            assert!(difference < 2e-6, "step {step}, {}: {difference}", param.name);
        }
    }
}

/// eeta |w| / |g + wd w| of each adapted parameter, 1 for the zero weight.
#[test]
fn trust_ratio_range_matches_the_formula() {
    for step_once in [Optimizer::step as Step, Optimizer::step_via_aten, on_gpu, on_gpu_falling] {
        let (params, config) = (start(), base(OptimKind::Lars));
        let mut optimizer = Optimizer::new(&config, &params);
        assert_eq!(optimizer.trust_ratio_range(), None, "no step was made");
        let mut expected = Vec::new();
        for (param, (name, shape, role)) in params.params().iter().zip(PARAMS) {
            let gradient = wave(shape, 0.5 + name.len() as f64, 0.4);
            let norm = |tensor: Tensor| tensor.to_kind(Kind::Double).norm().double_value(&[]);
            let weight = norm(param.tensor.detach());
            if role == Role::Weight {
                let decayed = norm(&gradient + param.tensor.detach() * config.weight_decay);
                expected.push(if weight > 0.0 {
                    config.lars_trust_coefficient * weight / decayed
                } else {
                    1.0
                });
            }
            set_gradient(&param.tensor, &gradient);
        }
        step_once(&mut optimizer, &params, 0.1).unwrap();
        let [least, most] = optimizer.trust_ratio_range().unwrap();
        expected.sort_by(f64::total_cmp);
        assert!((least / expected[0] - 1.0).abs() < 1e-5, "{least}, expected {expected:?}");
        assert!((most / expected[expected.len() - 1] - 1.0).abs() < 1e-5, "{most}, expected {expected:?}");
    }
    let mut sgd = Optimizer::new(&base(OptimKind::Sgd), &start());
    sgd.step(&start(), 0.1).unwrap();
    assert_eq!(sgd.trust_ratio_range(), None, "SGD has no trust ratio");
}

/// Without a gradient signal a step moves exactly the parameters that decay.
#[test]
fn weight_decay_applies_to_the_groups_of_optim_decay() {
    let all = [Role::Weight, Role::Classifier, Role::Bias, Role::NormScale, Role::NormShift];
    for (decay, expected) in [(Decay::Weights, 2), (Decay::WeightsAndBiases, 3), (Decay::All, 5)] {
        for kind in [OptimKind::Sgd, OptimKind::Lars, OptimKind::Adamw, OptimKind::Lamb, OptimKind::Muon] {
            for step_once in [Optimizer::step as Step, Optimizer::step_via_aten, on_gpu] {
                let mut params = Params::new(Device::Cpu, 0);
                for role in all {
                    let _ = params.add(format!("{role:?}"), role, wave(&[2, 3], 0.4, 1.0));
                }
                let mut optimizer = Optimizer::new(&OptimConfig { decay, ..base(kind) }, &params);
                for param in params.params() {
                    set_gradient(&param.tensor, &Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
                }
                step_once(&mut optimizer, &params, 0.5).unwrap();
                let moved = |param: &&simclr::params::Param| param.tensor.detach() != wave(&[2, 3], 0.4, 1.0);
                let found: Vec<Role> = params.params().iter().filter(moved).map(|param| param.role).collect();
                assert_eq!(found, all[..expected], "{kind:?} {decay:?}");
            }
        }
    }
}

/// Spec 6.1: w = (3, 4), g = (.6, .8), v = (.01, -.02), lr 1, decay 1e-4, momentum .9, trust 1e-3.
#[test]
fn published_step_of_lars() {
    for (role, expected_v, expected_w) in
        [(Role::Weight, [0.012, -0.014], [2.988, 4.014]), (Role::NormShift, [0.609, 0.782], [2.391, 3.218])]
    {
        let mut params = Params::new(Device::Cpu, 0);
        let _ = params.add("w", role, Tensor::from_slice(&[3.0f32, 4.0]));
        let config = OptimConfig { weight_decay: 1e-4, ..OptimConfig::default() };
        let mut optimizer = Optimizer::new(&config, &params);
        optimizer
            .load_state(&|name, _| {
                let v = Tensor::from_slice(&[0.01f32, -0.02]);
                Ok(if name == "optim.steps" { Tensor::from_slice(&[3i64]) } else { v })
            })
            .unwrap();
        set_gradient(&params.params()[0].tensor, &Tensor::from_slice(&[0.6f32, 0.8]));
        optimizer.step(&params, 1.0).unwrap();
        let near = |tensor: &Tensor, expected: [f64; 2]| {
            let found = [0, 1].map(|at| tensor.double_value(&[at]));
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
                "{role:?}: {found:?} {expected:?}"
            );
        };
        let state = optimizer.state();
        near(&state.iter().find(|(name, _)| name == "optim.first.w").unwrap().1, expected_v);
        near(&params.params()[0].tensor, expected_w);
    }
}

/// Four steps, then the rest from the saved state, against an uninterrupted run.
#[test]
fn resume_from_saved_state_is_bit_exact() {
    for kind in [OptimKind::Lars, OptimKind::Adamw, OptimKind::Muon] {
        let config = base(kind);
        let params = start();
        let mut optimizer = Optimizer::new(&config, &params);
        for step in 0..STEPS {
            if step == 4 {
                let saved = optimizer.state();
                optimizer = Optimizer::new(&config, &params);
                let get = |name: &str| saved.iter().find(|(found, _)| found == name).unwrap().1.copy();
                optimizer.load_state(&|name, _| Ok(get(name))).unwrap();
            }
            for (param, (name, shape, _)) in params.params().iter().zip(PARAMS) {
                set_gradient(&param.tensor, &wave(shape, 0.5 + step as f64 + name.len() as f64, 0.4));
            }
            optimizer.step(&params, 0.3 * (1 + step) as f64 / STEPS as f64).unwrap();
        }
        for (resumed, whole) in params.params().iter().zip(run(&config, STEPS, Optimizer::step).params()) {
            assert_eq!(resumed.tensor, whole.tensor, "{kind:?} {}", whole.name);
        }
    }
}

#[test]
fn gradients_are_cleared_and_missing_ones_leave_the_weight() {
    let params = start();
    let mut optimizer = Optimizer::new(&base(OptimKind::Sgd), &params);
    let before = params.params()[1].tensor.copy();
    set_gradient(&params.params()[0].tensor, &Tensor::ones([4, 3], (Kind::Float, Device::Cpu)));
    optimizer.step(&params, 0.1).unwrap();
    assert_eq!(params.params()[1].tensor, before);
    let moved = params.params()[0].tensor.copy();
    let gradient = params.params()[0].tensor.grad();
    assert!(!gradient.defined() || gradient.abs().sum(Kind::Float).double_value(&[]) == 0.0);
    assert_ne!(moved, start().params()[0].tensor);
}

/// Tensors larger than one block, in both memory layouts, with a gradient in the other one: GPU kernels and ATen operations
/// agree, and results are bit-identical for any number of threads.
#[test]
fn large_tensors_in_any_memory_layout() {
    let build = || {
        let mut params = Params::new(Device::Cpu, 0);
        let normals = |n| Tensor::from_slice(&Key::weights(5, 0).stream().normals(n));
        let kernel = normals(96 * 90 * 9).view([96, 90, 3, 3]);
        let _ = params.add("plain", Role::Weight, kernel.copy());
        let _ = params.add("channels_last", Role::Weight, simclr::device::channels_last(&kernel));
        let _ = params.add(
            "one",
            Role::Weight,
            simclr::device::channels_last(&kernel.narrow(2, 0, 1).narrow(3, 0, 1)),
        );
        let _ = params.add("odd", Role::Bias, normals(70_001));
        params
    };
    let train = |config: &OptimConfig, step_once: Step| {
        let params = build();
        let mut optimizer = Optimizer::new(config, &params);
        for step in 0..3 {
            for param in params.params() {
                let wave = (param.tensor.detach().contiguous() * (2.0 + f64::from(step))).sin();
                set_gradient(&param.tensor, &wave);
            }
            let sum =
                params.params().iter().map(|p| p.tensor.grad().square().sum(Kind::Double).double_value(&[]));
            let norm = sum.sum::<f64>().sqrt();
            assert!((gradient_norm(&params).unwrap() / norm - 1.0).abs() < 1e-6);
            step_once(&mut optimizer, &params, 0.02).unwrap();
            assert_eq!(gradient_norm(&params).unwrap(), 0.0, "dropped");
        }
        params
    };
    let threads = tch::get_num_threads();
    for kind in [OptimKind::Lars, OptimKind::Sgd, OptimKind::Adamw, OptimKind::Lamb] {
        let config = base(kind);
        let [one, two] = [1, 2].map(|threads| {
            tch::set_num_threads(threads);
            train(&config, Optimizer::step)
        });
        for (one, two) in one.params().iter().zip(two.params()) {
            assert_eq!(one.tensor, two.tensor, "{kind:?} {}", one.name);
        }
        let [rising, falling] = [on_gpu as Step, on_gpu_falling].map(|step| train(&config, step));
        for (rising, falling) in rising.params().iter().zip(falling.params()) {
            assert_eq!(rising.tensor, falling.tensor, "{kind:?} {}: order of threads", rising.name);
        }
        for others in [train(&config, Optimizer::step_via_aten), rising] {
            for (one, other) in one.params().iter().zip(others.params()) {
                let off = (&one.tensor - &other.tensor).abs().max().double_value(&[]);
                assert!(off < 2e-6, "{kind:?} {}: {off}", one.name);
            }
        }
    }
    tch::set_num_threads(threads);
}

/// A launch takes 72 parameters, so 150 need three launches.
#[test]
fn many_parameters_take_several_launches() {
    for kind in [OptimKind::Lars, OptimKind::Lamb] {
        let config = base(kind);
        let [cpu, gpu] = [Optimizer::step as Step, on_gpu].map(|step_once| {
            let mut params = Params::new(Device::Cpu, 0);
            for i in 0..150 {
                let values = wave(&[1 + i % 7, 3], i as f64, 1.0);
                let _ =
                    params.add(format!("{i}"), if i % 3 == 0 { Role::Bias } else { Role::Weight }, values);
            }
            let mut optimizer = Optimizer::new(&config, &params);
            for param in params.params() {
                set_gradient(&param.tensor, &(&param.tensor.detach() * 3.0 + 0.1).cos());
            }
            let norm = emulated(Order::Rising, || gradient_norm(&params)).unwrap();
            assert!((norm / gradient_norm(&params).unwrap() - 1.0).abs() < 1e-6);
            step_once(&mut optimizer, &params, 0.1).unwrap();
            params
        });
        for (cpu, gpu) in cpu.params().iter().zip(gpu.params()) {
            let off = (&cpu.tensor - &gpu.tensor).abs().sum(Kind::Double).double_value(&[]);
            assert!(off < 1e-6, "{kind:?} {}: {off}", cpu.name);
        }
    }
}

/// A captured step cannot check on the host whether its gradient is finite.
#[test]
fn non_finite_guard_skips_the_update() {
    for kind in [OptimKind::Lars, OptimKind::Sgd, OptimKind::Adamw, OptimKind::Lamb] {
        for (guard, moves) in [(f64::NAN, false), (f64::INFINITY, false), (1e300, true)] {
            let params = start();
            let mut optimizer = Optimizer::new(&base(kind), &params);
            for param in params.params() {
                set_gradient(&param.tensor, &param.tensor.ones_like());
            }
            let guard = Tensor::from_slice(&[guard]);
            emulated(Order::Rising, || {
                optimizer.set_step_scalars(&params, 0.1).unwrap();
                optimizer.launch_step(&params, Some(&guard)).unwrap();
            });
            for (param, fresh) in params.params().iter().zip(start().params()) {
                assert_eq!(param.tensor != fresh.tensor, moves, "{kind:?} {} {guard}", param.name);
                assert!(!param.tensor.grad().defined());
            }
            let moments = optimizer.state();
            let still =
                moments.iter().skip(1).all(|(_, m)| m.abs().sum(Kind::Double).double_value(&[]) == 0.0);
            assert_eq!(still, !moves, "{kind:?}: the optimizer's state");
        }
    }
}

#[test]
fn group_table_lists_exclusions() {
    let params = start();
    let optimizer = Optimizer::new(&base(OptimKind::Lars), &params);
    let table = optimizer.group_table();
    let line = |start: &str| {
        table
            .lines()
            .find(|line| line.starts_with(start))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(line("weights"), "weights 2 16 1e-2 layer-wise");
    assert_eq!(line("biases"), "biases 1 5 0e0 no");
    assert_eq!(line("batch-norm"), "batch-norm scale, shift 1 6 0e0 no");
}
