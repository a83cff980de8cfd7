//! Objective of the linear classifier with its gradient and curvature, for many classifiers at once: scaled `x` `[D, n, F]`
//! and labels `[D, n]` of D sets of images to J and dJ at points (W class by class `[K, F]`, then b `[K]`), for the solver in
//! `lbfgs`.
//!
//! Logits are computed as W x^T `[K, m]` and gradients as r x with r `[K, m]`: with few classes these are two to five times
//! as fast in MKL as x W^T and x^T r.

use tch::{Device, Kind, Tensor};

use super::{
    curvature::{Curvature, Moments},
    lbfgs::{Functions, Minimum},
    standardise::Standardisation,
};
use crate::eval::options::Lbfgs;

/// Images of one classifier: raw features `[n, F]`, their scaling, labels `[n]`.
pub(super) struct Sample<'a> {
    pub(super) features: Tensor,
    pub(super) standard: &'a Standardisation,
    pub(super) labels: Tensor,
}

/// J on D sets of images.
#[derive(Debug)]
pub(super) struct Problems {
    blocks: Vec<Block>,
    /// Images of each set `[D]`, `f64`.
    rows: Tensor,
    /// R: F, or the largest rank of the rows if there are few rows.
    width: i64,
    classes: i64,
    /// Of the products; sums over blocks are always `f64`.
    kind: Kind,
    /// For each set with few rows an orthonormal basis of their span `[F, R]`.
    bases: Option<Vec<Tensor>>,
    /// None: no preconditioner, for very wide features.
    moments: Option<Moments>,
}

/// Rows of all sets that stay in the processor's cache between the two products.
#[derive(Debug)]
struct Block {
    /// `[D, m, R]`, padded with rows of zeros.
    x: Tensor,
    /// `[D, 1, m]`.
    labels: Tensor,
    /// 0 for padding, else 1: `[D, 1, m]`. None without padding.
    valid: Option<Tensor>,
}

/// Rows of a block on the CPU, and logits of a block on a GPU, at most.
const BLOCK: i64 = 1024;
const LOGITS: i64 = 1 << 26;
/// Features from this size on are multiplied in `f32`: rounding averages out over so many rows (the gradient's error stays
/// near 1e-7, below the tolerance), and half the memory is read.
const SINGLE: i64 = 1 << 21;
/// From this tolerance on, products are in `f32` for any number of rows.
const COARSE: f64 = 1e-4;
/// Rows that the preconditioner's moments are estimated from.
const MOMENT_ROWS: i64 = 10_000;
/// Widest preconditioned features: the factorisation costs F^3 / 3.
const MOMENT_WIDTH: i64 = 4096;

