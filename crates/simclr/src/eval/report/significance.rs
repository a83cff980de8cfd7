//! Significance of the difference of two classifiers on the same test images: the paper's permutation test (B.8).

use simclr_data::rng::Key;
use tch::Tensor;

use super::figure::Predictions;
use crate::EvalError;
use crate::eval::options::Metric;

/// Samples of the permutation test (paper B.8).
const SAMPLES: usize = 100_000;

/// p of the null hypothesis that two classifiers are equally good on the test images: the fraction of [`SAMPLES`] samples,
/// each exchanging the two predictions for every image with probability 1/2, such that the accuracies differ at least as much as the
/// observed ones. [`Metric::MeanPerClass`] uses the mean accuracy per class, mAP the accuracy.
///
/// # Errors
/// Predictions for other images.
pub(crate) fn permutation_test(
    a: &Predictions,
    b: &Predictions,
    metric: Metric,
    seed: u64,
) -> Result<f64, EvalError> {
    let (truth_a, truth_b) = (labels(&a.truth), labels(&b.truth));
    // For an image of several classes the predicted one counts as true, so the two truths may differ there.
    if truth_a.len() != truth_b.len() || (metric != Metric::Map11 && truth_a != truth_b) {
        return Err(EvalError::DifferentTestImages);
    }
    let right = |of: &Predictions| labels(&of.predicted.eq_tensor(&of.truth).to_kind(tch::Kind::Int64));
    let weights = weights(&truth_a, metric);
    let differences = right(a).into_iter().zip(right(b)).zip(weights);
    // Exchanging two equal predictions changes nothing.
    let differences: Vec<f64> =
        differences.filter(|((a, b), _)| a != b).map(|((a, b), weight)| (a - b) as f64 * weight).collect();
    Ok(share_at_least(&differences, seed))
}

/// Weight of each image in the metric, up to a common factor.
fn weights(truth: &[i64], metric: Metric) -> Vec<f64> {
    let mut counts = std::collections::HashMap::new();
    truth.iter().for_each(|class| *counts.entry(*class).or_insert(0u32) += 1);
    let weight =
        |class: &i64| if metric == Metric::MeanPerClass { 1.0 / f64::from(counts[class]) } else { 1.0 };
    truth.iter().map(weight).collect()
}

/// Fraction of random sign changes of `differences` with a sum at least as far from 0 as the unchanged sum.
fn share_at_least(differences: &[f64], seed: u64) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of equal terms in another order differ by rounding.
    let tolerance = 1e-9 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let mut stream = Key { seed, epoch: u64::MAX, image: u64::MAX - 1, view: 0 }.stream();
    let mut sample = || {
        let mut sum = 0.0;
        for block in differences.chunks(64) {
            let mut bits = stream.bits();
            for difference in block {
                sum += if bits & 1 == 1 { *difference } else { -difference };
                bits >>= 1;
            }
        }
        f64::abs(sum) >= observed - tolerance
    };
    (0..SAMPLES).filter(|_| sample()).count() as f64 / SAMPLES as f64
}

fn labels(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).expect("labels are a vector of i64")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]
mod tests {
    use super::*;

    /// Two-sided exact McNemar: of `b + c` discordant images a binomial with p = 1/2.
    fn mcnemar(b: u64, c: u64) -> f64 {
        let n = b + c;
        let choose = |k: u64| (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64);
        let tail: f64 = (0..=b.min(c)).map(|k| choose(k) * 0.5f64.powi(n as i32)).sum();
        (2.0 * tail).min(1.0)
    }

    /// `only_a` images right in a alone, `only_b` in b alone, and 100 in both.
    fn pair(only_a: usize, only_b: usize) -> (Predictions, Predictions) {
        let truth = vec![0i64; only_a + only_b + 100];
        let wrong_in = |range: std::ops::Range<usize>| {
            (0..truth.len()).map(|i| i64::from(range.contains(&i))).collect::<Vec<_>>()
        };
        let with = |predicted: Vec<i64>| {
            Predictions::new(&Tensor::from_slice(&predicted), &Tensor::from_slice(&truth))
        };
        (with(wrong_in(only_a..only_a + only_b)), with(wrong_in(0..only_a)))
    }

    #[test]
    fn equals_exact_mcnemar_for_accuracies() {
        for (b, c) in [(10, 10), (30, 15), (60, 40), (12, 2), (0, 3)] {
            let (a, other) = pair(b, c);
            let p = permutation_test(&a, &other, Metric::Top1, 0).unwrap();
            let exact = mcnemar(b as u64, c as u64);
            // Three standard errors of a share of 100,000 samples, and a bit.
            assert!(
                (p - exact).abs() < 3.0 * (exact * (1.0 - exact) / 1e5).sqrt() + 1e-4,
                "{b} {c}: {p} {exact}"
            );
        }
        let (same, _) = pair(5, 0);
        assert_eq!(permutation_test(&same, &same, Metric::Top1, 0).unwrap(), 1.0);
    }

    /// 90 images of class 0 and 10 of class 1: a is better by 9 of the frequent class, b by 9 of the rare one.
    #[test]
    fn mean_per_class_weights_rare_classes() {
        let truth: Vec<i64> = (0..100).map(|i| i64::from(i >= 90)).collect();
        let wrong = |range: std::ops::Range<usize>| {
            let predicted: Vec<i64> =
                truth.iter().enumerate().map(|(i, t)| if range.contains(&i) { 1 - t } else { *t }).collect();
            Predictions::new(&Tensor::from_slice(&predicted), &Tensor::from_slice(&truth))
        };
        let (a, b) = (wrong(90..99), wrong(0..9));
        let p = |metric| permutation_test(&a, &b, metric, 0).unwrap();
        assert!(p(Metric::Top1) > 0.9, "nine each");
        assert!(p(Metric::MeanPerClass) < 0.01, "a loses nine tenths of a class");
    }

    #[test]
    fn predictions_for_other_images_are_refused() {
        let (a, _) = pair(3, 4);
        let (b, _) = pair(3, 5);
        assert!(permutation_test(&a, &b, Metric::Top1, 0).is_err());
    }
}
