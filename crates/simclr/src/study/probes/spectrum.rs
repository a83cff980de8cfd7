//! Squared eigenvalues of a linear projection head z = W h with W `[F, F]` (paper, B.4: a few large ones).

use tch::{Device, Kind, Tensor};

use super::{
    super::table::Figures,
    features::{Network, rows},
};
use crate::EvalError;

/// Share of the eigenvalues that counts as few.
const LEADING: f64 = 0.1;

/// `leading share` in percent of the sum; series `eigenvalues`, descending.
pub(super) fn spectrum(network: &Network<'_>) -> Result<Figures, EvalError> {
    let named = network.encoder.model().params.named();
    let weight =
        named.filter(|(name, _)| *name == "head.0.weight").map(|(_, tensor)| tensor.shallow_clone()).next();
    let square = weight.filter(|weight| weight.size()[0] == weight.size()[1]);
    Ok(square.map_or_else(Figures::default, |weight| of_matrix(&weight)))
}

fn of_matrix(weight: &Tensor) -> Figures {
    let weight = weight.detach().to_device(Device::Cpu).to_kind(Kind::Double);
    let squares = weight.linalg_eigvals().abs().square().to_kind(Kind::Double);
    let (sorted, _) = squares.sort(0, true);
    let few = ((LEADING * sorted.size()[0] as f64).ceil() as i64).max(1);
    let share = sorted.narrow(0, 0, few).sum(Kind::Double) / sorted.sum(Kind::Double);
    let mut figures = Figures::of("leading share", 100.0 * share.double_value(&[]));
    figures.series.insert("eigenvalues".into(), rows(&sorted.view([1, -1])));
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_a_diagonal_matrix() {
        let matrix = Tensor::from_slice(&[3.0, -1.0, 2.0]).diag(0);
        let figures = of_matrix(&matrix);
        let found: Vec<f64> =
            figures.series["eigenvalues"][0].iter().map(|x| (x * 1e9).round() / 1e9).collect();
        assert_eq!(found, [9.0, 4.0, 1.0]);
        assert!((figures.values["leading share"] - 100.0 * 9.0 / 14.0).abs() < 1e-9);
    }
}
