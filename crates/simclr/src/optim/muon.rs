//! Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): the momentum of a weight is replaced by the nearest semi-orthogonal matrix,
//! approximately, so that all directions of a layer change at the same rate. The other parameters are updated by AdamW.
//!
//! A kernel `[out, in, k, k]` is the matrix `[out, k k in]`. The step is scaled to the root mean square of AdamW's steps, so that
//! learning rate and weight decay have AdamW's scale (arXiv 2502.16982, equation 4).

use std::cmp::Reverse;

use simclr_shim::ShimError;
use tch::{Device, Kind, Tensor};

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

/// Longest shorter side of a matrix that one thread orthogonalises while others process other matrices. Two threads take 0.7 of the time of one
/// for 256 x 1152 and 1.1 for 128 x 576 (bf16, 2 cores of an AMD EPYC).
const SIDE_FOR_ONE_THREAD: i64 = 256;

/// Shortest shorter side of a matrix with products in bf16 on a CPU: below, f32 is as fast (64 x 128) or up to four times faster.
const SIDE_FOR_BF16: i64 = 65;

/// Whether the rule orthogonalises the momentum of `param`: weights of the encoder and the projection head, but not classifiers,
/// biases and batch norm.
pub fn orthogonalizes(config: &OptimConfig, param: &Param) -> bool {
    config.kind == OptimKind::Muon && param.role == Role::Weight && param.tensor.dim() >= 2
}

/// A weight to be updated.
pub struct Weight {
    pub value: Tensor,
    pub gradient: Tensor,
    /// Momentum buffer.
    pub velocity: Tensor,
    /// Weight decay.
    pub decay: f64,
}

/// What the weights of a step share.
pub struct Step {
    pub momentum: f64,
    pub nesterov: bool,
    /// Of the products on a CPU.
    pub precision: Precision,
    /// f64 scalar.
    pub lr: Tensor,
    /// f64 scalar; if it is not finite, nothing changes.
    pub guard: Option<Tensor>,
}

impl Step {
    fn shallow_clone(&self) -> Self {
        let guard = self.guard.as_ref().map(Tensor::shallow_clone);
        Self { lr: self.lr.shallow_clone(), guard, ..*self }
    }
}

impl Weight {
    /// Shorter and longer side of the matrix.
    fn sides(&self) -> [i64; 2] {
        let rows = self.value.size()[0];
        let columns = self.value.numel() as i64 / rows.max(1);
        [rows.min(columns), rows.max(columns)]
    }

    fn multiplications(&self) -> i64 {
        let [shorter, longer] = self.sides();
        shorter * shorter * longer
    }
}

/// Updates values and momentum buffers in place, without host synchronisation. Small matrices on a CPU are updated at the same time, each by
/// one thread; others of one shape are orthogonalised together, in a fraction of the kernel launches.
///
/// # Errors
/// libtorch errors.
pub fn update(step: &Step, weights: Vec<Weight>) -> Result<(), ShimError> {
    let for_one_thread =
        |weight: &Weight| weight.value.device() == Device::Cpu && weight.sides()[0] <= SIDE_FOR_ONE_THREAD;
    let (mut small, large): (Vec<_>, Vec<_>) = weights.into_iter().partition(for_one_thread);
    small.sort_by_key(|weight| Reverse(weight.multiplications()));
    let small = small.into_iter().map(|weight| (step.shallow_clone(), weight)).collect();
    simclr_shim::in_parallel(small, |(step, weight): (Step, Weight)| update_group(&step, &[weight]))?;
    by_shape(large).iter().for_each(|group| update_group(step, group));
    Ok(())
}

/// Weights with matrices of one shape, and so of one size, together.
fn by_shape(weights: Vec<Weight>) -> Vec<Vec<Weight>> {
    let mut groups: Vec<Vec<Weight>> = Vec::new();
    let shape = |weight: &Weight| (weight.value.size()[0], weight.value.numel());
    for weight in weights {
        match groups.iter_mut().find(|group| shape(&group[0]) == shape(&weight)) {
            Some(group) => group.push(weight),
            None => groups.push(vec![weight]),
        }
    }
    groups
}

