//! Recordings of operations: names, nesting, shapes, durations.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr_shim::{
    BatchNorm, Statistics,
    profile::{Layout, Operation, profile},
};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn named<'a>(operations: &'a [Operation], name: &str) -> &'a Operation {
    operations
        .iter()
        .find(|operation| operation.name == name)
        .unwrap_or_else(|| panic!("{name}: {operations:?}"))
}

fn f32_of(shape: &[i64]) -> Layout {
    Layout::Defined(4, shape.to_vec())
}

#[test]
fn a_recording_has_nesting_shapes_and_durations() {
    let (x, weight) = (Tensor::ones([2, 3], F32), Tensor::ones([4, 3], F32).set_requires_grad(true));
    let (y, operations) = profile(&x, || x.linear(&weight, None::<&Tensor>)).unwrap();
    let product = named(&operations, "aten::mm");
    assert_eq!(
        (&product.inputs[..], &product.outputs[..]),
        (&[f32_of(&[2, 3]), f32_of(&[3, 4])][..], &[f32_of(&[2, 4])][..])
    );
    let mut callers = vec![];
    let mut next = product.parent;
    while let Some(index) = next {
        callers.push(operations[index].name.as_str());
        assert!(operations[index].nanoseconds >= product.nanoseconds, "{operations:?}");
        next = operations[index].parent;
    }
    assert_eq!(callers.last(), Some(&"aten::linear"), "{callers:?}");
    assert_eq!(product.outputs[0].bytes(), 32);

    let (done, operations) = profile(&x, || simclr_shim::backward(&y, &y.ones_like())).unwrap();
    done.unwrap();
    let node = operations.iter().position(|operation| operation.name == "MmBackward0").unwrap();
    assert!(
        operations.iter().any(|operation| operation.name == "aten::mm" && operation.parent == Some(node))
    );
    assert_eq!(profile(&x, || ()).unwrap().1, []);
}

#[test]
fn bf16_undefined_tensors_and_kernels_of_ours_are_recorded() {
    let x = Tensor::ones([2, 3], F32).to_kind(Kind::BFloat16);
    let ones = || Tensor::ones([3], F32);
    let (scale, shift, mean, var) = (ones(), ones(), ones(), ones());
    let norm =
        BatchNorm { scale: &scale, shift: &shift, running_mean: &mean, running_var: &var, epsilon: 1e-5 };
    let statistics = Statistics::Batch { momentum: 0.1, all_reduce: None };
    let (y, operations) = profile(&x, || norm.forward(&x, None, true, statistics)).unwrap();
    assert_eq!(y.unwrap().kind(), Kind::BFloat16);
    let kernel = named(&operations, "simclr::batch_norm");
    assert_eq!(kernel.inputs, [Layout::Defined(2, vec![2, 3]), Layout::Undefined]);
    assert_eq!(kernel.inputs.iter().map(Layout::bytes).sum::<usize>(), 12);
}
