//! Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): the momentum of a weight is replaced by the nearest semi-orthogonal matrix,
//! approximately, so that all directions of a layer change at the same rate. The other parameters are updated by AdamW.
//!
//! A kernel `[out, in, k, k]` is the matrix `[out, k k in]`. The step is scaled to the root mean square of AdamW's steps, so that
//! learning rate and weight decay have AdamW's scale (arXiv 2502.16982, equation 4).

use tch::{Kind, Tensor};

use super::{OptimConfig, OptimKind};
use crate::{
    device::Precision,
    params::{Param, Role},
};

/// Quintic Newton-Schulz iteration a X + b X Xt X + c (X Xt)^2 X, chosen for a steep slope at 0: singular values end between 0.7 and 1.2.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

const ITERATIONS: usize = 5;

/// Typical root mean square of AdamW's steps (arXiv 2502.16982, section 2.2).
const ADAMW_RMS: f64 = 0.2;

/// Whether the rule orthogonalises the momentum of `param`: weights of the encoder and the projection head, but not classifiers,
/// biases and batch norm.
pub fn orthogonalizes(config: &OptimConfig, param: &Param) -> bool {
    config.kind == OptimKind::Muon && param.role == Role::Weight && param.tensor.dim() >= 2
}

/// A weight with its gradient and its momentum buffer.
pub struct Weight<'a> {
    pub param: &'a Param,
    pub gradient: Tensor,
    pub velocity: &'a Tensor,
}