fn update_group(step: &Step, weights: &[Weight]) {
    let direction = |Weight { gradient, velocity, .. }: &Weight| {
        let momentum = velocity.lerp(gradient, 1.0 - step.momentum);
        assign(velocity, &momentum, step.guard.as_ref());
        matrix(&if step.nesterov { gradient.lerp(&momentum, step.momentum) } else { momentum })
    };
    let directions: Vec<Tensor> = weights.iter().map(direction).collect();
    let longest = weights.first().map_or(1, |weight| weight.sides()[1]) as f64;
    let steps = orthogonalize(&Tensor::stack(&directions, 0), step.precision);
    let steps = steps * (&step.lr * (ADAMW_RMS * longest.sqrt()));
    for (Weight { value, decay, .. }, change) in weights.iter().zip(steps.unbind(0)) {
        let weight = value * (&step.lr * -decay + 1.0) - of_matrix(&change, &value.size());
        assign(value, &weight, step.guard.as_ref());
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
    let size = matrices.size();
    let is_large = size[1].min(size[2]) >= SIDE_FOR_BF16;
    let in_bf16 = matrices.device().is_cuda() || precision == Precision::Bf16 && is_large;
    let kind = if in_bf16 { Kind::BFloat16 } else { matrices.kind() };
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

    fn step(lr: f64, guard: Option<f64>) -> Step {
        let (lr, guard) = (Tensor::from(lr), guard.map(Tensor::from));
        Step { momentum: 0.9, nesterov: true, precision: Precision::F32, lr, guard }
    }

    /// Kernels with the channels innermost or outermost and dense layers, of equal and of different shapes as matrices.
    #[test]
    fn weights_of_one_shape_are_updated_as_each_alone() {
        let initial = [
            values(0, &[4, 2, 3, 3]),
            channels_last(&values(1, &[4, 2, 3, 3])),
            values(2, &[4, 18]),
            values(3, &[6, 3]),
        ];
        let run = |work: &dyn Fn(Vec<Weight>)| {
            let weights = initial.each_ref().map(|initial| Weight {
                value: initial.detach().copy(),
                gradient: initial * 0.5 + 0.1,
                velocity: initial.zeros_like(),
                decay: 0.0,
            });
            let results = weights.each_ref().map(|w| [w.value.shallow_clone(), w.velocity.shallow_clone()]);
            work(weights.into());
            results.into_iter().flatten().collect::<Vec<_>>()
        };
        let step = step(0.1, None);
        let at_once = run(&|weights| update(&step, weights).unwrap());
        let alone = run(&|weights| weights.into_iter().for_each(|weight| update_group(&step, &[weight])));
        let together = run(&|weights| {
            let groups = by_shape(weights);
            assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
            groups.iter().for_each(|group| update_group(&step, group));
        });
        for ((at_once, alone), together) in at_once.iter().zip(&alone).zip(&together) {
            assert_eq!(at_once, alone);
            assert!((together - alone).abs().max().double_value(&[]) < 1e-12);
        }
        for (found, initial) in at_once.iter().step_by(2).zip(&initial) {
            assert_eq!(found.stride(), initial.stride());
            assert!((found - initial).abs().min().double_value(&[]) > 0.0, "every value changes");
        }
    }

    #[test]
    fn a_non_finite_guard_changes_nothing() {
        let value = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let (before, velocity) = (value.copy(), value.zeros_like());
        let weight = || {
            let (value, velocity) = (value.shallow_clone(), velocity.shallow_clone());
            vec![Weight { gradient: &value * 0.5, value, velocity, decay: 0.0 }]
        };
        update(&step(1.0, Some(f64::NAN)), weight()).unwrap();
        assert_eq!((value.copy(), velocity.copy()), (before.copy(), before.zeros_like()));
        update(&step(1.0, Some(1.0)), weight()).unwrap();
        assert!(value != before && velocity != before.zeros_like());
    }

    /// The products of matrices with a short side are in f32 in any precision.
    #[test]
    fn small_matrices_have_no_rounding_to_bf16() {
        let small = values(0, &[1, SIDE_FOR_BF16 - 1, 90]);
        let [bf16, f32] = [Precision::Bf16, Precision::F32].map(|precision| orthogonalize(&small, precision));
        assert_eq!(bf16, f32);
        let large = values(0, &[1, SIDE_FOR_BF16, 90]);
        let [bf16, f32] = [Precision::Bf16, Precision::F32].map(|precision| orthogonalize(&large, precision));
        let difference = (bf16 - f32).abs().max().double_value(&[]);
        assert!(difference > 1e-4 && difference < 0.05, "{difference}");
    }
}
