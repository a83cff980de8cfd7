//! The linear classifier against scikit-learn's `LogisticRegression` (`reference/eval.py`) at the same regularisation.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use simclr::{
    eval::{
        options::{Lbfgs, LinearOptions},
        probes::{
            lbfgs::Stop,
            linear::{fit, fit_with},
        },
    },
    knn::accuracy,
};
use tch::{Kind, Tensor};

fn golden(name: &str) -> Tensor {
    // Tests run side by side: one thread each.
    tch::set_num_threads(1);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/eval.safetensors");
    let mut tensors = Tensor::read_safetensors(path).unwrap().into_iter();
    tensors.find(|(found, _)| found == name).unwrap_or_else(|| panic!("no `{name}`")).1
}

#[test]
fn decisions_equal_those_of_scikit_learn() {
    let (x, y, test, test_y) =
        (golden("train"), golden("train_labels"), golden("test"), golden("test_labels"));
    for (lambda, name) in [(1.0, "linear.1"), (1e-2, "linear.0.01"), (1e-4, "linear.0.0001")] {
        let want = golden(name);
        let fit = fit_with(&x, &y, 5, lambda, &Lbfgs::default());
        assert_eq!(fit.minimum.stop, Stop::Converged, "{name}");
        let decision = fit.classifier.decision(&test);
        let centred = &decision - decision.mean_dim([1].as_slice(), true, Kind::Double);
        let difference = (&centred - &want).abs().max().double_value(&[]);
        assert!(difference < 2e-3 * (1.0 + want.abs().max().double_value(&[])), "{name}: {difference}");
        let (ours, theirs) =
            (fit.classifier.accuracy(&test, &test_y), accuracy(&want.argmax(1, false), &test_y));
        assert!((ours - theirs).abs() <= 0.002, "{name}: {ours} {theirs}");
    }
}

#[test]
fn a_tighter_tolerance_is_closer_to_scikit_learn() {
    let (x, y, want) = (golden("train"), golden("train_labels"), golden("linear.0.01"));
    let fit = fit_with(&x, &y, 5, 1e-2, &Lbfgs { tolerance: 1e-9, ..Lbfgs::default() });
    let decision = fit.classifier.decision(&golden("test"));
    let centred = &decision - decision.mean_dim([1].as_slice(), true, Kind::Double);
    let difference = (centred - want).abs().max().double_value(&[]);
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn the_chosen_lambda_is_about_as_good_on_test_as_the_best() {
    let (x, y, test, test_y) =
        (golden("train"), golden("train_labels"), golden("test"), golden("test_labels"));
    let options = LinearOptions::default();
    let chosen = fit(&x, &y, 5, &options).classifier.accuracy(&test, &test_y);
    let of = |lambda: &f64| fit_with(&x, &y, 5, *lambda, &options.solver).classifier.accuracy(&test, &test_y);
    let best = options.lambdas.iter().map(of).fold(0.0, f64::max);
    // The standard error of an accuracy on 300 images is 2.5 points.
    assert!(chosen > best - 0.025, "{chosen} {best}");
    assert!(chosen > 0.6, "{chosen}");
}
