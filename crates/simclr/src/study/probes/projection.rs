//! Two principal components of h and z of test images (the paper draws t-SNE, figure B.4).

use super::{
    super::{arm::Run, table::Figures},
    features::{Network, rows},
};
use crate::{EvalError, explore, train::Observer};

/// Series `h` and `z`: rows of two coordinates and the class.
pub(super) fn projection(
    network: &Network<'_>,
    run: &Run,
    images: usize,
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let part = network.workspace.test_part(&run.images).thinned(images);
    let found = network.h_and_z(&part, observer)?;
    let labels = rows(&found.labels);
    let mut figures = Figures::default();
    for (name, features) in ["h", "z"].into_iter().zip(&found.features) {
        let points = explore::map::principal(features)?.points;
        let labelled = points.iter().zip(&labels).map(|(point, label)| [&point[..], label].concat());
        figures.series.insert(name.into(), labelled.collect());
    }
    Ok(figures)
}