impl Problems {
    /// Over `samples` of similar size, at least one, to be solved to `tolerance`.
    pub(super) fn new(samples: &[Sample<'_>], classes: i64, tolerance: f64) -> Self {
        let most = samples.iter().map(Sample::rows).max().expect("at least one set of images");
        let width = samples[0].features.size()[1];
        if in_row_space(most, width) {
            return Self::in_row_space(samples, classes, tolerance);
        }
        let kind = if most * width >= SINGLE || tolerance >= COARSE { Kind::Float } else { Kind::Double };
        let moments = || samples.iter().map(|sample| sample.moments(kind)).collect::<Vec<_>>();
        let moments = (width <= MOMENT_WIDTH).then(|| Moments::Full(Tensor::stack(&moments(), 0)));
        let rows = |sample: usize, from: i64, to: i64| samples[sample].scaled(from, to);
        let blocks = blocks(samples, (width, classes), kind, &rows);
        Self { blocks, rows: row_counts(samples), width, classes, kind, bases: None, moments }
    }

    /// With fewer rows than features, the best W lies in the span of the rows (any part outside of it costs penalty and
    /// changes no product): `x = U S V^T` turns `[n, F]` into `U S` `[n, R]`, R <= n, and W into `V W'`, |W| = |W'|.
    fn in_row_space(samples: &[Sample<'_>], classes: i64, tolerance: f64) -> Self {
        let kind = if tolerance >= COARSE { Kind::Float } else { Kind::Double };
        let spans: Vec<Span> =
            samples.iter().map(|sample| Span::of(&sample.scaled(0, sample.rows()))).collect();
        // A single image spans nothing after centring; a tensor without columns has no unambiguous shape.
        let width = spans.iter().map(|span| span.squares.size()[0]).max().unwrap_or(0).max(1);
        let moments = spans.iter().zip(samples).map(|(span, sample)| {
            let squares = &span.squares / sample.rows() as f64;
            squares.constant_pad_nd([0, width - squares.size()[0]])
        });
        let moments = Some(Moments::Diagonal(Tensor::stack(&moments.collect::<Vec<_>>(), 0)));
        let rows = |sample: usize, from: i64, to: i64| {
            let own = spans[sample].coordinates.slice(0, from, to, 1);
            let missing = width - own.size()[1];
            own.constant_pad_nd([0, missing])
        };
        let blocks = blocks(samples, (width, classes), kind, &rows);
        let bases = Some(spans.into_iter().map(|span| span.basis).collect());
        Self { blocks, rows: row_counts(samples), width, classes, kind, bases, moments }
    }

    fn sets(&self) -> i64 {
        self.rows.size()[0]
    }

    fn device(&self) -> Device {
        self.rows.device()
    }

    /// Zeros `[D, d]`.
    pub(super) fn origin(&self) -> Tensor {
        let size = [self.sets(), (self.width + 1) * self.classes];
        Tensor::zeros(size, (Kind::Double, self.device()))
    }

    /// W `[F, K]` and b `[K]` of a point of set `set`, over the scaled features.
    pub(super) fn unpack(&self, set: usize, point: &[f64]) -> (Tensor, Tensor) {
        let (weight, bias) = self.split(point);
        let Some(bases) = &self.bases else { return (weight, bias) };
        let basis = &bases[set];
        (basis.matmul(&weight.narrow(0, 0, basis.size()[1])), bias)
    }

    /// W `[R, K]` and b `[K]` of a point, over the features of [`Problems::project`].
    pub(super) fn split(&self, point: &[f64]) -> (Tensor, Tensor) {
        let theta = Tensor::from_slice(point).to_device(self.device());
        let weights = self.classes * self.width;
        let weight = theta.narrow(0, 0, weights).view([self.classes, self.width]);
        (weight.transpose(0, 1).contiguous(), theta.narrow(0, weights, self.classes))
    }

    /// Scaled features `[m, F]` in the basis of set `set`, `[m, R]`.
    pub(super) fn project(&self, set: usize, x: Tensor) -> Tensor {
        let Some(bases) = &self.bases else { return x };
        let coordinates = x.matmul(&bases[set]);
        let missing = self.width - coordinates.size()[1];
        coordinates.constant_pad_nd([0, missing])
    }

    /// The minimum of each set with its own of `penalties` `[D]`, from `start` `[D, d]`.
    pub(super) fn solve(&self, start: Tensor, penalties: &[f64], solver: &Lbfgs) -> Vec<Minimum> {
        let penalties = Tensor::from_slice(penalties).to_device(self.device());
        let moments = self.moments.as_ref();
        let curvature = moments.and_then(|moments| moments.curvature(&penalties, self.spread()));
        solver.minimise_all(start, &mut Active { all: self, remaining: None, penalties, curvature })
    }

    /// Mean of p (1 - p) at W = 0, the start.
    fn spread(&self) -> f64 {
        let classes = self.classes as f64;
        (1.0 - 1.0 / classes) / classes
    }

    /// W and b of `points` `[D, d]`, flat.
    fn parts(&self, points: &Tensor) -> (Tensor, Tensor) {
        let weights = self.classes * self.width;
        (points.narrow(1, 0, weights), points.narrow(1, weights, self.classes))
    }

    /// J `[D]` and its gradient `[D, d]` at `points` `[D, d]`.
    fn evaluate(&self, points: &Tensor, penalties: &Tensor) -> (Tensor, Tensor) {
        let (weight, bias) = self.parts(points);
        let by_class = |of: &Tensor| of.view([self.sets(), self.classes, -1]);
        let narrow = |of: &Tensor| by_class(&of.to_kind(self.kind).contiguous());
        let (narrow_w, narrow_b) = (narrow(&weight), narrow(&bias));
        let options = (Kind::Double, self.device());
        let mut entropy = penalties.zeros_like();
        let mut slope = Tensor::zeros([self.sets(), self.classes, self.width], options);
        let mut slope_b = Tensor::zeros([self.sets(), self.classes], options);
        for block in &self.blocks {
            let logits = narrow_b.baddbmm(&narrow_w, &block.x.transpose(1, 2), 1.0, 1.0);
            let (residual, hit) = block.residual(logits.log_softmax(1, self.kind));
            entropy -= hit;
            slope += residual.bmm(&block.x);
            slope_b += residual.sum_dim_intlist([2].as_slice(), false, Kind::Double);
        }
        let rows = self.rows.unsqueeze(1);
        let slope = (slope / rows.unsqueeze(2)).flatten(1, 2) + &weight * penalties.unsqueeze(1);
        let gradient = Tensor::cat(&[slope, slope_b / rows], 1);
        let squares = weight.square().sum_dim_intlist([1].as_slice(), false, Kind::Double);
        (entropy / &self.rows + squares * penalties * 0.5, gradient)
    }

    /// The approximate inverse Hessian times `vectors` `[D, d]`; b is independent of W, as features are centred.
    fn precondition(&self, curvature: &Curvature, vectors: &Tensor) -> Tensor {
        let (weight, bias) = self.parts(vectors);
        let weight = curvature.solve(weight.reshape([-1, self.classes, self.width]));
        Tensor::cat(&[weight.flatten(1, 2), bias / self.spread()], 1)
    }

    /// Some of the sets, for evaluation only.
    fn select(&self, sets: &Tensor) -> Self {
        let pick = |of: &Tensor| of.index_select(0, sets);
        let blocks = self.blocks.iter().map(|block| Block {
            x: pick(&block.x),
            labels: pick(&block.labels),
            valid: block.valid.as_ref().map(pick),
        });
        Self { blocks: blocks.collect(), rows: pick(&self.rows), bases: None, moments: None, ..*self }
    }
}

impl Block {
    /// p - 1 at the label, else p, `[D, K, m]`, from log p; and the sum over rows of log p of the labels `[D]`.
    fn residual(&self, log_p: Tensor) -> (Tensor, Tensor) {
        let mut hit = log_p.gather(1, &self.labels, false);
        let mut residual = log_p.exp().scatter_add(1, &self.labels, &hit.full_like(-1.0));
        if let Some(valid) = &self.valid {
            (hit, residual) = (hit * valid, residual * valid);
        }
        (residual, hit.sum_dim_intlist([1, 2].as_slice(), false, Kind::Double))
    }
}

/// The sets that the solver has not finished.
struct Active<'a> {
    all: &'a Problems,
    /// None: all sets.
    remaining: Option<Problems>,
    /// `[D]`.
    penalties: Tensor,
    curvature: Option<Curvature>,
}

impl Active<'_> {
    fn problems(&self) -> &Problems {
        self.remaining.as_ref().unwrap_or(self.all)
    }
}

