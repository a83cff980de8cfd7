//! Rows at unit length, and the gradient back through the normalisation.

use tch::{Kind, Tensor};

/// Lower bound of the squared norm, the default epsilon of TensorFlow's `l2_normalize`.
const NORM_EPSILON: f64 = 1e-12;

/// Rows to unit length, `[B, D]`.
pub fn l2_normalize(z: &Tensor) -> Tensor {
    let squares = (z * z).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    z * squares.clamp_min(NORM_EPSILON).rsqrt()
}

/// Rows `[B, D]` normalised to unit length, and the factors of the backward pass.
pub(super) struct UnitRows {
    pub unit: Tensor,
    /// 1 / |z| `[B, 1]`, and 1 for rows with a squared norm above epsilon, else 0.
    inverse: Option<(Tensor, Tensor)>,
}

impl UnitRows {
    pub fn new(z: &Tensor, normalize: bool) -> Self {
        if !normalize {
            return Self { unit: z.contiguous(), inverse: None };
        }
        let squares = (z * z).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let inverse = squares.clamp_min(NORM_EPSILON).rsqrt();
        let long = squares.gt(NORM_EPSILON).to_kind(Kind::Float);
        Self { unit: (z * &inverse).contiguous(), inverse: Some((inverse, long)) }
    }

    /// The gradient with respect to z from that of the unit rows: its radial component vanishes (docs/method.md 1.3).
    pub fn back(&self, gradient: &Tensor) -> Tensor {
        let Some((inverse, long)) = &self.inverse else { return gradient.shallow_clone() };
        let along = (gradient * &self.unit).sum_dim_intlist([1i64].as_slice(), true, Kind::Float) * long;
        (gradient - &self.unit * along) * inverse
    }
}
