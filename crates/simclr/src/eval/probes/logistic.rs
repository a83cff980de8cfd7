//! The objective of the linear classifier, its gradient and its curvature, for many classifiers at once: scaled `x`
//! `[D, n, F]` and labels `[D, n]` of D sets of images, and L penalties for each, to J and dJ at points (W class by class
//! `[K, F]`, then b `[K]`), for the solver in `lbfgs`. The L classifiers of a set share every product with its `x`.
//!
//! Logits are computed as W x^T `[K, m]` and gradients as r x with r `[K, m]`: with few classes these are two to five times
//! as fast in MKL as x W^T and x^T r. With L penalties there are L K rows in place of K, which is two to three times as
//! fast again for each (measured with F = 3,072 and L = 8).

use tch::{Device, Kind, Tensor};

use crate::eval::probes::lbfgs::{Functions, Lbfgs, Minimum};
use crate::eval::probes::linear::Standard;

/// Images of one classifier: raw features `[n, F]`, how they are scaled, labels `[n]`.
pub(crate) struct Sample<'a> {
    pub(crate) features: Tensor,
    pub(crate) standard: &'a Standard,
    pub(crate) labels: Tensor,
}

/// J on D sets of images.
#[derive(Debug)]
pub(crate) struct Problems {
    blocks: Vec<Block>,
    /// Images of each set `[D, 1]`, `f64`.
    rows: Tensor,
    /// R: F, or where there are fewer rows than features, the largest rank of the rows.
    width: i64,
    classes: i64,
    /// Of the products; sums over blocks are always `f64`.
    kind: Kind,
    /// For each set `[F, R]`, orthonormal columns: the directions in which the rows differ, where these are fewer than F.
    bases: Option<Vec<Tensor>>,
    moments: Moments,
}

/// Rows of all sets that stay in the processor's cache between the two products.
#[derive(Debug)]
struct Block {
    /// `[D, m, R]`; rows of zeros below sets that have fewer.
    x: Tensor,
    /// `[D, 1, 1, m]`.
    labels: Tensor,
    /// 1, and 0 for the rows that only fill up: `[D, 1, 1, m]`. None where there are no such rows.
    valid: Option<Tensor>,
}

/// Second moments of the features, for the preconditioner.
#[derive(Debug)]
enum Moments {
    /// `[D, R]`, of uncorrelated coordinates.
    Diagonal(Tensor),
    /// `[D, F, F]`.
    Full(Tensor),
    /// Very wide features are not preconditioned.
    Unknown,
}

/// The approximate Hessian of each class's weights, ready to be divided by.
enum Curvature {
    /// `[D, L, 1, R]`, its inverse.
    Diagonal(Tensor),
    /// `[D, L, F, F]`, its Cholesky factor, in f32: it is approximate anyway, and solving with a factor keeps the direction
    /// one of descent.
    Full(Tensor),
}

/// Rows of a block on the CPU, and logits of a block on a GPU, at most.
const BLOCK: i64 = 1024;
const LOGITS: i64 = 1 << 26;
/// From this many numbers on, products in `f32`: rounding averages out over so many rows (the gradient's error stays
/// near 1e-7, below the tolerance), and half the memory is read.
const SINGLE: i64 = 1 << 21;
/// From this tolerance on, products in `f32` however few rows there are.
const COARSE: f64 = 1e-4;
/// Rows from which the preconditioner's moments are taken: it may be approximate.
const MOMENT_ROWS: i64 = 10_000;
/// Widest features that are preconditioned: the factorisation costs F^3 / 3.
const MOMENT_WIDTH: i64 = 4096;
/// Narrowest features that are factorised one penalty at a time, in little memory.
const WIDE: i64 = 512;