impl Functions for Active<'_> {
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor) {
        self.problems().evaluate(points, &self.penalties)
    }

    fn inverse(&self, vectors: &Tensor) -> Option<Tensor> {
        Some(self.problems().precondition(self.curvature.as_ref()?, vectors))
    }

    fn shrink(&mut self, ended: &[bool]) -> Option<Vec<i64>> {
        let stay: Vec<i64> = (0..ended.len()).filter(|&set| !ended[set]).map(|set| set as i64).collect();
        let sets = Tensor::from_slice(&stay).to_device(self.penalties.device());
        self.penalties = self.penalties.index_select(0, &sets);
        self.curvature = self.curvature.as_ref().map(|curvature| curvature.select(&sets));
        self.remaining = Some(self.problems().select(&sets));
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

/// Rows as coordinates in an orthonormal basis of their span.
struct Span {
    /// `[n, R]`.
    coordinates: Tensor,
    /// `[F, R]`.
    basis: Tensor,
    /// `[R]`, squared lengths of the columns.
    squares: Tensor,
}

impl Span {
    /// The span of `x` `[n, F]`.
    fn of(x: &Tensor) -> Self {
        let (squares, left) = x.matmul(&x.transpose(0, 1)).linalg_eigh("L");
        // Drops directions that contain rounding errors only.
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

/// Bytes of a classifier while it is solved: history and working copies of the solver, and the preconditioner.
pub(super) fn bytes((rows, width): (i64, i64), classes: i64) -> i64 {
    const VECTORS: i64 = 48;
    let (width, factor) = if in_row_space(rows, width) { (rows, 0) } else { (width, 4 * width * width) };
    8 * VECTORS * classes * (width + 1) + factor
}

/// `[D]`, `f64`.
fn row_counts(samples: &[Sample<'_>]) -> Tensor {
    let rows: Vec<f64> = samples.iter().map(|sample| sample.rows() as f64).collect();
    Tensor::from_slice(&rows).to_device(samples[0].features.device())
}

/// `rows(set, from, to)` of all sets, block by block; sets with fewer rows are padded.
fn blocks(
    samples: &[Sample<'_>],
    (width, classes): (i64, i64),
    kind: Kind,
    rows: &dyn Fn(usize, i64, i64) -> Tensor,
) -> Vec<Block> {
    let most = samples.iter().map(Sample::rows).max().unwrap_or(0);
    let device = samples[0].features.device();
    let size = if device == Device::Cpu { BLOCK } else { (LOGITS / classes).max(BLOCK) };
    let padded = |of: Tensor, height: i64| {
        let missing = height - of.size()[0];
        if missing == 0 { of } else { of.constant_pad_nd([0, 0, 0, missing]) }
    };
    let block = |from: i64| {
        let height = size.min(most - from);
        let part = |sample: &Sample<'_>| (from.min(sample.rows()), (from + height).min(sample.rows()));
        let (mut x, mut labels, mut valid) = (Vec::new(), Vec::new(), Vec::new());
        for (at, sample) in samples.iter().enumerate() {
            let (from, to) = part(sample);
            x.push(padded(rows(at, from, to).to_kind(kind), height));
            labels
                .push(padded(sample.labels.slice(0, from, to, 1).to_kind(Kind::Int64).unsqueeze(1), height));
            valid.push(padded(Tensor::ones([to - from, 1], (kind, device)), height));
        }
        let line = |of: &[Tensor]| Tensor::stack(of, 0).view([samples.len() as i64, 1, height]);
        let short = samples.iter().any(|sample| sample.rows() < from + height);
        let x = Tensor::stack(&x, 0).view([samples.len() as i64, height, width]);
        Block { x, labels: line(&labels), valid: short.then(|| line(&valid)) }
    };
    (0..most).step_by(size as usize).map(block).collect()
}

#[cfg(test)]
pub(super) mod tests;