/// Updates weights and momentum buffers in place, without host synchronisation, unless `guard` (f64 scalar) is not finite. `lr`: f64
/// scalar. `precision`: of the products on a CPU. Matrices of one shape are orthogonalised together, in a fraction of the kernel launches.
pub fn update(
    (config, precision): (&OptimConfig, Precision),
    weights: &[Weight<'_>],
    lr: &Tensor,
    guard: Option<&Tensor>,
) {
    let mut by_shape: Vec<(Vec<i64>, Vec<(&Weight<'_>, Tensor)>)> = Vec::new();
    for weight in weights {
        let Weight { gradient, velocity, .. } = weight;
        let momentum = velocity.lerp(gradient, 1.0 - config.momentum);
        let direction = matrix(&if config.nesterov {
            gradient.lerp(&momentum, config.momentum)
        } else {
            momentum.shallow_clone()
        });
        assign(velocity, &momentum, guard);
        let shape = direction.size();
        match by_shape.iter_mut().find(|(other, _)| *other == shape) {
            Some((_, group)) => group.push((weight, direction)),
            None => by_shape.push((shape, vec![(weight, direction)])),
        }
    }
    for (shape, group) in by_shape {
        let longest = shape.into_iter().max().unwrap_or(1) as f64;
        let directions: Vec<&Tensor> = group.iter().map(|(_, direction)| direction).collect();
        let steps = orthogonalize(&Tensor::stack(&directions, 0), precision);
        let steps = steps * (lr * (ADAMW_RMS * longest.sqrt()));
        for ((Weight { param, .. }, _), step) in group.iter().zip(steps.unbind(0)) {
            let decay = if config.decays(param.role) { config.weight_decay } else { 0.0 };
            let weight = &param.tensor * (lr * -decay + 1.0) - of_matrix(&step, &param.tensor.size());
            assign(&param.tensor, &weight, guard);
        }
    }
}

/// `[out, k k in]` of a kernel `[out, in, k, k]`, which is a view of one with the channels innermost; the order of the columns has no
/// effect on the nearest semi-orthogonal matrix.
fn matrix(kernel: &Tensor) -> Tensor {
    let rows = kernel.size()[0];
    let kernel = if kernel.dim() == 4 { kernel.permute([0, 2, 3, 1]) } else { kernel.shallow_clone() };
    kernel.reshape([rows, -1])
}

/// The inverse of [`matrix`].
fn of_matrix(matrix: &Tensor, size: &[i64]) -> Tensor {
    match *size {
        [output, input, height, width] => matrix.view([output, height, width, input]).permute([0, 3, 1, 2]),
        _ => matrix.view(size),
    }
}

fn assign(target: &Tensor, value: &Tensor, guard: Option<&Tensor>) {
    match guard {
        Some(guard) => target.shallow_clone().copy_(&value.where_self(&guard.isfinite(), target)),
        None => target.shallow_clone().copy_(value),
    }
}

/// Approximately U Vt of the singular value decomposition U S Vt of each of the `matrices` `[count, m, n]`. Computed in bf16 on a GPU, as
/// by its authors, and on a CPU for [`Precision::Bf16`].
fn orthogonalize(matrices: &Tensor, precision: Precision) -> Tensor {
    let in_bf16 = matrices.device().is_cuda() || precision == Precision::Bf16;
    let kind = if in_bf16 { Kind::BFloat16 } else { matrices.kind() };
    let size = matrices.size();
    let is_tall = size[1] > size[2];
    let norms = matrices.norm_scalaropt_dim(2.0, [1i64, 2].as_slice(), true);
    let x = matrices / (norms + 1e-7);
    let x = if is_tall { x.transpose(1, 2) } else { x }.to_kind(kind);
    // The Gram matrix squares the condition number, for which bf16 has too few digits.
    let by_gram = !in_bf16 && x.size()[2] >= 2 * x.size()[1];
    let x = if by_gram { iterate_on_gram(&x) } else { iterate(x) };
    if is_tall { x.transpose(1, 2) } else { x }.to_kind(matrices.kind())
}

/// The iteration of [`COEFFICIENTS`] on `x` `[count, m, n]`.
fn iterate(mut x: Tensor) -> Tensor {
    let [a, ..] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let even = even_terms(&x.matmul(&x.transpose(1, 2)));
        x = x.baddbmm(&even, &x, a, 1.0);
    }
    x
}

/// [`iterate`] with m^2 n multiplications twice in place of ten times. Every iterate is P X, with a symmetric P `[m, m]` that commutes with
/// the Gram matrix G of X: P and the Gram matrix P G P of the iterate are iterated, and P X is formed once.
fn iterate_on_gram(x: &Tensor) -> Tensor {
    let [a, ..] = COEFFICIENTS;
    let identity = Tensor::eye(x.size()[1], (x.kind(), x.device())) * a;
    let mut gram = x.matmul(&x.transpose(1, 2));
    let mut factor = &identity + even_terms(&gram);
    let mut product = factor.shallow_clone();
    for _ in 1..ITERATIONS {
        gram = factor.matmul(&gram).matmul(&factor);
        factor = &identity + even_terms(&gram);
        product = factor.matmul(&product);
    }
    product.matmul(x)
}

/// b G + c G^2.
fn even_terms(gram: &Tensor) -> Tensor {
    let [_, b, c] = COEFFICIENTS;
    gram.baddbmm(gram, gram, b, c)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::device::channels_last;
    use tch::Device;

    /// Singular vectors are kept, and singular values follow the scalar iteration, in f64.
    #[test]
    fn singular_values_follow_the_scalar_polynomial() {
        for (rows, columns) in [(3, 7), (8, 4), (5, 5), (5, 9), (1, 6), (4, 15)] {
            let values: Vec<f64> =
                (0..rows * columns).map(|i| f64::from(i * i % 13) - 4.5 * f64::from(i % 3)).collect();
            let matrix = Tensor::from_slice(&values).view([i64::from(rows), i64::from(columns)]);
            let (u, s, v) = matrix.svd(true, true);
            let mut scalar = &s / (matrix.norm() + 1e-7);
            let [a, b, c] = COEFFICIENTS;
            for _ in 0..ITERATIONS {
                scalar = &scalar * a + scalar.pow_tensor_scalar(3) * b + scalar.pow_tensor_scalar(5) * c;
            }
            let expected = u.matmul(&scalar.diag(0)).matmul(&v.tr());
            let found = orthogonalize(&matrix.unsqueeze(0), Precision::F32).squeeze_dim(0);
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-10, "{rows} x {columns}: {difference}");
        }
    }

    #[test]
    fn singular_values_end_near_one() {
        let random =
            Tensor::from_slice(&(0..96).map(|i| f64::sin(1.7 * f64::from(i * i))).collect::<Vec<_>>());
        for precision in [Precision::F32, Precision::Bf16] {
            let (_, s, _) = orthogonalize(&random.view([1, 8, 12]), precision).svd(true, false);
            let range = [s.min(), s.max()].map(|value| value.double_value(&[]));
            assert!(range[0] > 0.6 && range[1] < 1.25, "{precision:?}: {range:?}");
        }
    }

    fn values(seed: i64, size: &[i64]) -> Tensor {
        let value = |i: i64| f64::sin(1.7 * ((seed + 1) * i * i) as f64);
        Tensor::from_slice(&(0..size.iter().product()).map(value).collect::<Vec<_>>()).view(size)
    }

    /// Kernels with the channels innermost or outermost and dense layers, of equal and of different shapes as matrices.
    #[test]
    fn weights_of_one_shape_are_updated_as_each_alone() {
        let config = OptimConfig { kind: OptimKind::Muon, nesterov: true, ..OptimConfig::default() };
        let initial = [
            values(0, &[4, 2, 3, 3]),
            channels_last(&values(1, &[4, 2, 3, 3])),
            values(2, &[4, 18]),
            values(3, &[6, 3]),
        ];
        let run = |at_once: usize| {
            let param =
                |w: &Tensor| Param { name: "w".into(), role: Role::Weight, tensor: w.detach().copy() };
            let params: Vec<Param> = initial.iter().map(param).collect();
            let velocities: Vec<Tensor> = initial.iter().map(Tensor::zeros_like).collect();
            let mut weights = Vec::new();
            for (param, velocity) in params.iter().zip(&velocities) {
                weights.push(Weight { param, gradient: &param.tensor * 0.5 + 0.1, velocity });
            }
            for weights in weights.chunks(at_once) {
                update((&config, Precision::F32), weights, &Tensor::from(0.1), None);
            }
            params.into_iter().map(|param| param.tensor).chain(velocities).collect::<Vec<_>>()
        };
        let (together, alone) = (run(initial.len()), run(1));
        for (found, expected) in together.iter().zip(&alone) {
            assert!((found - expected).abs().max().double_value(&[]) < 1e-12);
        }
        for (found, initial) in together.iter().zip(&initial) {
            assert_eq!(found.stride(), initial.stride());
            assert!((found - initial).abs().min().double_value(&[]) > 0.0, "every value changes");
        }
    }

    #[test]
    fn a_non_finite_guard_changes_nothing() {
        let config = OptimConfig { kind: OptimKind::Muon, ..OptimConfig::default() };
        let weight = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let param = Param { name: "w".into(), tensor: weight.copy(), role: Role::Weight };
        let (gradient, velocity, lr) = (weight.copy() * 0.5, weight.zeros_like(), Tensor::from(0.1));
        let config = (&config, Precision::F32);
        let weights = [Weight { param: &param, gradient, velocity: &velocity }];
        update(config, &weights, &lr, Some(&Tensor::from(f64::NAN)));
        assert_eq!((param.tensor.copy(), velocity.copy()), (weight.copy(), weight.zeros_like()));
        update(config, &weights, &lr, Some(&Tensor::from(1.0)));
        assert!(param.tensor != weight && velocity != weight.zeros_like());
    }
}