impl Problems {
    /// Over `samples` of like size, at least one, to be solved to `tolerance`.
    pub(crate) fn new(samples: &[Sample<'_>], classes: i64, tolerance: f64) -> Self {
        let most = samples.iter().map(Sample::rows).max().expect("at least one set of images");
        let width = samples[0].features.size()[1];
        if in_row_space(most, width) {
            return Self::in_row_space(samples, classes, tolerance);
        }
        let kind = if most * width >= SINGLE || tolerance >= COARSE { Kind::Float } else { Kind::Double };
        let moments = if width <= MOMENT_WIDTH {
            Moments::Full(Tensor::stack(
                &samples.iter().map(|sample| sample.moments(kind)).collect::<Vec<_>>(),
                0,
            ))
        } else {
            Moments::Unknown
        };
        let rows = |sample: usize, from: i64, to: i64| samples[sample].scaled(from, to);
        let blocks = blocks(samples, (width, classes), kind, &rows);
        let rows = row_counts(samples);
        Self { blocks, rows, width, classes, kind, bases: None, moments }
    }

    /// With fewer rows than features, the best W lies in the span of the rows (any part outside of it costs penalty and
    /// changes no product): `x = U S V^T` turns `[n, F]` into `U S` `[n, R]`, R <= n, and W into `V W'`, |W| = |W'|.
    fn in_row_space(samples: &[Sample<'_>], classes: i64, tolerance: f64) -> Self {
        let kind = if tolerance >= COARSE { Kind::Float } else { Kind::Double };
        let spans: Vec<Span> =
            samples.iter().map(|sample| Span::of(&sample.scaled(0, sample.rows()))).collect();
        // One image of a class alone spans nothing; a tensor of no columns has no unambiguous shape.
        let width = spans.iter().map(|span| span.squares.size()[0]).max().unwrap_or(0).max(1);
        let moments = spans.iter().zip(samples).map(|(span, sample)| {
            let squares = &span.squares / sample.rows() as f64;
            squares.constant_pad_nd([0, width - squares.size()[0]])
        });
        let moments = Moments::Diagonal(Tensor::stack(&moments.collect::<Vec<_>>(), 0));
        let rows = |sample: usize, from: i64, to: i64| {
            let own = spans[sample].coordinates.slice(0, from, to, 1);
            let missing = width - own.size()[1];
            own.constant_pad_nd([0, missing])
        };
        let blocks = blocks(samples, (width, classes), kind, &rows);
        let rows = row_counts(samples);
        let bases = Some(spans.into_iter().map(|span| span.basis).collect());
        Self { blocks, rows, width, classes, kind, bases, moments }
    }

    fn sets(&self) -> i64 {
        self.rows.size()[0]
    }

    fn device(&self) -> Device {
        self.rows.device()
    }

    /// Zeros: a point for each of `penalties` penalties of each set, `[D L, d]`.
    pub(crate) fn origin(&self, penalties: usize) -> Tensor {
        let size = [self.sets() * penalties as i64, (self.width + 1) * self.classes];
        Tensor::zeros(size, (Kind::Double, self.device()))
    }

    /// W `[F, K]` and b `[K]` of a point of set `set`, over the scaled features.
    pub(crate) fn unpack(&self, set: usize, point: &[f64]) -> (Tensor, Tensor) {
        let (weight, bias) = self.split(point);
        let Some(bases) = &self.bases else { return (weight, bias) };
        let basis = &bases[set];
        (basis.matmul(&weight.narrow(0, 0, basis.size()[1])), bias)
    }

    /// W `[R, K]` and b `[K]` of a point, over what [`Problems::project`] gives.
    pub(crate) fn split(&self, point: &[f64]) -> (Tensor, Tensor) {
        let theta = Tensor::from_slice(point).to_device(self.device());
        let weights = self.classes * self.width;
        let weight = theta.narrow(0, 0, weights).view([self.classes, self.width]);
        (weight.transpose(0, 1).contiguous(), theta.narrow(0, weights, self.classes))
    }

    /// Scaled features `[m, F]` as set `set` sees them, `[m, R]`.
    pub(crate) fn project(&self, set: usize, x: Tensor) -> Tensor {
        let Some(bases) = &self.bases else { return x };
        let coordinates = x.matmul(&bases[set]);
        let missing = self.width - coordinates.size()[1];
        coordinates.constant_pad_nd([0, missing])
    }

    /// The minima for each of the penalties `lambdas` `[D, L]` (set by set) from `start` `[D L, d]`.
    pub(crate) fn solve(&self, start: Tensor, lambdas: &[f64], solver: &Lbfgs) -> Vec<Minimum> {
        let lambdas = Tensor::from_slice(lambdas).to_device(self.device()).view([self.sets(), -1]);
        let curvature = self.curvature(&lambdas);
        let mut grid = Grid { problems: None, whole: self, lambdas, curvature };
        solver.minimise_all(start, &mut grid)
    }

    /// Mean of p (1 - p) at W = 0, the start.
    fn spread(&self) -> f64 {
        let classes = self.classes as f64;
        (1.0 - 1.0 / classes) / classes
    }

    /// spread * moments + lambda, nearly the Hessian of each class's weights at W = 0. Correlated
    /// features make J a long valley; seen through this matrix it is a bowl, and a tenth of the iterations do.
    fn curvature(&self, lambdas: &Tensor) -> Option<Curvature> {
        // A small ridge keeps constant and repeated features from making it singular.
        let ridge = (lambdas + 1e-6 * self.spread()).unsqueeze(2);
        match &self.moments {
            Moments::Diagonal(moments) => {
                let hessian = moments.unsqueeze(1) * self.spread() + ridge;
                Some(Curvature::Diagonal(hessian.reciprocal().unsqueeze(2)))
            }
            Moments::Full(moments) => self.factors(&(moments * self.spread()), &ridge).map(Curvature::Full),
            Moments::Unknown => None,
        }
    }

    /// `[D, L, F, F]` of `moments` `[D, F, F]` + `ridge` `[D, L, 1]`.
    fn factors(&self, moments: &Tensor, ridge: &Tensor) -> Option<Tensor> {
        let factor = |moments: &Tensor, ridge: &Tensor| {
            let hessian = moments + ridge.expand([-1, -1, self.width], false).diag_embed(0, -2, -1);
            // Half the time in f32, where a small penalty may leave it singular.
            let single = hessian.to_kind(Kind::Float).f_linalg_cholesky(false);
            single
                .or_else(|_| hessian.f_linalg_cholesky(false))
                .ok()
                .map(|factor| factor.to_kind(Kind::Float))
        };
        if self.width < WIDE {
            return factor(&moments.unsqueeze(1), ridge);
        }
        let mut factors = Vec::new();
        for set in 0..moments.size()[0] {
            for penalty in 0..ridge.size()[1] {
                let ridge = ridge.narrow(0, set, 1).narrow(1, penalty, 1);
                factors.push(factor(&moments.narrow(0, set, 1).unsqueeze(1), &ridge)?);
            }
        }
        Some(Tensor::cat(&factors, 0).view([moments.size()[0], -1, self.width, self.width]))
    }

    /// J `[D, L]` and its gradient `[D L, d]` at `points` `[D L, d]`.
    fn evaluate(&self, points: &Tensor, lambdas: &Tensor) -> (Tensor, Tensor) {
        let (sets, penalties) = (lambdas.size()[0], lambdas.size()[1]);
        let weights = self.classes * self.width;
        let (weight, bias) = (points.narrow(1, 0, weights), points.narrow(1, weights, self.classes));
        let flat = |of: &Tensor| of.view([sets, penalties * self.classes, -1]);
        let (narrow_w, narrow_b) =
            (flat(&weight.to_kind(self.kind).contiguous()), flat(&bias.to_kind(self.kind).contiguous()));
        let mut entropy = lambdas.zeros_like();
        let mut slope =
            Tensor::zeros([sets, penalties * self.classes, self.width], (Kind::Double, self.device()));
        let mut slope_b = Tensor::zeros([sets, penalties, self.classes], (Kind::Double, self.device()));
        for block in &self.blocks {
            let logits = narrow_b.baddbmm(&narrow_w, &block.x.transpose(1, 2), 1.0, 1.0);
            let log_p = logits.view([sets, penalties, self.classes, -1]).log_softmax(2, self.kind);
            let (residual, hit) = block.residual(log_p, penalties);
            entropy -= hit;
            slope += flat(&residual).bmm(&block.x);
            slope_b += residual.sum_dim_intlist([3].as_slice(), false, Kind::Double);
        }
        let rows = self.rows.unsqueeze(2);
        let penalty = lambdas.view([-1, 1]);
        let slope = (slope / &rows).view([-1, weights]) + &weight * &penalty;
        let gradient = Tensor::cat(&[slope, (slope_b / rows).view([-1, self.classes])], 1);
        let squares =
            weight.square().sum_dim_intlist([1].as_slice(), false, Kind::Double).view([sets, penalties]);
        (entropy / &self.rows + squares * lambdas * 0.5, gradient)
    }

    /// The approximate inverse Hessian times `vectors` `[D L, d]`; b is independent of W, for features are centred.
    fn uncurve(&self, curvature: &Curvature, vectors: &Tensor, sets: i64) -> Tensor {
        let weights = self.classes * self.width;
        let (weight, bias) = (vectors.narrow(1, 0, weights), vectors.narrow(1, weights, self.classes));
        let weight = weight.reshape([sets, -1, self.classes, self.width]);
        let weight = match curvature {
            Curvature::Diagonal(inverse) => weight * inverse,
            Curvature::Full(factor) => {
                let columns = weight.to_kind(Kind::Float).transpose(2, 3);
                // Not cholesky_solve, which copies the factors in every call: most of the time with wide features.
                let half = factor.linalg_solve_triangular(&columns, false, true, false);
                let whole = factor.transpose(2, 3).linalg_solve_triangular(&half, true, true, false);
                whole.transpose(2, 3).to_kind(Kind::Double)
            }
        };
        Tensor::cat(&[weight.reshape([-1, weights]), bias / self.spread()], 1)
    }

    /// The same over some of the sets.
    fn select(&self, sets: &Tensor) -> Self {
        let pick = |of: &Tensor| of.index_select(0, sets);
        let blocks = self.blocks.iter().map(|block| Block {
            x: pick(&block.x),
            labels: pick(&block.labels),
            valid: block.valid.as_ref().map(pick),
        });
        Self {
            blocks: blocks.collect(),
            rows: pick(&self.rows),
            width: self.width,
            classes: self.classes,
            kind: self.kind,
            bases: None,
            moments: Moments::Unknown,
        }
    }
}

impl Block {
    /// p - 1 where the label is, else p `[D, L, K, m]`, from log p; and the sum over rows of log p of the labels `[D, L]`.
    fn residual(&self, log_p: Tensor, penalties: i64) -> (Tensor, Tensor) {
        let labels = self.labels.expand([-1, penalties, -1, -1], false);
        let mut hit = log_p.gather(2, &labels, false);
        let mut residual = log_p.exp().scatter_add(2, &labels, &hit.full_like(-1.0));
        if let Some(valid) = &self.valid {
            (hit, residual) = (hit * valid, residual * valid);
        }
        (residual, hit.sum_dim_intlist([2, 3].as_slice(), false, Kind::Double))
    }
}

/// D sets times L penalties as the solver sees them; both become fewer as classifiers are done.
struct Grid<'a> {
    whole: &'a Problems,
    /// Some of the sets of `whole`, once others are done.
    problems: Option<Problems>,
    /// `[D, L]`.
    lambdas: Tensor,
    curvature: Option<Curvature>,
}

impl Grid<'_> {
    fn problems(&self) -> &Problems {
        self.problems.as_ref().unwrap_or(self.whole)
    }
}

