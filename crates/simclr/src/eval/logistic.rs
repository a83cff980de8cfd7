//! The objective of the linear classifier, its gradient and its curvature: scaled `x` `[n, F]`, labels `[n]` and a point
//! (W class by class `[K, F]`, then b `[K]`) to J and dJ, for the solver in `lbfgs`.
//!
//! Logits are computed as W x^T `[K, m]` and gradients as r x with r `[K, m]`: with few classes these are two to five times
//! as fast in MKL as x W^T and x^T r.

use tch::{Kind, Tensor};

use super::{
    lbfgs::{Inverse, Lbfgs, Minimum},
    linear::Standard,
};

/// J on one set of features; the point is W class by class, then b, as one vector.
#[derive(Debug)]
pub(super) struct Problem {
    /// Rows `[m, R]` and labels `[1, m]`, in blocks that stay in the processor's cache between the two products.
    blocks: Vec<(Tensor, Tensor)>,
    rows: i64,
    /// R: F, or where there are fewer rows than features, the rank of the rows.
    width: i64,
    classes: i64,
    /// Of the products; sums over blocks are always `f64`.
    kind: Kind,
    /// `[F, R]`, orthonormal columns: the directions in which the rows differ, where these are fewer than F.
    basis: Option<Tensor>,
    moments: Moments,
}

/// Second moments of the features, for the preconditioner.
#[derive(Debug)]
enum Moments {
    /// `[R]`, of uncorrelated coordinates.
    Diagonal(Tensor),
    /// `[F, F]`.
    Full(Tensor),
    /// Very wide features are not preconditioned.
    Unknown,
}

/// The approximate Hessian of each class's weights, ready to be divided by.
enum Curvature {
    /// `[R]`, its inverse.
    Diagonal(Tensor),
    /// `[F, F]`, its Cholesky factor, in f32: it is approximate anyway, and solving with a factor keeps the direction one
    /// of descent.
    Full(Tensor),
}

/// Rows of a block.
const BLOCK: i64 = 1024;
/// From this many numbers on, products in `f32`: rounding averages out over so many rows (the gradient's error stays
/// near 1e-7, below the tolerance), and half the memory is read.
const SINGLE: i64 = 1 << 21;
/// Rows from which the preconditioner's moments are taken: it may be approximate.
const MOMENT_ROWS: i64 = 10_000;
/// Widest features that are preconditioned: the factorisation costs F^3 / 3.
const MOMENT_WIDTH: i64 = 4096;

impl Problem {
    /// Over `features` `[n, F]`, as `standard` scales them, and `labels` `[n]`.
    pub(super) fn new(features: &Tensor, standard: &Standard, labels: &Tensor, classes: i64) -> Self {
        let (rows, width) = (features.size()[0], features.size()[1]);
        if 2 * rows <= width {
            return Self::in_row_space(&standard.apply(features), labels, classes);
        }
        let kind = if rows * width >= SINGLE { Kind::Float } else { Kind::Double };
        let moments = if width <= MOMENT_WIDTH {
            let some = standard.apply(&features.slice(0, 0, rows, (rows / MOMENT_ROWS).max(1))).to_kind(kind);
            Moments::Full(some.transpose(0, 1).matmul(&some).to_kind(Kind::Double) / some.size()[0] as f64)
        } else {
            Moments::Unknown
        };
        let blocks = features.split(BLOCK, 0).into_iter().map(|x| standard.apply(&x).to_kind(kind));
        let blocks = blocks.zip(lines(labels)).collect();
        Self { blocks, rows, width, classes, kind, basis: None, moments }
    }

    /// With fewer rows than features, the best W lies in the span of the rows (any part outside of it costs penalty and
    /// changes no product): `x = U S V^T` turns `[n, F]` into `U S` `[n, R]`, R <= n, and W into `V W'`, |W| = |W'|.
    fn in_row_space(x: &Tensor, labels: &Tensor, classes: i64) -> Self {
        let rows = x.size()[0];
        let (squares, left) = x.matmul(&x.transpose(0, 1)).linalg_eigh("L");
        // Directions in which the rows do not differ but by rounding would be divided by nearly nothing.
        let least = squares.max().double_value(&[]) * 1e-12;
        let kept = squares.gt(least).nonzero().view([-1]);
        let (squares, left) = (squares.index_select(0, &kept), left.index_select(1, &kept));
        let singular = squares.sqrt();
        let basis = x.transpose(0, 1).matmul(&left) / &singular;
        let coordinates = left * &singular;
        let (width, moments) = (kept.size()[0], Moments::Diagonal(squares / rows as f64));
        let blocks = coordinates.split(BLOCK, 0).into_iter().zip(lines(labels)).collect();
        Self { blocks, rows, width, classes, kind: Kind::Double, basis: Some(basis), moments }
    }

    pub(super) fn origin(&self) -> Vec<f64> {
        vec![0.0; ((self.width + 1) * self.classes) as usize]
    }

