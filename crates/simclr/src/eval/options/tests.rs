//! Unit tests of defaults and parsing.

use super::*;

/// Figures cached by earlier versions are found by this text.
#[test]
fn linear_options_keep_the_text_of_cached_figures() {
    let options = LinearOptions { lambdas: vec![0.5], ..LinearOptions::default() };
    assert_eq!(
        format!("{options:?}"),
        "LinearOptions { lambdas: [0.5], patience: Some(2), penalty: Mean, standardise: true, seed: 0, \
         tune_images: 10000, folds_below: 1000, solver: Lbfgs { history: 10, max_iterations: 1000, tolerance: 1e-5 }, \
         tuning_solver: Lbfgs { history: 10, max_iterations: 200, tolerance: 0.0001 } }"
    );
}

#[test]
fn log_spacing_of_the_transfer_protocol() {
    let values = log_spaced(1e-6, 1e5, 45);
    assert_eq!(values.len(), 45);
    assert!((values[4] - 10f64.powf(-6.0 + 1.0)).abs() < 1e-12);
    assert!((values[44] - 1e5).abs() < 1e-6);
}

/// Paper B.8.2 by closed forms: value i of n from a to b is a (b / a)^(i / (n - 1)).
#[test]
fn transfer_grids_match_the_paper() {
    let near = |found: &[f64], exponent: &dyn Fn(f64) -> f64| {
        for (i, value) in found.iter().enumerate() {
            let expected = 10f64.powf(exponent(i as f64));
            assert!((value / expected - 1.0).abs() < 1e-12, "{i}: {value} {expected}");
        }
    };
    let options = TransferFinetune::default();
    let (tuned, fresh) = (options.pretrained(), options.fresh());
    assert_eq!((options.batch, tuned.steps, fresh.steps), (256, 20_000, 40_000));
    assert_eq!((tuned.rates.len(), tuned.decays.len()), (7, 8));
    near(&tuned.rates, &|i| -4.0 + i / 2.0);
    assert_eq!(tuned.decays[0], 0.0);
    near(&tuned.decays[1..], &|i| -6.0 + i / 2.0);
    assert_eq!((fresh.rates.len(), fresh.decays.len()), (7, 8));
    near(&fresh.rates, &|i| -3.0 + i / 2.0);
    near(&fresh.decays, &|i| -5.0 + i / 2.0);
}

#[test]
fn transfer_sets_are_paths_with_a_metric() {
    let set: TransferSet = "no/such:folder:map-11".parse().unwrap();
    assert_eq!((set.path, set.metric), ("no/such:folder".into(), Metric::Map11));
    let error = "pets:map-12".parse::<TransferSet>().unwrap_err();
    assert!(error.contains("unknown metric `map-12`"), "{error}");
    assert_eq!("dtd".parse::<TransferSet>().unwrap().metric, Metric::Top1);
}