impl Functions for Grid<'_> {
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor) {
        let (values, gradients) = self.problems().evaluate(points, &self.lambdas);
        (values.view([-1]), gradients)
    }

    fn inverse(&self, vectors: &Tensor) -> Option<Tensor> {
        let curvature = self.curvature.as_ref()?;
        Some(self.problems().uncurve(curvature, vectors, self.lambdas.size()[0]))
    }

    /// Keeps the sets that are not done, and in each of them as many penalties as the set with most has left.
    fn shrink(&mut self, ended: &[bool]) -> Option<Vec<i64>> {
        let penalties = self.lambdas.size()[1] as usize;
        let left = |set: &[bool]| set.iter().filter(|ended| !**ended).count();
        let sets: Vec<(usize, &[bool])> =
            ended.chunks(penalties).enumerate().filter(|(_, set)| left(set) > 0).collect();
        let most = sets.iter().map(|(_, set)| left(set)).max()?;
        if sets.len() * most == ended.len() {
            return None;
        }
        let mut stay = Vec::new();
        for (at, set) in &sets {
            let (done, open): (Vec<usize>, Vec<usize>) = (0..penalties).partition(|&penalty| set[penalty]);
            let row = |penalty: usize| (at * penalties + penalty) as i64;
            stay.extend(open.into_iter().chain(done).take(most).map(row));
        }
        let rows = Tensor::from_slice(&stay).to_device(self.lambdas.device());
        let regrid = |of: &Tensor| {
            let size = of.size();
            let shape = [&[sets.len() as i64, most as i64], &size[2..]].concat();
            of.flatten(0, 1).index_select(0, &rows).view(&shape[..])
        };
        self.lambdas = regrid(&self.lambdas);
        self.curvature = self.curvature.take().map(|curvature| match curvature {
            Curvature::Diagonal(inverse) => Curvature::Diagonal(regrid(&inverse)),
            Curvature::Full(factor) => Curvature::Full(regrid(&factor)),
        });
        if sets.len() < ended.len() / penalties {
            let sets: Vec<i64> = sets.iter().map(|(at, _)| *at as i64).collect();
            let sets = Tensor::from_slice(&sets).to_device(self.lambdas.device());
            self.problems = Some(self.problems().select(&sets));
        }
        Some(stay)
    }
}

