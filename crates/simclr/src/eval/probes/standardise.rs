//! Standardisation of features.

use tch::{Kind, Tensor};

/// Shift and scale of features, computed from the training part only.
#[derive(Debug)]
pub struct Standardisation {
    mean: Tensor,
    scale: Tensor,
    /// Factor that turns the penalty on weights of raw features into one on weights of scaled features.
    pub(crate) penalty: f64,
}

impl Standardisation {
    /// Mean 0 and standard deviation 1 in each of `features` `[n, F]`.
    pub fn of(features: &Tensor) -> Self {
        let (mean, deviation) = moments(features);
        // Constant dimensions get the scale 0. Rounding may leave a trace of variance if the mean is large.
        let constant = deviation.le_tensor(&(mean.abs() * 1e-9 + 1e-12));
        let scale = deviation.reciprocal().masked_fill(&constant, 0.0);
        Self { mean, scale, penalty: 1.0 }
    }

    /// Mean 0, and one scale for all features, which improves the conditioning only: as b is free and the penalty follows the
    /// scale, the classifier is that of the raw features.
    pub fn common(features: &Tensor) -> Self {
        let (mean, deviation) = moments(features);
        let size = deviation.square().mean(Kind::Double).sqrt().double_value(&[]);
        let scale = if size > 0.0 { 1.0 / size } else { 1.0 };
        Self {
            mean,
            scale: Tensor::from_slice(&[scale]).to_device(features.device()),
            penalty: scale * scale,
        }
    }

    /// W `[F, K]` and b `[K]` over raw features, for `weight` and `bias` over scaled ones.
    pub(super) fn fold(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        let scale = self.scale.view([-1, 1]);
        let raw = weight * &scale;
        let shift = self.mean.view([1, -1]).matmul(&raw).view(-1);
        (raw, bias - shift)
    }

    /// Scaled `features`, in `f64`.
    pub fn apply(&self, features: &Tensor) -> Tensor {
        (features.to_kind(Kind::Double) - &self.mean) * &self.scale
    }
}

/// Mean and standard deviation of each feature `[1, F]`, `f64`, summed block by block to avoid a copy of a large set in
/// `f64`.
fn moments(features: &Tensor) -> (Tensor, Tensor) {
    const ROWS: i64 = 4096;
    let rows = features.size()[0] as f64;
    let sum = |of: &dyn Fn(&Tensor) -> Tensor| {
        let blocks = features.split(ROWS, 0).into_iter();
        let sums =
            blocks.map(|x| of(&x.to_kind(Kind::Double)).sum_dim_intlist([0].as_slice(), true, Kind::Double));
        sums.reduce(|a, b| a + b)
            .unwrap_or_else(|| Tensor::zeros([1, features.size()[1]], (Kind::Double, features.device())))
    };
    let mean = sum(&|x| x.shallow_clone()) / rows;
    let variance = sum(&|x| (x - &mean).square()) / rows;
    (mean, variance.sqrt())
}
