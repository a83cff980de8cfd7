//! Convolutions with the gradient of the kernel as a matrix product, against libtorch's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use simclr_shim::{KernelGradient, conv2d};
use tch::{Device, Kind, Tensor};

/// Values between -1 and 1 that depend on the shape only (libtorch's generator is shared by all tests), with the channels
/// innermost.
fn values(shape: [i64; 4], kind: Kind) -> Tensor {
    let [b, c, h, w] = shape;
    let at = Tensor::arange(b * c * h * w, (Kind::Int64, Device::Cpu));
    let levels = (&at * &at * 31 + at * 7919 + (7 * c + 101 * w)).remainder(2003) - 1001;
    (levels.to_kind(Kind::Double) / 1001.0).view([b, h, w, c]).permute([0, 3, 1, 2]).to_kind(kind)
}

/// Result and the gradients of images and kernel.
fn run(x: &Tensor, weight: &Tensor, convolve: &dyn Fn(&Tensor, &Tensor) -> Tensor) -> [Tensor; 3] {
    let [x, weight] = [x, weight].map(|leaf| leaf.detach().set_requires_grad(true));
    let y = convolve(&x, &weight);
    let dy = values(y.size().try_into().unwrap(), y.kind());
    let dy = if y.size()[1] == 5 { dy.contiguous() } else { dy };
    (&y * &dy).sum(Kind::Double).backward();
    [y.detach(), x.grad(), weight.grad()]
}

/// Channels in and out, kernel, stride, side.
const SHAPES: [[i64; 5]; 9] = [
    [16, 8, 3, 1, 3],
    [16, 8, 3, 2, 7],
    [3, 5, 3, 1, 6],
    [4, 6, 1, 1, 5],
    [4, 6, 1, 2, 5],
    [3, 4, 7, 2, 9],
    [2, 3, 3, 1, 1],
    [1, 3, 3, 1, 4],
    [128, 128, 3, 1, 3],
];

fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    let scale = expected.abs().max().double_value(&[]);
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / scale
}

#[test]
fn gradients_are_those_of_libtorch() {
    for [input, output, kernel, stride, side] in SHAPES {
        let x = values([6, input, side, side + 1], Kind::Double);
        let weight = values([output, input, kernel, kernel], Kind::Double);
        let place = (stride, kernel / 2);
        let libtorch =
            |x: &Tensor, weight: &Tensor| x.conv2d(weight, None::<Tensor>, [stride], [kernel / 2], [1], 1);
        let expected = run(&x, &weight, &libtorch);
        for gradient in [KernelGradient::Product, KernelGradient::Fastest] {
            let ours = |x: &Tensor, weight: &Tensor| conv2d(x, weight, place, gradient).unwrap();
            for (kind, most) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
                let found = run(&x.to_kind(kind), &weight.to_kind(kind), &ours);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!((found.kind(), found.size()), (kind, expected.size()));
                    let difference = distance(found, expected);
                    assert!(
                        difference < most,
                        "{input} -> {output} {kernel}x{kernel} {kind:?}: {difference}"
                    );
                }
            }
        }
    }
}

/// Images may be a part of a batch or have their channels outermost.
#[test]
fn other_layouts_of_images() {
    let whole = values([6, 4, 5, 7], Kind::Double);
    let weight = values([3, 4, 3, 3], Kind::Double);
    let libtorch = |x: &Tensor, weight: &Tensor| x.conv2d(weight, None::<Tensor>, [1], [1], [1], 1);
    let ours = |x: &Tensor, weight: &Tensor| conv2d(x, weight, (1, 1), KernelGradient::Product).unwrap();
    for x in [whole.contiguous(), whole.narrow(0, 2, 3), whole.narrow(3, 1, 5)] {
        for (found, expected) in run(&x, &weight, &ours).iter().zip(&run(&x, &weight, &libtorch)) {
            assert!(distance(found, expected) < 1e-12);
        }
    }
}

#[test]
fn gradients_that_are_not_needed_are_not_computed() {
    let (x, weight) = (values([2, 3, 4, 4], Kind::Float), values([2, 3, 3, 3], Kind::Float));
    let product = |x: &Tensor, weight: &Tensor| conv2d(x, weight, (1, 1), KernelGradient::Product).unwrap();
    assert!(!product(&x, &weight).requires_grad());
    let leaf = weight.set_requires_grad(true);
    product(&x, &leaf).sum(Kind::Float).backward();
    assert!(leaf.grad().defined() && !x.grad().defined());
    assert!(!tch::no_grad(|| product(&x, &leaf)).requires_grad());
    let error = conv2d(&x, &leaf.narrow(1, 0, 2), (1, 1), KernelGradient::Product).unwrap_err();
    assert!(error.to_string().contains("channels"), "{error}");
}
