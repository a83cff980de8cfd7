//! Batch norm against the formula in f64, its derivatives, and a batch split over participants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod case;
mod participants;

use std::sync::{Arc, Mutex, PoisonError};

use case::{Case, EPSILON, Found, MOMENTUM, WAYS, Way, channels_last, close, compare, seeded, variants};
use participants::{joined, run_parts};
use simclr_shim::{
    BatchNorm, Cuda, Statistics, Sum,
    gpu::{Order, prepare},
    instructions, load_cuda, use_instructions,
};
use tch::{Device, Kind, Tensor};

#[test]
fn every_variant_matches_the_formula_in_f64() {
    for case in variants() {
        for way in WAYS {
            let found = case.run(way, (0, case.rows()), MOMENTUM, None);
            compare(&format!("{} {way:?}", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
}

/// Kernels sum the gradients of two consumers of an output in f32, libtorch in the dtype of the output.
#[test]
fn an_output_may_have_two_consumers() {
    for case in variants().into_iter().map(Case::with_branch) {
        for way in WAYS {
            let by_kernels = case.relu && case.residual.is_some() && !matches!(way, Way::ViaAten);
            let (values, vectors) = case.tolerances();
            let rounded = case.kind == Kind::BFloat16 && !by_kernels;
            let tolerances = if rounded { (6e-3, 6e-3) } else { (values, vectors) };
            let found = case.run(way, (0, case.rows()), MOMENTUM, None);
            compare(&format!("{} {way:?}", case.name()), &found, &case.oracle(), tolerances);
        }
    }
}

/// The kernels on a GPU; without all-reduce, and with one over a single participant.
#[test]
#[ignore = "needs a GPU"]
fn on_a_gpu_every_variant_matches_the_formula_in_f64() {
    assert_eq!(load_cuda(), Cuda::Loaded);
    prepare(&Tensor::zeros([1], (Kind::Float, Device::Cuda(0)))).unwrap();
    for case in variants() {
        let alone: Sum = Arc::new(|_: &Tensor| {});
        for all_reduce in [None, Some(alone)] {
            let found = case.run(Way::OnGpu, (0, case.rows()), MOMENTUM, all_reduce);
            compare(&format!("{} on a GPU", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
}

/// Held by tests that switch the kernels or compare bits.
static INSTRUCTIONS: Mutex<()> = Mutex::new(());

/// Every build of the kernels that this machine can run.
#[test]
fn every_instruction_set_matches_the_formula_in_f64() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let best = instructions();
    let sets: Vec<_> =
        ["baseline", "avx2", "avx512"].into_iter().filter(|set| use_instructions(set).is_ok()).collect();
    assert!(sets.contains(&"baseline") && sets.last() == Some(&best.as_str()), "{best} of {sets:?}");
    for set in sets {
        use_instructions(set).unwrap();
        assert_eq!(instructions(), set);
        for case in variants() {
            let found = case.run(Way::Fused, (0, case.rows()), MOMENTUM, None);
            compare(&format!("{} {set}", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
    assert!(use_instructions("mmx").unwrap_err().to_string().contains("mmx"));
}

#[test]
fn gradients_match_finite_differences() {
    for case in variants() {
        let found = case.run(Way::Fused, (0, case.rows()), MOMENTUM, None);
        let along = {
            let _guard = seeded(17);
            [&case.x, &case.x, &case.scale, &case.shift].map(Tensor::randn_like)
        };
        let slopes = case.slopes([0, 1, 2, 3].map(|at| &along[at]));
        let gradients =
            [Some(&found.dx), found.d_residual.as_ref(), Some(&found.d_scale), Some(&found.d_shift)];
        for (at, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let product = gradient * &along[at];
            let slope = product.sum(Kind::Double).double_value(&[]);
            // Rounding errors of a sum of n products are of the order of the products' norm.
            let scale = product.square().sum(Kind::Double).sqrt().double_value(&[]) + slope.abs();
            let tolerance = if case.kind == Kind::BFloat16 && at < 2 { 1e-2 } else { 1e-5 };
            let off = (slope - slopes[at]).abs() / scale;
            assert!(off < tolerance, "{} input {at}: {slope} but the slope is {}", case.name(), slopes[at]);
        }
    }
}

/// Parts of a batch that all-reduce their statistics give the results of the whole batch.
#[test]
fn participants_of_an_all_reduce_form_one_batch() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    for case in variants() {
        let third = case.rows() / 3;
        for (way, parts) in [
            (Way::Fused, vec![case.rows() - third, third]),
            (Way::Fused, vec![1, case.rows() - third - 1, third]),
            (Way::Emulated(Order::Rising), vec![1, case.rows() - third - 1, third]),
            (Way::ViaAten, vec![case.rows() - third, third]),
        ] {
            let (found, calls) = run_parts(&case, way, &parts);
            assert_eq!(calls, 3 * parts.len(), "two all-reduces forward and one backward per participant");
            let name = format!("{} {way:?} in parts of {parts:?}", case.name());
            compare(&name, &joined(&found), &case.oracle(), case.tolerances());
            let alone = case.run(way, (0, case.rows()), MOMENTUM, None);
            let values = if case.kind == Kind::BFloat16 { 3e-3 } else { 1e-5 };
            compare(&name, &joined(&found), &alone, (values, 1e-5));
        }
    }
}

/// No cancellation in the variance of values far from zero.
#[test]
fn variance_is_accurate_for_large_means() {
    let mut case = Case::new(&[64, 8, 4, 4], Kind::Float, false, false);
    case.x = channels_last(&(&case.x + 1000.0).to_kind(Kind::Float).to_kind(Kind::Double));
    let expected = case.oracle();
    for way in WAYS {
        for found in
            [case.run(way, (0, 64), MOMENTUM, None), run_parts(&case, way, &[40, 24]).0.swap_remove(0)]
        {
            close("running variance", &found.running_var, &expected.running_var, 1e-4);
            close("running mean", &found.running_mean, &expected.running_mean, 1e-6);
        }
    }
}

#[test]
fn zero_momentum_keeps_the_running_statistics() {
    let case = Case::new(&[6, 8, 5, 3], Kind::Float, true, true);
    for way in WAYS {
        let found = case.run(way, (0, 6), 0.0, None);
        assert_eq!(found.running_mean.abs().max().double_value(&[]), 0.0);
        assert_eq!((found.running_var - 1.0).abs().max().double_value(&[]), 0.0);
    }
}

/// Inference uses the running statistics and does not modify them, with a graph or without.
#[test]
fn inference_matches_the_formula_with_running_statistics() {
    for case in variants() {
        let [x, scale, shift] = [&case.x, &case.scale, &case.shift].map(|t| t.to_kind(Kind::Float));
        let (mean, var) = (&shift * 0.5, &scale * &scale + 0.1);
        let (mean_before, var_before) = (mean.copy(), var.copy());
        let per_channel = |t: &Tensor| {
            let t = t.to_kind(Kind::Double);
            if x.dim() == 2 { t } else { t.view([-1, 1, 1]) }
        };
        let mut expected = (&case.x - per_channel(&mean)) / (per_channel(&var) + EPSILON).sqrt();
        expected = expected * per_channel(&scale) + per_channel(&shift);
        if let Some(residual) = &case.residual {
            expected += residual;
        }
        if case.relu {
            expected = expected.relu();
        }
        let norm = BatchNorm {
            scale: &scale,
            shift: &shift,
            running_mean: &mean,
            running_var: &var,
            epsilon: EPSILON,
        };
        let residual = case.residual.as_ref().map(|residual| residual.to_kind(case.kind));
        for graph in [false, true] {
            let x = x.to_kind(case.kind).set_requires_grad(graph);
            let y = norm.forward(&x, residual.as_ref(), case.relu, Statistics::Running).unwrap();
            assert_eq!((y.kind(), y.requires_grad()), (case.kind, graph));
            // libtorch rounds to bf16 before the residual and after.
            let tolerance = if case.kind == Kind::BFloat16 { 6e-3 } else { 2e-6 };
            close(&case.name(), &y.detach().to_kind(Kind::Double), &expected, tolerance);
        }
        assert_eq!((mean, var), (mean_before, var_before));
    }
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::new(&[32, 64, 19, 19], Kind::BFloat16, true, true);
    let threads = tch::get_num_threads();
    let run = |threads: i32| {
        tch::set_num_threads(threads);
        case.run(Way::Fused, (0, 32), MOMENTUM, None)
    };
    let (one, two, again) = (run(1), run(2), run(2));
    tch::set_num_threads(threads);
    let parts: [fn(&Found) -> &Tensor; 6] =
        [|f| &f.y, |f| &f.dx, |f| &f.d_scale, |f| &f.d_shift, |f| &f.running_mean, |f| &f.running_var];
    for part in parts {
        assert!(part(&one) == part(&two) && part(&two) == part(&again));
    }
}

fn leaves() -> [Tensor; 5] {
    let options = (Kind::Float, Device::Cpu);
    let _guard = seeded(3);
    let [x, scale, shift] =
        [&[4, 3][..], &[3], &[3]].map(|shape| Tensor::randn(shape, options).set_requires_grad(true));
    [x, scale, shift, Tensor::zeros([3], options), Tensor::ones([3], options)]
}

fn norm([_, scale, shift, running_mean, running_var]: &[Tensor; 5]) -> BatchNorm<'_> {
    BatchNorm { scale, shift, running_mean, running_var, epsilon: EPSILON }
}

fn shared(sum: &Sum) -> Statistics {
    Statistics::Batch { momentum: MOMENTUM, all_reduce: Some(Arc::clone(sum)) }
}

/// The graph owns the all-reduce; without gradients there is no graph.
#[test]
fn all_reduce_is_dropped_with_the_graph() {
    for way in WAYS {
        let leaves = leaves();
        let sum: Sum = Arc::new(|_: &Tensor| {});
        let forward = || way.run(|| way.forward(&norm(&leaves), &leaves[0], None, true, shared(&sum)));
        let y = tch::no_grad(forward);
        assert!(!y.requires_grad());
        assert_eq!(Arc::strong_count(&sum), 1, "not retained under no_grad");
        let y = forward();
        assert_eq!(Arc::strong_count(&sum), 2);
        y.sum(Kind::Float).backward();
        drop(y);
        assert_eq!(Arc::strong_count(&sum), 1);
    }
}

/// A panic does not unwind through C++ frames; the pass returns an error with its message.
#[test]
fn panic_of_the_all_reduce_is_an_error() {
    let leaves = leaves();
    let failing: Sum = Arc::new(|_: &Tensor| panic!("rank {} is gone", 3));
    let error = norm(&leaves).forward(&leaves[0], None, false, shared(&failing)).unwrap_err();
    assert!(error.to_string().contains("rank 3 is gone"), "{error}");
    for way in WAYS {
        let calls = Mutex::new(0);
        let later: Sum = Arc::new(move |_: &Tensor| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            assert!(*calls < 3, "the peer hung up");
        });
        let y = way.run(|| way.forward(&norm(&leaves), &leaves[0], None, false, shared(&later)));
        let error = y.sum(Kind::Float).f_backward().unwrap_err();
        assert!(error.to_string().contains("the peer hung up"), "{error}");
    }
}

#[test]
fn backward_pass_does_not_overwrite_shared_tensors() {
    for way in WAYS {
        for gates in [(false, false), (true, false), (false, true), (true, true)] {
            way.run(|| overwrites_nothing(way, gates));
        }
    }
}

fn overwrites_nothing(way: Way, (relu, residual): (bool, bool)) {
    let case = Case::new(&[6, 8, 5, 3], Kind::Float, relu, residual);
    let f32 = |t: &Tensor| channels_last(&t.to_kind(Kind::Float));
    let (x, weights) = (f32(&case.x).set_requires_grad(true), f32(&case.weights));
    let (scale, shift) = (case.scale.to_kind(Kind::Float), case.shift.to_kind(Kind::Float));
    let (mean, var) = (scale.zeros_like(), scale.ones_like());
    let norm =
        BatchNorm { scale: &scale, shift: &shift, running_mean: &mean, running_var: &var, epsilon: EPSILON };
    let added = case.residual.as_ref().map(|residual| f32(residual).set_requires_grad(true));
    let statistics = Statistics::Batch { momentum: 0.0, all_reduce: None };
    let y = way.forward(&norm, &x, added.as_ref(), relu, statistics);
    let before = [&x, &weights, &y].map(|t| t.detach().copy());
    let leaves: Vec<_> = [Some(&x), added.as_ref()].into_iter().flatten().collect();
    let once = Tensor::run_backward(&[(&y * &weights).sum(Kind::Float)], &leaves, true, false);
    let twice = Tensor::run_backward(&[(&y * &weights).sum(Kind::Float)], &leaves, true, false);
    assert_eq!(once, twice);
    assert_eq!(before, [&x, &weights, &y].map(|t| t.detach().copy()));
}

#[test]
fn second_derivative_is_an_error() {
    let leaves = leaves();
    let statistics = Statistics::Batch { momentum: 0.0, all_reduce: None };
    let y = norm(&leaves).forward(&leaves[0], None, false, statistics).unwrap().square().sum(Kind::Float);
    let error = Tensor::f_run_backward(&[y], &[&leaves[0]], true, true).unwrap_err();
    assert!(error.to_string().contains("second derivative"), "{error}");
}

#[test]
fn mismatched_shapes_are_reported() {
    let leaves = leaves();
    let error = |x: &Tensor, residual: Option<&Tensor>| {
        norm(&leaves).forward(x, residual, false, Statistics::Running).unwrap_err().to_string()
    };
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    assert!(error(&zeros(&[4, 3, 2]), None).contains("[4, 3, 2]"));
    assert!(error(&zeros(&[4, 5]), None).contains("5 channels"));
    assert!(error(&zeros(&[4, 3]), Some(&zeros(&[3, 3]))).contains("[3, 3]"));
}