    /// W `[K, R]` and b `[K]` of a point.
    fn split(&self, point: &[f64]) -> (Tensor, Tensor) {
        let theta = Tensor::from_slice(point);
        let weights = self.classes * self.width;
        (theta.narrow(0, 0, weights).view([self.classes, self.width]), theta.narrow(0, weights, self.classes))
    }

    /// W `[F, K]` and b `[K]` of a point, over the scaled features.
    pub(super) fn unpack(&self, point: &[f64]) -> (Tensor, Tensor) {
        let (weight, bias) = self.split(point);
        let weight = weight.transpose(0, 1);
        (self.basis.as_ref().map_or_else(|| weight.contiguous(), |basis| basis.matmul(&weight)), bias)
    }

    pub(super) fn solve(&self, start: Vec<f64>, lambda: f64, solver: &Lbfgs) -> Minimum {
        let curvature = self.curvature(lambda);
        let inverse = curvature.as_ref().map(|known| |vector: &[f64]| self.uncurve(known, vector));
        let inverse = inverse.as_ref().map(|inverse| inverse as &Inverse<'_>);
        solver.minimise_with(start, &mut |point, gradient| self.evaluate(point, lambda, gradient), inverse)
    }

    /// Mean of p (1 - p) at W = 0, the start.
    fn spread(&self) -> f64 {
        let classes = self.classes as f64;
        (1.0 - 1.0 / classes) / classes
    }

    /// spread * moments + lambda, nearly the Hessian of each class's weights at W = 0. Correlated
    /// features make J a long valley; seen through this matrix it is a bowl, and a tenth of the iterations do.
    fn curvature(&self, lambda: f64) -> Option<Curvature> {
        // A small ridge keeps constant and repeated features from making it singular.
        let ridge = lambda + 1e-6 * self.spread();
        match &self.moments {
            Moments::Diagonal(moments) => {
                Some(Curvature::Diagonal((moments * self.spread() + ridge).reciprocal()))
            }
            Moments::Full(moments) => {
                let hessian = moments * self.spread()
                    + Tensor::eye(self.width, (Kind::Double, moments.device())) * ridge;
                Some(Curvature::Full(hessian.f_linalg_cholesky(false).ok()?.to_kind(Kind::Float)))
            }
            Moments::Unknown => None,
        }
    }

    /// The approximate inverse Hessian times `vector`; b is independent of W, for features are centred.
    fn uncurve(&self, curvature: &Curvature, vector: &[f64]) -> Vec<f64> {
        let (weight, bias) = self.split(vector);
        let weight = match curvature {
            Curvature::Diagonal(inverse) => weight * inverse,
            Curvature::Full(factor) => {
                let columns = weight.to_kind(Kind::Float).transpose(0, 1);
                columns.cholesky_solve(factor, false).transpose(0, 1).to_kind(Kind::Double)
            }
        };
        let mut out = vec![0.0; vector.len()];
        let parts = [weight.reshape([-1]), bias / self.spread()];
        Tensor::cat(&parts, 0).copy_data(&mut out, vector.len());
        out
    }

    /// J at `point`; its gradient goes to `gradient`.
    fn evaluate(&self, point: &[f64], lambda: f64, gradient: &mut [f64]) -> f64 {
        let (weight, bias) = self.split(point);
        let mut entropy = 0.0;
        let mut slope = Tensor::zeros([self.classes, self.width], (Kind::Double, weight.device()));
        let mut slope_b = Tensor::zeros([self.classes], (Kind::Double, weight.device()));
        let (narrow_w, narrow_b) = (weight.to_kind(self.kind), bias.to_kind(self.kind).unsqueeze(1));
        for (x, labels) in &self.blocks {
            let log_p = (narrow_w.matmul(&x.transpose(0, 1)) + &narrow_b).log_softmax(0, self.kind);
            entropy -= log_p.gather(0, labels, false).sum(Kind::Double).double_value(&[]);
            let minus_one = Tensor::full(labels.size(), -1.0, (self.kind, labels.device()));
            let residual = log_p.exp().scatter_add(0, labels, &minus_one);
            slope += residual.matmul(x);
            slope_b += residual.sum_dim_intlist([1].as_slice(), false, Kind::Double);
        }
        slope = slope / self.rows as f64 + &weight * lambda;
        Tensor::cat(&[slope.view([-1]), slope_b / self.rows as f64], 0).copy_data(gradient, gradient.len());
        entropy / self.rows as f64 + 0.5 * lambda * weight.square().sum(Kind::Double).double_value(&[])
    }
}

/// Labels `[n]` as lines `[1, m]`, one for each block.
fn lines(labels: &Tensor) -> Vec<Tensor> {
    labels.to_kind(Kind::Int64).unsqueeze(0).split(BLOCK, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three overlapping clusters in 4 dimensions, one of which never changes.
    fn clusters(n: i64, seed: u64) -> (Tensor, Tensor) {
        tch::set_num_threads(1);
        let labels = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).remainder(3);
        let centres =
            Tensor::from_slice(&[1.0f32, 0.0, 0.0, 7.0, 0.0, 1.0, 0.0, 7.0, 0.0, 0.0, 1.0, 7.0]).view([3, 4]);
        let noise = crate::test_normals(seed, &[n, 4]) * Tensor::from_slice(&[0.7f32, 0.7, 0.7, 0.0]);
        (centres.index_select(0, &labels) + noise, labels)
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (x, y) = clusters(50, 1);
        let problem = Problem::new(&x, &Standard::of(&x), &y, 3);
        let point: Vec<f64> = (0..15).map(|i| (f64::from(i) * 1.7).sin()).collect();
        let mut gradient = vec![0.0; 15];
        problem.evaluate(&point, 0.3, &mut gradient);
        for i in 0..15 {
            let at = |shift: f64| {
                let mut moved = point.clone();
                moved[i] += shift;
                problem.evaluate(&moved, 0.3, &mut [0.0; 15])
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} {}", gradient[i]);
        }
    }

    #[test]
    fn single_precision_products_of_a_large_set_agree_with_double_ones() {
        tch::set_num_threads(1);
        let x = crate::test_normals(7, &[17_000, 128]).to_kind(Kind::Double);
        let y =
            crate::test_normals(9, &[17_000]).abs().multiply_scalar(10.0).to_kind(Kind::Int64).remainder(5);
        let plain = Standard::of(&x);
        let single = Problem::new(&x, &plain, &y, 5);
        assert_eq!((single.kind, single.blocks.len()), (Kind::Float, 17));
        let halves = |part: i64| {
            Problem::new(&x.narrow(0, part * 8500, 8500), &plain, &y.narrow(0, part * 8500, 8500), 5)
        };
        let point: Vec<f64> = (0..single.origin().len()).map(|i| 0.1 * (i as f64 * 1.3).sin()).collect();
        let at = |problem: &Problem| {
            let mut gradient = problem.origin();
            (problem.evaluate(&point, 0.0, &mut gradient), gradient)
        };
        let ((value, gradient), (a, b)) = (at(&single), (at(&halves(0)), at(&halves(1))));
        assert_eq!(halves(0).kind, Kind::Double);
        assert!((value - (a.0 + b.0) / 2.0).abs() < 1e-6);
        let worst = gradient.iter().zip(a.1.iter().zip(&b.1)).map(|(g, (a, b))| (g - (a + b) / 2.0).abs());
        assert!(worst.fold(0.0, f64::max) < 1e-6);
    }

    #[test]
    fn two_starts_agree() {
        let (x, y) = clusters(200, 2);
        let problem = Problem::new(&x, &Standard::of(&x), &y, 3);
        let solver = Lbfgs { tolerance: 1e-9, ..Lbfgs::default() };
        let near = problem.solve(problem.origin(), 1e-2, &solver);
        let far = problem.solve((0..15).map(|i| 5.0 * (f64::from(i) * 2.3).cos()).collect(), 1e-2, &solver);
        assert!((near.value - far.value).abs() < 1e-12, "{} {}", near.value, far.value);
        let distance = |i: usize| (near.x[i] - far.x[i]).abs();
        assert!((0..12).all(|i| distance(i) < 1e-6), "W is unique");
    }

    /// Wide features with few rows are solved in the rows' span: the same classifier as over all features.
    #[test]
    fn the_row_space_gives_the_same_minimum() {
        tch::set_num_threads(1);
        let x = crate::test_normals(8, &[20, 60]).to_kind(Kind::Double);
        let y = Tensor::arange(20, (Kind::Int64, tch::Device::Cpu)).remainder(4);
        let standard = Standard::of(&x);
        let narrow = Problem::new(&x, &standard, &y, 4);
        assert_eq!((narrow.width, narrow.origin().len()), (19, 80), "centred rows span one dimension less");
        // The same rows three times over are too many for the row space, and have the same minimum.
        let (more_x, more_y) = (x.repeat([3, 1]), y.repeat([3]));
        let wide = Problem::new(&more_x, &standard, &more_y, 4);
        assert!(wide.basis.is_none());
        let solver = Lbfgs { tolerance: 1e-10, ..Lbfgs::default() };
        let (a, b) = (narrow.solve(narrow.origin(), 1e-2, &solver), wide.solve(wide.origin(), 1e-2, &solver));
        assert!((a.value - b.value).abs() < 1e-12, "{} {}", a.value, b.value);
        let ((w, _), (v, _)) = (narrow.unpack(&a.x), wide.unpack(&b.x));
        assert_eq!(w.size(), [60, 4]);
        assert!((w - v).abs().max().double_value(&[]) < 1e-7);
    }
}
