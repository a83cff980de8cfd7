//! Temperature scaling and calibration of class probabilities (Guo et al. 2017, arXiv 1706.04599). Targets are smoothed as in Platt's
//! scaling (1999), since a hold-out without an error has no best temperature: the likelihood grows until it is 0.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Bins of the confidence, as in the paper.
const BINS: usize = 15;
/// Range of the logarithm of the temperature.
const LOG_RANGE: (f64, f64) = (-4.0, 4.0);
/// Steps of the golden-section search: the range shrinks to 1e-6 of its length.
const STEPS: usize = 30;

/// Mean negative log likelihood of `labels` `[n]` under softmax(`logits` `[n, K]` / `temperature`).
pub(super) fn nll(logits: &Tensor, labels: &Tensor, temperature: f64) -> f64 {
    -of_labels(&log_probabilities(logits, temperature), labels)
}

/// [`nll`] of targets that give the label (n + 1) / (n + 2), by Laplace's rule of succession, and the other classes the rest.
fn smoothed_nll(logits: &Tensor, labels: &Tensor, temperature: f64) -> f64 {
    let (n, classes) = (logits.size()[0] as f64, logits.size()[1] as f64);
    let wrong = 1.0 / (n + 2.0);
    let log_probabilities = log_probabilities(logits, temperature);
    let of_label = of_labels(&log_probabilities, labels);
    let of_all = log_probabilities.sum(Kind::Double).double_value(&[]) / n;
    let of_others = (of_all - of_label) / (classes - 1.0).max(1.0);
    -(1.0 - wrong) * of_label - wrong * of_others
}

fn log_probabilities(logits: &Tensor, temperature: f64) -> Tensor {
    (logits.to_kind(Kind::Double) / temperature).log_softmax(1, Kind::Double)
}

/// Mean log probability of `labels`.
fn of_labels(log_probabilities: &Tensor, labels: &Tensor) -> f64 {
    log_probabilities.gather(1, &labels.unsqueeze(1), false).mean(Kind::Double).double_value(&[])
}

/// The temperature with the least [`smoothed_nll`]: golden-section search over its logarithm, in which the loss has a single minimum
/// because it is convex in 1 / T.
pub(super) fn temperature(logits: &Tensor, labels: &Tensor) -> f64 {
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let loss = |log: f64| smoothed_nll(logits, labels, log.exp());
    let (mut low, mut high) = LOG_RANGE;
    let mut inner = [high - golden * (high - low), low + golden * (high - low)];
    let mut losses = inner.map(loss);
    for _ in 0..STEPS {
        if losses[0] < losses[1] {
            high = inner[1];
            inner = [high - golden * (high - low), inner[0]];
            losses = [loss(inner[0]), losses[0]];
        } else {
            low = inner[0];
            inner = [inner[1], low + golden * (high - low)];
            losses = [losses[1], loss(inner[1])];
        }
    }
    ((low + high) / 2.0).exp()
}

/// Calibration of the most probable class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: mean of |accuracy - confidence| over bins of equal width, weighted by their images.
    pub ece: f64,
    /// Bins with images, by confidence.
    pub bins: Vec<Bin>,
}

/// Images with a similar confidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Number of images.
    pub images: usize,
    /// Mean probability of the predicted class.
    pub confidence: f64,
    /// Share of correct predictions.
    pub accuracy: f64,
}

impl Calibration {
    /// Of `probabilities` `[n, K]` and `labels` `[n]`.
    pub(super) fn of(probabilities: &Tensor, labels: &Tensor) -> Self {
        let (confidence, predicted) = probabilities.to_kind(Kind::Double).max_dim(1, false);
        let right = predicted.eq_tensor(labels).to_kind(Kind::Double);
        let numbers = |tensor: Tensor| Vec::<f64>::try_from(tensor).expect("a vector of numbers");
        let mut bins = [(0usize, 0.0, 0.0); BINS];
        for (confidence, right) in numbers(confidence).into_iter().zip(numbers(right)) {
            let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
            *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + right);
        }
        let total: usize = bins.iter().map(|bin| bin.0).sum();
        let ece = bins.iter().map(|(_, confidence, right)| (confidence - right).abs()).sum::<f64>();
        let bin = |&(images, confidence, right): &(usize, f64, f64)| {
            let count = images as f64;
            Bin { images, confidence: confidence / count, accuracy: right / count }
        };
        let bins = bins.iter().filter(|bin| bin.0 > 0).map(bin).collect();
        Self { ece: ece / total.max(1) as f64, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels drawn with softmax(x): the temperature of 3 x is 3, up to the error of the draws.
    #[test]
    fn the_temperature_of_scaled_logits_is_the_scale() {
        let logits = crate::test_normals(1, &[20_000, 4]) * 1.5;
        let uniform = crate::test_normals(2, &[20_000, 4]).square().clamp_min(1e-9);
        // Gumbel: the argmax of x - log(-log u) has the distribution softmax(x); an exponential from a chi-square of two.
        let other = crate::test_normals(3, &[20_000, 4]).square();
        let exponential = (uniform + other) / 2.0;
        let labels = (&logits - exponential.log()).argmax(1, false);
        for scale in [0.5, 1.0, 3.0] {
            let found = temperature(&(&logits * scale), &labels);
            assert!((found / scale - 1.0).abs() < 0.03, "{scale}: {found}");
            let near = [0.97, 1.03].map(|factor| nll(&(&logits * scale), &labels, found * factor));
            let least = nll(&(&logits * scale), &labels, found);
            assert!(near.iter().all(|near| *near > least), "{scale}");
        }
    }

    /// Two classes, logits (1, -1) for each label: the best confidence is the target, 1 / (1 + exp(-2 / T)) = (n + 1) / (n + 2).
    #[test]
    fn a_hold_out_without_errors_limits_the_confidence() {
        for n in [2i64, 20, 1000] {
            let labels = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).remainder(2);
            let sign: Tensor = 1.0 - labels.to_kind(Kind::Double) * 2.0;
            let found = temperature(&Tensor::stack(&[&sign, &sign.neg()], 1), &labels);
            let expected = 2.0 / (n as f64 + 1.0).ln();
            assert!((found / expected - 1.0).abs() < 1e-4, "{n}: {found}, {expected}");
        }
    }

    #[test]
    fn calibration_by_hand() {
        let p = |rows: &[[f64; 2]]| Tensor::from_slice(&rows.concat()).view([-1, 2]);
        let found = Calibration::of(
            &p(&[[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]]),
            &Tensor::from_slice(&[0i64, 1, 1, 0]),
        );
        // Bins [0.8, 0.867), [0.867, 0.933), [0.933, 1].
        assert_eq!(found.bins.iter().map(|bin| bin.images).collect::<Vec<_>>(), [1, 2, 1]);
        let expected = (0.2 + (1.8 - 1.0) + 0.0) / 4.0;
        assert!((found.ece - expected).abs() < 1e-12, "{}", found.ece);
        let perfect = Calibration::of(&p(&[[1.0, 0.0], [0.0, 1.0]]), &Tensor::from_slice(&[0i64, 1]));
        assert_eq!((perfect.ece, perfect.bins.len()), (0.0, 1));
    }
}
