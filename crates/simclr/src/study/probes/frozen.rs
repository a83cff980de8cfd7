//! Linear classifiers and kNN on frozen features. The regularisation is fixed, because accuracies with all labels change by tenths of
//! a point with it, and chosen inside the labels where they are few.

use simclr_data::dataset::Labels;
use tch::Tensor;

use super::{
    super::{
        arm::{H, KNN, Run, Z},
        images::Images,
        table::Figures,
    },
    features::{Labelled, Network},
};
use crate::{
    EvalError,
    eval::{
        data::splits,
        features::flat_pixels,
        options::{Lbfgs, LinearOptions},
        probes::linear,
    },
    knn::{self, Neighbours},
    train::Observer,
};

/// L2 penalty on standardised features.
const LAMBDA: f64 = 1e-3;
/// Images of the linear classifier on raw pixels.
const PIXEL_IMAGES: usize = 5000;

/// Accuracies settle long before the minimum is exact.
fn solver() -> Lbfgs {
    Lbfgs { tolerance: 1e-4, max_iterations: 300, ..Lbfgs::default() }
}

fn linear_accuracy(train: &Labelled, test: &Labelled, layer: usize) -> f64 {
    let fit = linear::fit_with(&train.features[layer], &train.labels, train.classes, LAMBDA, &solver());
    100.0 * fit.classifier.accuracy(&test.features[layer], &test.labels)
}

/// [`H`], [`Z`], [`KNN`].
pub(super) fn frozen(
    network: &Network<'_>,
    run: &Run,
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let part = network.workspace.train_part(&run.images);
    let train = network.h_and_z(&part, observer)?;
    let test = network.h_and_z(&network.workspace.test_part(&run.images), observer)?;
    let mut figures = Figures::of(H, linear_accuracy(&train, &test, 0));
    if train.features.len() > 1 {
        figures.set(Z, linear_accuracy(&train, &test, 1));
    }
    let k = knn::default_k(train.features[0].size()[0]);
    let neighbours = Neighbours::of(&train.features[0], &test.features[0], k);
    let voted = neighbours.vote(&train.labels, train.classes, k, Some(knn::TEMPERATURE));
    figures.set(KNN, 100.0 * knn::accuracy(&voted, &test.labels));
    Ok(figures)
}

/// `linear 1 %` and so on: on the labels that fine-tuning with this seed uses.
pub(super) fn few_labels(
    network: &Network<'_>,
    run: &Run,
    (shares, seed): (&[f64], u64),
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let workspace = network.workspace;
    let opened = workspace.opened(run.images.set);
    let set = &opened.set;
    let test = network.h_and_z(&workspace.test_part(&run.images), observer)?;
    let labels: Vec<i64> = set.train_indices.iter().map(|&index| set.train_labels[index]).collect();
    let mut figures = Figures::default();
    for &share in shares {
        let fraction = workspace.share_of_all(&run.images, share);
        let drawn = splits::balanced_subset(&labels, set.train.classes().len(), fraction, seed, 0);
        let mut part = workspace.train_part(&run.images);
        part.indices = drawn.iter().map(|&position| set.train_indices[position]).collect();
        part.labels = drawn.iter().map(|&position| labels[position]).collect();
        let train = network.h_and_z(&part, observer)?;
        let fit = linear::fit(&train.features[0], &train.labels, train.classes, &LinearOptions::default());
        let accuracy = fit.classifier.accuracy(&test.features[0], &test.labels);
        figures.set(format!("linear {} %", 100.0 * share), 100.0 * accuracy);
    }
    debug_assert_eq!(set.labels, Labels::Auto);
    Ok(figures)
}

/// `transfer NAME`, the protocol of the paper's appendix B.8.1 on h; `log10 lambda NAME`, what it chose.
pub(super) fn transfer(
    network: &Network<'_>,
    (name, images): (&str, &Images),
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let train = network.h_and_z(&network.workspace.train_part(images), observer)?;
    let test = network.h_and_z(&network.workspace.test_part(images), observer)?;
    let options = LinearOptions { patience: Some(4), ..LinearOptions::transfer() };
    let fit = linear::fit(&train.features[0], &train.labels, train.classes, &options);
    let accuracy = fit.classifier.accuracy(&test.features[0], &test.labels);
    let mut figures = Figures::of(&format!("transfer {name}"), 100.0 * accuracy);
    figures.set(format!("log10 lambda {name}"), fit.lambda.log10());
    Ok(figures)
}

/// [`H`] of raw pixels.
pub(super) fn pixels(
    network: &Network<'_>,
    run: &Run,
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let flat = |pixels: &Tensor| Ok(flat_pixels(pixels));
    let part = network.workspace.train_part(&run.images).thinned(PIXEL_IMAGES);
    let mut train = network.extract(&part, &flat, observer)?;
    let mut test = network.extract(&network.workspace.test_part(&run.images), &flat, observer)?;
    // `extract` splits at the width of h; here all columns are one layer.
    for part in [&mut train, &mut test] {
        part.features = vec![Tensor::cat(&part.features, 1)];
    }
    Ok(Figures::of(H, linear_accuracy(&train, &test, 0)))
}
