//! Preconditioner of the linear classifier: the approximate Hessian at W = 0 from second moments of the features. Correlated
//! features make the objective a long valley; preconditioned, a tenth of the iterations suffices.

use tch::{Kind, Tensor};

/// Narrowest features that are factorised one set at a time, to save memory.
const WIDE: i64 = 512;

/// Second moments of the features of D sets.
#[derive(Debug)]
pub(super) enum Moments {
    /// `[D, R]`, of uncorrelated coordinates.
    Diagonal(Tensor),
    /// `[D, F, F]`.
    Full(Tensor),
}

/// The approximate Hessian of each class's weights, ready for division.
pub(super) enum Curvature {
    /// `[D, 1, R]`, its inverse.
    Diagonal(Tensor),
    /// `[D, F, F]`, its Cholesky factor, in f32: solving with a factor keeps the direction one of descent.
    Full(Tensor),
}

impl Moments {
    /// spread * moments + lambda; `lambdas` `[D]`, `spread` the mean of p (1 - p). None if it is singular.
    pub(super) fn curvature(&self, lambdas: &Tensor, spread: f64) -> Option<Curvature> {
        // A small ridge against singularity by constant and repeated features.
        let ridge = (lambdas + 1e-6 * spread).unsqueeze(1);
        match self {
            Self::Diagonal(moments) => {
                Some(Curvature::Diagonal((moments * spread + ridge).reciprocal().unsqueeze(1)))
            }
            Self::Full(moments) => factors(&(moments * spread), &ridge).map(Curvature::Full),
        }
    }
}

impl Curvature {
    /// The approximate inverse Hessian times `weights` `[D, K, R]`.
    pub(super) fn solve(&self, weights: Tensor) -> Tensor {
        match self {
            Self::Diagonal(inverse) => weights * inverse,
            Self::Full(factor) => {
                let columns = weights.to_kind(Kind::Float).transpose(1, 2);
                // Not cholesky_solve, which copies the factors in every call: most of the time with wide features.
                let half = factor.linalg_solve_triangular(&columns, false, true, false);
                let whole = factor.transpose(1, 2).linalg_solve_triangular(&half, true, true, false);
                whole.transpose(1, 2).to_kind(Kind::Double)
            }
        }
    }

    pub(super) fn select(&self, sets: &Tensor) -> Self {
        match self {
            Self::Diagonal(inverse) => Self::Diagonal(inverse.index_select(0, sets)),
            Self::Full(factor) => Self::Full(factor.index_select(0, sets)),
        }
    }
}

/// Cholesky factors `[D, F, F]` of `moments` `[D, F, F]` + `ridge` `[D, 1]`.
fn factors(moments: &Tensor, ridge: &Tensor) -> Option<Tensor> {
    let (sets, width) = (moments.size()[0], moments.size()[2]);
    if width < WIDE {
        return factor(moments, ridge);
    }
    let each: Option<Vec<Tensor>> =
        (0..sets).map(|set| factor(&moments.narrow(0, set, 1), &ridge.narrow(0, set, 1))).collect();
    Some(Tensor::cat(&each?, 0))
}

fn factor(moments: &Tensor, ridge: &Tensor) -> Option<Tensor> {
    let hessian = moments + ridge.expand([-1, moments.size()[2]], false).diag_embed(0, -2, -1);
    // Half the time in f32, in which a small penalty may leave it singular.
    let single = hessian.to_kind(Kind::Float).f_linalg_cholesky(false);
    let factor = single.or_else(|_| hessian.f_linalg_cholesky(false)).ok()?;
    Some(factor.to_kind(Kind::Float))
}
