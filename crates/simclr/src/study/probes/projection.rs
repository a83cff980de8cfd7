//! Two principal components of h and z of test images (the paper draws t-SNE, figure B.4).

use tch::{Kind, Tensor};

use super::{
    super::{arm::Run, table::Figures},
    features::{Network, rows},
};
use crate::{EvalError, train::Observer};

/// Series `h` and `z`: rows of two coordinates and the class.
pub(super) fn projection(
    network: &Network<'_>,
    run: &Run,
    images: usize,
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let part = network.workspace.test_part(&run.images).thinned(images);
    let found = network.h_and_z(&part, observer)?;
    let mut figures = Figures::default();
    for (name, features) in ["h", "z"].into_iter().zip(&found.features) {
        let labels = found.labels.to_kind(Kind::Double).unsqueeze(1);
        let points = Tensor::cat(&[components(features), labels], 1);
        figures.series.insert(name.into(), rows(&points));
    }
    Ok(figures)
}

/// `[n, 2]`: standardised features on their two leading principal directions, of which the largest entry is positive.
fn components(features: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    let x = features.to_kind(Kind::Double);
    let x = &x - x.mean_dim([0i64].as_slice(), true, Kind::Double);
    let x = &x / (x.std_dim([0i64].as_slice(), false, true) + 1e-9);
    let (_, _, directions) = x.svd(true, true);
    let directions = directions.tr();
    let count = directions.size()[0].min(2);
    let directions = directions.narrow(0, 0, count);
    let (low, high) = (directions.amin([1i64].as_slice(), true), directions.amax([1i64].as_slice(), true));
    let sign = (high + low).sign();
    let points = x.matmul(&(directions * sign).tr());
    if count == 2 { points } else { Tensor::cat(&[&points, &points.zeros_like()], 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_component_has_the_largest_spread() {
        let line: Vec<f64> = (0..20)
            .flat_map(|i| {
                let t = f64::from(i);
                [t, t + 0.1 * f64::from(i % 3), -t]
            })
            .collect();
        let points = components(&Tensor::from_slice(&line).view([20, 3]));
        let spread = points.std_dim([0i64].as_slice(), false, false);
        assert_eq!(points.size(), [20, 2]);
        assert!(spread.double_value(&[0]) > 10.0 * spread.double_value(&[1]));
    }
}
