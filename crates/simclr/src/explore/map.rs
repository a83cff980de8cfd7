//! A map: the first two principal components of h of unit length.

use tch::{Device, Kind, Tensor};

use crate::EvalError;

/// Rows that are converted to double precision at a time.
const ROWS: i64 = 8192;
/// Variance of equal rows of unit length, which is not exactly 0 in double precision.
const ROUNDING: f64 = 1e-12;

/// Places on a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// x and y of each row.
    pub points: Vec<[f64; 2]>,
    /// Shares of the variance along x and y, in `[0, 1]`.
    pub variance: [f64; 2],
}

/// First and second moments of rows of unit length, from which the axes of a map follow; rows may come in parts.
#[derive(Debug)]
pub struct Moments {
    rows: i64,
    /// `[F]`.
    sum: Tensor,
    /// `[F, F]`.
    products: Tensor,
}

/// Axes of a map.
#[derive(Debug)]
pub struct Axes {
    /// `[F]`, of rows of unit length.
    mean: Tensor,
    /// The leading principal directions `[F]`; none where F is too small.
    directions: [Option<Tensor>; 2],
    /// Shares of the variance along them, in `[0, 1]`.
    pub variance: [f64; 2],
}

impl Moments {
    /// Of no rows of `width` F.
    pub fn new(width: usize) -> Self {
        let options = (Kind::Double, Device::Cpu);
        let width = width as i64;
        Self {
            rows: 0,
            sum: Tensor::zeros([width], options),
            products: Tensor::zeros([width, width], options),
        }
    }

    /// Takes in the rows of `h` `[n, F]`, which it scales to unit length as for cosines.
    pub fn add(&mut self, h: &Tensor) {
        let _guard = tch::no_grad_guard();
        for unit in unit_rows(h) {
            self.rows += unit.size()[0];
            self.sum += unit.sum_dim_intlist([0].as_slice(), false, Kind::Double);
            self.products += unit.tr().matmul(&unit);
        }
    }

    /// Principal directions, with signs such that the coefficient of the largest size is positive.
    ///
    /// # Errors
    /// libtorch's, for an eigenvalue problem that does not converge.
    pub fn axes(&self) -> Result<Axes, EvalError> {
        let _guard = tch::no_grad_guard();
        let rows = self.rows.max(1) as f64;
        let mean = &self.sum / rows;
        let covariance = &self.products / rows - mean.outer(&mean);
        let (values, vectors) = covariance.f_linalg_eigh("L")?;
        let width = mean.size()[0];
        let total = values.clamp_min(0.0).sum(Kind::Double).double_value(&[]);
        let share = |number: i64| match number < width && total > ROUNDING {
            true => values.double_value(&[width - 1 - number]).max(0.0) / total,
            false => 0.0,
        };
        let direction =
            |number: i64| (number < width).then(|| oriented(&vectors.select(1, width - 1 - number)));
        Ok(Axes { mean, directions: [direction(0), direction(1)], variance: [share(0), share(1)] })
    }
}

impl Axes {
    /// x and y of each row of `h` `[n, F]`.
    ///
    /// # Errors
    /// Another width than the axes'.
    pub fn places(&self, h: &Tensor) -> Result<Vec<[f64; 2]>, EvalError> {
        let _guard = tch::no_grad_guard();
        let mut points = Vec::with_capacity(h.size()[0] as usize);
        for unit in unit_rows(h) {
            let part = unit.f_sub(&self.mean)?;
            let along = |axis: &Option<Tensor>| match axis {
                Some(axis) => Vec::<f64>::try_from(part.mv(axis)),
                None => Ok(vec![0.0; part.size()[0] as usize]),
            };
            let [x, y] = [along(&self.directions[0])?, along(&self.directions[1])?];
            points.extend(x.into_iter().zip(y).map(<[f64; 2]>::from));
        }
        Ok(points)
    }
}

/// Rows of unit length in double precision, [`ROWS`] at a time.
fn unit_rows(h: &Tensor) -> impl Iterator<Item = Tensor> {
    let h = h.to_device(Device::Cpu);
    let rows = h.size()[0];
    (0..rows).step_by(ROWS as usize).map(move |start| {
        let part = h.narrow(0, start, ROWS.min(rows - start)).to_kind(Kind::Double);
        let norm = part.square().sum_dim_intlist([1].as_slice(), true, Kind::Double).sqrt();
        part / norm.clamp_min(1e-12)
    })
}

/// Principal components of the rows of `h` `[n, F]`, scaled to unit length and centred.
///
/// # Errors
/// libtorch's, for an eigenvalue problem that does not converge.
pub fn principal(h: &Tensor) -> Result<Map, EvalError> {
    let mut moments = Moments::new(h.size()[1] as usize);
    moments.add(h);
    let axes = moments.axes()?;
    Ok(Map { points: axes.places(h)?, variance: axes.variance })
}

fn oriented(axis: &Tensor) -> Tensor {
    let largest = axis.abs().argmax(0, false);
    axis * axis.take(&largest).sign()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit rows on a circle around an axis: the plane of the circle is the map, with equal variances.
    #[test]
    fn a_circle_is_found_in_more_dimensions() {
        tch::set_num_threads(1);
        let angles: Vec<f64> = (0..24).map(|at| std::f64::consts::TAU * f64::from(at) / 24.0).collect();
        let rows: Vec<f32> = angles
            .iter()
            .flat_map(|a| [3.0, 0.0, 0.75 * a.cos(), 0.0, 0.75 * a.sin()].map(|x: f64| x as f32))
            .collect();
        let map = principal(&Tensor::from_slice(&rows).view([24, 5])).unwrap();
        let radius = 0.75 / (9.0f64 + 0.75 * 0.75).sqrt();
        for [x, y] in &map.points {
            assert!(((x * x + y * y).sqrt() - radius).abs() < 1e-6, "{x} {y}");
        }
        assert!(
            (map.variance[0] - 0.5).abs() < 1e-6 && (map.variance[1] - 0.5).abs() < 1e-6,
            "{:?}",
            map.variance
        );
    }

    #[test]
    fn parts_of_the_rows_give_the_axes_of_all() {
        let h = Tensor::arange(60, (Kind::Float, Device::Cpu)).view([12, 5]).sin();
        let whole = principal(&h).unwrap();
        let mut moments = Moments::new(5);
        for start in [0, 5, 10] {
            moments.add(&h.narrow(0, start, if start == 10 { 2 } else { 5 }));
        }
        let axes = moments.axes().unwrap();
        let places = axes.places(&h).unwrap();
        for (a, b) in places.iter().flatten().zip(whole.points.iter().flatten()) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
        assert!(axes.places(&h.narrow(1, 0, 4)).is_err(), "rows of another width");
    }

    #[test]
    fn equal_rows_and_one_dimension_have_a_map() {
        let equal = principal(&Tensor::ones([4, 3], (Kind::Float, Device::Cpu))).unwrap();
        assert!(equal.points.iter().flatten().all(|value| value.abs() < 1e-9), "{equal:?}");
        assert_eq!(equal.variance, [0.0; 2]);
        let line = principal(&Tensor::from_slice(&[1.0f32, -1.0, 2.0]).view([3, 1])).unwrap();
        assert!(line.points.iter().all(|point| point[1] == 0.0) && line.variance[0] == 1.0, "{line:?}");
    }
}
