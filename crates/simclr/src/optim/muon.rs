//! Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): the momentum of a weight is replaced by the nearest semi-orthogonal matrix,
//! approximately, so that all directions of a layer change at the same rate. The other parameters are updated by AdamW.
//!
//! A kernel `[out, in, k, k]` is the matrix `[out, in k k]`. The step is scaled to the root mean square of AdamW's steps, so that
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

/// Updates `param` and its momentum buffer in place, without host synchronisation, unless `guard` (f64 scalar) is not finite. `lr`:
/// f64 scalar. `precision`: of the products on a CPU.
pub fn update(
    (config, precision): (&OptimConfig, Precision),
    param: &Param,
    gradient: &Tensor,
    velocity: &Tensor,
    lr: &Tensor,
    guard: Option<&Tensor>,
) {
    let momentum = velocity.lerp(gradient, 1.0 - config.momentum);
    let direction = if config.nesterov { gradient.lerp(&momentum, config.momentum) } else { momentum.copy() };
    let rows = direction.size()[0];
    let matrix = direction.contiguous().view([rows, -1]);
    let longest = matrix.size().into_iter().max().unwrap_or(1) as f64;
    let step = orthogonalize(&matrix, precision).view_as(&param.tensor) * (lr * (ADAMW_RMS * longest.sqrt()));
    let decay = if config.decays(param.role) { config.weight_decay } else { 0.0 };
    let weight = &param.tensor * (lr * -decay + 1.0) - step;
    assign(velocity, &momentum, guard);
    assign(&param.tensor, &weight, guard);
}

fn assign(target: &Tensor, value: &Tensor, guard: Option<&Tensor>) {
    match guard {
        Some(guard) => target.shallow_clone().copy_(&value.where_self(&guard.isfinite(), target)),
        None => target.shallow_clone().copy_(value),
    }
}

/// Approximately U Vt of the singular value decomposition U S Vt of `matrix` `[m, n]`. Computed in bf16 on a GPU, as by its authors, and
/// on a CPU for [`Precision::Bf16`].
fn orthogonalize(matrix: &Tensor, precision: Precision) -> Tensor {
    let in_bf16 = matrix.device().is_cuda() || precision == Precision::Bf16;
    let kind = if in_bf16 { Kind::BFloat16 } else { matrix.kind() };
    let size = matrix.size();
    let is_tall = size[0] > size[1];
    let x = matrix / (matrix.norm() + 1e-7);
    let x = if is_tall { x.tr() } else { x }.to_kind(kind);
    // The Gram matrix squares the condition number, for which bf16 has too few digits.
    let by_gram = !in_bf16 && x.size()[1] >= 2 * x.size()[0];
    let x = if by_gram { iterate_on_gram(&x) } else { iterate(x) };
    if is_tall { x.tr() } else { x }.to_kind(matrix.kind())
}

/// The iteration of [`COEFFICIENTS`] on `x` `[m, n]`.
fn iterate(mut x: Tensor) -> Tensor {
    let [a, ..] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let even = even_terms(&x.matmul(&x.tr()));
        x = multiply_add((&x, a), (&even, &x), 1.0);
    }
    x
}

/// [`iterate`] with m^2 n multiplications twice in place of ten times. Every iterate is P X, with a symmetric P `[m, m]` that commutes with
/// the Gram matrix G of X: P and the Gram matrix P G P of the iterate are iterated, and P X is formed once.
fn iterate_on_gram(x: &Tensor) -> Tensor {
    let [a, ..] = COEFFICIENTS;
    let identity = Tensor::eye(x.size()[0], (x.kind(), x.device())) * a;
    let mut gram = x.matmul(&x.tr());
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
    multiply_add((gram, b), (gram, gram), c)
}

/// beta S + alpha L R of matrices, in one operation; tch's `addmm` takes no factors.
fn multiply_add((s, beta): (&Tensor, f64), (l, r): (&Tensor, &Tensor), alpha: f64) -> Tensor {
    s.unsqueeze(0).baddbmm(&l.unsqueeze(0), &r.unsqueeze(0), beta, alpha).squeeze_dim(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
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
            let difference =
                (orthogonalize(&matrix, Precision::F32) - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-10, "{rows} x {columns}: {difference}");
        }
    }

    #[test]
    fn singular_values_end_near_one() {
        let random =
            Tensor::from_slice(&(0..96).map(|i| f64::sin(1.7 * f64::from(i * i))).collect::<Vec<_>>());
        for precision in [Precision::F32, Precision::Bf16] {
            let (_, s, _) = orthogonalize(&random.view([8, 12]), precision).svd(true, false);
            let range = [s.min(), s.max()].map(|value| value.double_value(&[]));
            assert!(range[0] > 0.6 && range[1] < 1.25, "{precision:?}: {range:?}");
        }
    }

    #[test]
    fn a_non_finite_guard_changes_nothing() {
        let config = OptimConfig { kind: OptimKind::Muon, ..OptimConfig::default() };
        let weight = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let param = Param { name: "w".into(), tensor: weight.copy(), role: Role::Weight };
        let (gradient, velocity, lr) = (weight.copy() * 0.5, weight.zeros_like(), Tensor::from(0.1));
        let config = (&config, Precision::F32);
        update(config, &param, &gradient, &velocity, &lr, Some(&Tensor::from(f64::NAN)));
        assert_eq!((param.tensor.copy(), velocity.copy()), (weight.copy(), weight.zeros_like()));
        update(config, &param, &gradient, &velocity, &lr, Some(&Tensor::from(1.0)));
        assert!(param.tensor != weight && velocity != weight.zeros_like());
    }
}