impl Sample<'_> {
    fn rows(&self) -> i64 {
        self.features.size()[0]
    }

    /// Rows `from..to`, scaled, `f64`.
    fn scaled(&self, from: i64, to: i64) -> Tensor {
        self.standard.apply(&self.features.slice(0, from, to, 1))
    }

    /// `[F, F]`, `f64`, from some of the rows.
    fn moments(&self, kind: Kind) -> Tensor {
        let rows = self.rows();
        let some = self.features.slice(0, 0, rows, (rows / MOMENT_ROWS).max(1));
        let some = self.standard.apply(&some).to_kind(kind);
        some.transpose(0, 1).matmul(&some).to_kind(Kind::Double) / some.size()[0] as f64
    }
}

/// Rows as coordinates in the directions in which they differ.
struct Span {
    /// `[n, R]`.
    coordinates: Tensor,
    /// `[F, R]`.
    basis: Tensor,
    /// `[R]`, squared lengths of the columns.
    squares: Tensor,
}

impl Span {
    /// Of `x` `[n, F]`.
    fn of(x: &Tensor) -> Self {
        let (squares, left) = x.matmul(&x.transpose(0, 1)).linalg_eigh("L");
        // Directions in which the rows do not differ but by rounding would be divided by nearly nothing.
        let least = squares.max() * 1e-12;
        let kept = squares.gt_tensor(&least).nonzero().view([-1]);
        let (squares, left) = (squares.index_select(0, &kept), left.index_select(1, &kept));
        let singular = squares.sqrt();
        let basis = x.transpose(0, 1).matmul(&left) / &singular;
        Self { coordinates: left * singular, basis, squares }
    }
}

