//! A map: the first two principal components of h of unit length.

use tch::{Device, Kind, Tensor};

use crate::EvalError;

/// Rows that are converted to double precision at a time.
const ROWS: i64 = 8192;

/// Places on a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// x and y of each row.
    pub points: Vec<[f64; 2]>,
    /// Shares of the variance along x and y, in `[0, 1]`.
    pub variance: [f64; 2],
}

/// Principal components of the rows of `h` `[n, F]`, scaled to unit length as for cosines and centred. Signs are such that the
/// coefficient of the largest size is positive.
///
/// # Errors
/// libtorch's, for an eigenvalue problem that does not converge.
pub fn principal(h: &Tensor) -> Result<Map, EvalError> {
    let _guard = tch::no_grad_guard();
    let h = h.to_device(Device::Cpu);
    let (rows, width) = (h.size()[0], h.size()[1]);
    let unit = |start: i64| {
        let part = h.narrow(0, start, ROWS.min(rows - start)).to_kind(Kind::Double);
        let norm = part.square().sum_dim_intlist([1].as_slice(), true, Kind::Double).sqrt();
        &part / norm.clamp_min(1e-12)
    };
    let starts = || (0..rows).step_by(ROWS as usize);
    let options = (Kind::Double, Device::Cpu);
    let sum = starts().fold(Tensor::zeros([width], options), |sum, start| {
        sum + unit(start).sum_dim_intlist([0].as_slice(), false, Kind::Double)
    });
    let mean = sum / rows.max(1) as f64;
    let scatter = starts().fold(Tensor::zeros([width, width], options), |all, start| {
        let part = unit(start) - &mean;
        all + part.tr().matmul(&part)
    });
    let (values, vectors) = scatter.f_linalg_eigh("L")?;
    let total = values.clamp_min(0.0).sum(Kind::Double).double_value(&[]);
    let axis = |number: i64| (number < width).then(|| oriented(&vectors.select(1, width - 1 - number)));
    let axes = [axis(0), axis(1)];
    let share = |number: i64| match number < width && total > 0.0 {
        true => values.double_value(&[width - 1 - number]).max(0.0) / total,
        false => 0.0,
    };
    let mut points = Vec::with_capacity(rows as usize);
    for start in starts() {
        let part = unit(start) - &mean;
        let along = |axis: &Option<Tensor>| match axis {
            Some(axis) => Vec::<f64>::try_from(part.mv(axis)),
            None => Ok(vec![0.0; part.size()[0] as usize]),
        };
        points.extend(along(&axes[0])?.into_iter().zip(along(&axes[1])?).map(<[f64; 2]>::from));
    }
    Ok(Map { points, variance: [share(0), share(1)] })
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
    fn equal_rows_and_one_dimension_have_a_map() {
        let equal = principal(&Tensor::ones([4, 3], (Kind::Float, Device::Cpu))).unwrap();
        assert!(equal.points.iter().flatten().all(|value| value.abs() < 1e-9), "{equal:?}");
        let line = principal(&Tensor::from_slice(&[1.0f32, -1.0, 2.0]).view([3, 1])).unwrap();
        assert!(line.points.iter().all(|point| point[1] == 0.0) && line.variance[0] == 1.0, "{line:?}");
    }
}
