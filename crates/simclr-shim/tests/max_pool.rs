//! Max-pooling against libtorch's, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr_shim::{instructions, max_pool, use_instructions};
use tch::{Device, Kind, Tensor};

/// Values of few levels, so that windows have equal maxima, with the channels innermost.
fn image(shape: [i64; 4], kind: Kind) -> Tensor {
    let [b, c, h, w] = shape;
    let at = Tensor::arange(b * c * h * w, (Kind::Int64, Device::Cpu));
    let levels = (&at * &at * 31 + at * 7919 + (7 * c + 101 * w)).remainder(2003).remainder(9) - 4;
    levels.view([b, h, w, c]).permute([0, 3, 1, 2]).to_kind(kind)
}

/// Result and gradient.
fn run(x: &Tensor, pool: &dyn Fn(&Tensor) -> Tensor) -> [Tensor; 2] {
    let leaf = x.detach().set_requires_grad(true);
    let y = pool(&leaf);
    let weights = Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu)).remainder(13.0) + 1.0;
    (y.to_kind(Kind::Float) * weights.view_as(&y)).sum(Kind::Float).backward();
    [y.detach(), leaf.grad()]
}

fn ours(x: &Tensor) -> Tensor {
    max_pool(x).unwrap()
}

fn libtorch(x: &Tensor) -> Tensor {
    x.max_pool2d([2], [2], [0], [1], false)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = Vec::<f32>::try_from(tensor.to_kind(Kind::Float).contiguous().view(-1)).unwrap();
    values.into_iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

#[track_caller]
fn assert_same(x: &Tensor) {
    let [y, dx] = run(x, &ours);
    let [expected_y, expected_dx] = run(x, &libtorch);
    assert_eq!((y.kind(), y.size()), (x.kind(), expected_y.size()));
    assert_eq!(bits(&y), bits(&expected_y), "{x:?}");
    assert_eq!((dx.kind(), bits(&dx)), (x.kind(), bits(&expected_dx)), "{x:?}");
    assert_eq!(bits(&tch::no_grad(|| ours(x))), bits(&expected_y), "{x:?} without a graph");
}

#[test]
fn values_and_gradients_are_those_of_libtorch() {
    let best = instructions();
    for set in ["baseline", "avx2", "avx512"].into_iter().filter(|set| use_instructions(set).is_ok()) {
        use_instructions(set).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            for shape in [[3, 32, 8, 8], [2, 16, 2, 6], [2, 37, 7, 5], [1, 3, 9, 4], [5, 1, 2, 2]] {
                assert_same(&image(shape, kind));
            }
        }
    }
    use_instructions(&best).unwrap();
}

#[test]
fn nan_infinities_and_other_layouts() {
    let x = image([2, 20, 4, 4], Kind::Float);
    for (at, value) in [(0, f64::NAN), (1, f64::NEG_INFINITY), (2, f64::INFINITY)] {
        let _ = x.select(2, at).select(2, 1).fill_(value);
    }
    let _ = x.select(0, 1).narrow(1, 2, 2).fill_(f64::NEG_INFINITY);
    assert_same(&x);
    assert_same(&x.contiguous());
    assert_same(&x.narrow(3, 1, 3));
    assert!(max_pool(&Tensor::ones([2, 3, 1, 4], (Kind::Float, Device::Cpu))).is_err());
    // Other types are left to libtorch.
    assert_same(&x.to_kind(Kind::Double));
}