/// Whether `rows` images are solved in the span of their rows.
fn in_row_space(rows: i64, width: i64) -> bool {
    2 * rows <= width
}

/// Bytes that a classifier takes while it is solved: pairs of the solver's memory and its working copies, and its factor.
pub(crate) fn bytes((rows, width): (i64, i64), classes: i64) -> i64 {
    const VECTORS: i64 = 48;
    let (width, factor) = if in_row_space(rows, width) { (rows, 0) } else { (width, 4 * width * width) };
    8 * VECTORS * classes * (width + 1) + factor
}

fn row_counts(samples: &[Sample<'_>]) -> Tensor {
    let rows: Vec<f64> = samples.iter().map(|sample| sample.rows() as f64).collect();
    Tensor::from_slice(&rows).to_device(samples[0].features.device()).unsqueeze(1)
}

/// `rows(set, from, to)` of all sets, block by block; a set that has fewer rows is filled up.
fn blocks(
    samples: &[Sample<'_>],
    (width, classes): (i64, i64),
    kind: Kind,
    rows: &dyn Fn(usize, i64, i64) -> Tensor,
) -> Vec<Block> {
    let most = samples.iter().map(Sample::rows).max().unwrap_or(0);
    let device = samples[0].features.device();
    let size = if device == Device::Cpu { BLOCK } else { (LOGITS / classes).max(BLOCK) };
    let filled = |of: Tensor, height: i64| {
        let missing = height - of.size()[0];
        if missing == 0 { of } else { of.constant_pad_nd([0, 0, 0, missing]) }
    };
    let block = |from: i64| {
        let height = size.min(most - from);
        let part = |sample: &Sample<'_>| (from.min(sample.rows()), (from + height).min(sample.rows()));
        let (mut x, mut labels, mut valid) = (Vec::new(), Vec::new(), Vec::new());
        for (at, sample) in samples.iter().enumerate() {
            let (from, to) = part(sample);
            x.push(filled(rows(at, from, to).to_kind(kind), height));
            labels
                .push(filled(sample.labels.slice(0, from, to, 1).to_kind(Kind::Int64).unsqueeze(1), height));
            valid.push(filled(Tensor::ones([to - from, 1], (kind, device)), height));
        }
        let line = |of: &[Tensor]| Tensor::stack(of, 0).view([samples.len() as i64, 1, 1, height]);
        let short = samples.iter().any(|sample| sample.rows() < from + height);
        let x = Tensor::stack(&x, 0).view([samples.len() as i64, height, width]);
        Block { x, labels: line(&labels), valid: short.then(|| line(&valid)) }
    };
    (0..most).step_by(size as usize).map(block).collect()
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

    /// One set of images.
    fn problem(x: &Tensor, standard: &Standard, y: &Tensor, classes: i64) -> Problems {
        let sample = Sample { features: x.shallow_clone(), standard, labels: y.shallow_clone() };
        Problems::new(&[sample], classes, 1e-5)
    }

    fn solve(problem: &Problems, start: &[f64], lambda: f64, solver: &Lbfgs) -> Minimum {
        problem.solve(Tensor::from_slice(start).unsqueeze(0), &[lambda], solver).remove(0)
    }

    /// J and its gradient.
    fn at(problem: &Problems, point: &[f64], lambda: f64) -> (f64, Vec<f64>) {
        let lambda = Tensor::from_slice(&[lambda]).view([1, 1]);
        let (value, gradient) = problem.evaluate(&Tensor::from_slice(point).unsqueeze(0), &lambda);
        (value.double_value(&[0, 0]), Vec::try_from(gradient.view([-1])).unwrap())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (x, y) = clusters(50, 1);
        let problem = problem(&x, &Standard::of(&x), &y, 3);
        let point: Vec<f64> = (0..15).map(|i| (f64::from(i) * 1.7).sin()).collect();
        let (_, gradient) = at(&problem, &point, 0.3);
        for i in 0..15 {
            let moved = |shift: f64| {
                let mut moved = point.clone();
                moved[i] += shift;
                at(&problem, &moved, 0.3).0
            };
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
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
        let single = problem(&x, &plain, &y, 5);
        assert_eq!((single.kind, single.blocks.len()), (Kind::Float, 17));
        let halves =
            |part: i64| problem(&x.narrow(0, part * 8500, 8500), &plain, &y.narrow(0, part * 8500, 8500), 5);
        let point: Vec<f64> = (0..5 * 129).map(|i| 0.1 * (i as f64 * 1.3).sin()).collect();
        let at = |problem: &Problems| at(problem, &point, 0.0);
        let ((value, gradient), (a, b)) = (at(&single), (at(&halves(0)), at(&halves(1))));
        assert_eq!(halves(0).kind, Kind::Double);
        assert!((value - (a.0 + b.0) / 2.0).abs() < 1e-6);
        let worst = gradient.iter().zip(a.1.iter().zip(&b.1)).map(|(g, (a, b))| (g - (a + b) / 2.0).abs());
        assert!(worst.fold(0.0, f64::max) < 1e-6);
    }

    #[test]
    fn two_starts_agree() {
        let (x, y) = clusters(200, 2);
        let problem = problem(&x, &Standard::of(&x), &y, 3);
        let solver = Lbfgs { tolerance: 1e-9, ..Lbfgs::default() };
        let near = solve(&problem, &[0.0; 15], 1e-2, &solver);
        let far: Vec<f64> = (0..15).map(|i| 5.0 * (f64::from(i) * 2.3).cos()).collect();
        let far = solve(&problem, &far, 1e-2, &solver);
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
        let narrow = problem(&x, &standard, &y, 4);
        assert_eq!(
            (narrow.width, narrow.origin(1).size()),
            (19, vec![1, 80]),
            "centred rows span one dimension less"
        );
        // The same rows three times over are too many for the row space, and have the same minimum.
        let (more_x, more_y) = (x.repeat([3, 1]), y.repeat([3]));
        let wide = problem(&more_x, &standard, &more_y, 4);
        assert!(wide.bases.is_none());
        let solver = Lbfgs { tolerance: 1e-10, ..Lbfgs::default() };
        let a = solve(&narrow, &[0.0; 80], 1e-2, &solver);
        let b = solve(&wide, &[0.0; 61 * 4], 1e-2, &solver);
        assert!((a.value - b.value).abs() < 1e-12, "{} {}", a.value, b.value);
        let ((w, _), (v, _)) = (narrow.unpack(0, &a.x), wide.unpack(0, &b.x));
        assert_eq!(w.size(), [60, 4]);
        assert!((w - v).abs().max().double_value(&[]) < 1e-7);
    }

    /// Sets of different sizes, and several penalties: each classifier is the one that is found alone, over all features and
    /// in the row space.
    #[test]
    fn classifiers_solved_together_are_those_solved_alone() {
        tch::set_num_threads(1);
        let solver = Lbfgs { tolerance: 1e-10, ..Lbfgs::default() };
        for width in [6, 90] {
            let rows = [37, 20, 31];
            let sets: Vec<(Tensor, Tensor)> = rows
                .iter()
                .enumerate()
                .map(|(at, &rows)| {
                    let x = crate::test_normals(20 + at as u64, &[rows, width]).to_kind(Kind::Double);
                    (x, Tensor::arange(rows, (Kind::Int64, tch::Device::Cpu)).remainder(4))
                })
                .collect();
            let standards: Vec<Standard> = sets.iter().map(|(x, _)| Standard::of(x)).collect();
            let samples: Vec<Sample<'_>> = sets
                .iter()
                .zip(&standards)
                .map(|((x, y), standard)| Sample {
                    features: x.shallow_clone(),
                    standard,
                    labels: y.shallow_clone(),
                })
                .collect();
            let all = Problems::new(&samples, 4, 1e-5);
            let lambdas = [3.0, 0.3, 0.01];
            let together = all.solve(all.origin(3), &lambdas.repeat(3), &solver);
            for (at, found) in together.iter().enumerate() {
                let (set, lambda) = (at / 3, lambdas[at % 3]);
                let one = problem(&sets[set].0, &standards[set], &sets[set].1, 4);
                let alone = one.solve(one.origin(1), &[lambda], &solver).remove(0);
                assert!((found.value - alone.value).abs() < 1e-12, "{width} {at}");
                let ((w, b), (v, c)) = (all.unpack(set, &found.x), one.unpack(0, &alone.x));
                assert!((w - v).abs().max().double_value(&[]) < 1e-6, "{width} {at}");
                assert!((b - c).abs().max().double_value(&[]) < 1e-6, "{width} {at}");
            }
        }
    }
}
