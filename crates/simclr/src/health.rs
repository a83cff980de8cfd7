//! Label-free metrics of training health, and a verdict in words.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::losses::l2_normalize;

/// Label-free metrics of one batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Mean over anchors (the paper's scale).
    pub loss: f64,
    /// The loss if all similarities were equal, in the same scale; ln(2N - 1) for NT-Xent.
    pub chance_loss: f64,
    /// Share of first views for which the nearest second view is the positive, `[0, 1]`.
    pub contrastive_accuracy: f64,
    /// Mean |z1 - z2|^2 of positive pairs, `[0, 4]`, lower is closer (Wang & Isola 2020).
    pub alignment: f64,
    /// ln of the mean of exp(-2 |zi - zj|^2) over other pairs, lower is more even (Wang & Isola 2020).
    pub uniformity: f64,
    /// Effective rank of h, 1 to F: exp of the entropy of its singular values (RankMe, Garrido et al. 2023).
    pub effective_rank: f64,
    /// F.
    pub features: i64,
    /// Mean over dimensions of the standard deviation of unit-length z, times sqrt(D): 1 if isotropic, 0 if collapsed.
    pub spread: f64,
    /// N.
    #[serde(skip)]
    pub images: i64,
    /// Whether a loss below `chance_loss` shows learning; if not, the contrastive accuracy is compared with chance.
    #[serde(skip)]
    pub chance_decides: bool,
}

/// Spread below which the representation has collapsed.
const COLLAPSED_SPREAD: f64 = 0.05;
/// Relative distance from chance within which a loss counts as at chance.
const AT_CHANCE: f64 = 0.01;
/// Relative distance above chance beyond which a run counts as diverged.
const FAR_ABOVE: f64 = 0.05;

/// Own views that are found by chance in fewer than one of a thousand batches (a Poisson variable of mean 1).
const FOUND_BY_CHANCE: f64 = 5.0;

/// A loss compared with chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regime {
    /// Below chance.
    Learning,
    /// At chance, or slightly above.
    AtChance,
    /// Far above chance, or not finite.
    Diverged,
}

impl Regime {
    /// The regime of `loss`, given the loss at chance in the same scale.
    pub fn of(loss: f64, chance: f64) -> Self {
        if loss < chance * (1.0 - AT_CHANCE) {
            Self::Learning
        } else if loss <= chance * (1.0 + FAR_ABOVE) {
            Self::AtChance
        } else {
            Self::Diverged
        }
    }

    /// The regime by the share of `images` for which the own view was found. At chance one is found, with a standard deviation of 1.
    fn of_accuracy(loss: f64, accuracy: f64, images: i64) -> Self {
        if !loss.is_finite() {
            Self::Diverged
        } else if accuracy * images as f64 > FOUND_BY_CHANCE {
            Self::Learning
        } else {
            Self::AtChance
        }
    }
}

/// Share of F below which the verdict mentions the effective rank as low.
const NARROW_RANK: f64 = 0.05;

impl Health {
    /// Metrics of `h` `[2N, F]` and `z` `[2N, D]`, rows i and i + N being views of one image. `loss` and `chance_loss` are means over
    /// anchors; if `chance_decides` is false, the verdict follows the contrastive accuracy in place of the loss.
    pub fn of(
        h: &Tensor,
        z: &Tensor,
        [loss, chance_loss]: [f64; 2],
        contrastive_accuracy: f64,
        chance_decides: bool,
    ) -> Self {
        tch::no_grad(|| {
            let n = z.size()[0] / 2;
            let unit = l2_normalize(&z.to_kind(Kind::Float));
            let apart = (unit.narrow(0, 0, n) - unit.narrow(0, n, n)).square();
            let alignment = apart.sum(Kind::Double).double_value(&[]) / n as f64;
            let spread = unit.std_dim([0i64].as_slice(), false, false).mean(Kind::Double);
            Self {
                loss,
                chance_loss,
                contrastive_accuracy,
                alignment,
                uniformity: uniformity(&unit, n),
                effective_rank: effective_rank(h),
                features: h.size()[1],
                spread: spread.double_value(&[]) * (unit.size()[1] as f64).sqrt(),
                images: n,
                chance_decides,
            }
        })
    }

    /// What the loss shows, or the contrastive accuracy where the loss does not.
    pub fn regime(&self) -> Regime {
        match self.chance_decides {
            true => Regime::of(self.loss, self.chance_loss),
            false => Regime::of_accuracy(self.loss, self.contrastive_accuracy, self.images),
        }
    }

    /// Interpretation in a sentence or two.
    pub fn verdict(&self) -> String {
        if self.spread < COLLAPSED_SPREAD {
            return format!(
                "collapsed: all projections point the same way (spread {:.3} of 1); lower the learning rate",
                self.spread
            );
        }
        let (loss, chance) = (self.loss, self.chance_loss);
        let mut text = match self.regime() {
            Regime::AtChance if !self.chance_decides => format!(
                "not learning yet: own view found for {:.0} % of images, loss {loss:.3}",
                100.0 * self.contrastive_accuracy
            ),
            Regime::AtChance => format!("not learning yet: loss {loss:.3} is at chance ({chance:.3})"),
            Regime::Diverged => format!(
                "not learning: loss {loss:.3} is far above chance ({chance:.3}): usual in the first steps, later a sign of \
                 divergence, of too low a temperature or of too high a learning rate"
            ),
            Regime::Learning => format!(
                "learning: loss {loss:.3} (chance {chance:.3}), own view found for {:.0} % of images",
                100.0 * self.contrastive_accuracy
            ),
        };
        text += &format!(", h uses {:.0} of {} dimensions", self.effective_rank, self.features);
        if self.effective_rank < NARROW_RANK * self.features as f64 {
            text += ": few, features may be collapsing onto them";
        }
        text
    }
}

/// Rows per block, so that memory does not grow with the square of the batch.
const ROWS: usize = 2048;

/// First row and number of rows of every block.
fn parts(rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(ROWS).map(move |start| (start, (rows - start).min(ROWS as i64)))
}

fn uniformity(unit: &Tensor, n: i64) -> f64 {
    let rows = 2 * n;
    let others: f64 = parts(rows)
        .map(|(start, count)| {
            // |zi - zj|^2 of unit vectors.
            let squared: Tensor = 2.0 - unit.narrow(0, start, count).matmul(&unit.tr()) * 2.0;
            let potentials = (squared * -2.0).exp();
            // Exclude the view itself and its positive.
            for offset in [start, start + n, start - n] {
                let _ = potentials.diagonal(offset, 0, 1).fill_(0.0);
            }
            potentials.sum(Kind::Double).double_value(&[])
        })
        .sum();
    (others.max(f64::MIN_POSITIVE) / (rows * (rows - 2)).max(1) as f64).ln()
}

/// exp of the entropy of the normalised singular values; NaN if h contains NaN or infinity.
fn effective_rank(h: &Tensor) -> f64 {
    let (rows, features) = (h.size()[0], h.size()[1]);
    // Squared singular values are the eigenvalues of the smaller Gram matrix.
    let gram = if rows < features {
        let h = h.to_kind(Kind::Double);
        h.matmul(&h.tr())
    } else {
        let gram = Tensor::zeros([features, features], (Kind::Double, h.device()));
        parts(rows).fold(gram, |gram, (start, count)| {
            let part = h.narrow(0, start, count).to_kind(Kind::Double);
            gram + part.tr().matmul(&part)
        })
    };
    let Ok(eigenvalues) = gram.f_linalg_eigvalsh("L") else { return f64::NAN };
    let singular = eigenvalues.clamp_min(0.0).sqrt();
    let total = singular.sum(Kind::Double);
    let share = &singular / total.clamp_min(f64::MIN_POSITIVE);
    let entropy = -(&share * share.clamp_min(f64::MIN_POSITIVE).log()).sum(Kind::Double);
    entropy.double_value(&[]).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(h: &Tensor, z: &Tensor, loss: f64, accuracy: f64) -> Health {
        let chance = ((z.size()[0] - 1) as f64).ln();
        Health::of(h, z, [loss, chance], accuracy, true)
    }
    use crate::test_normals;

    const OPTIONS: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

    #[test]
    fn effective_rank_of_orthogonal_and_of_equal_features() {
        assert!((effective_rank(&Tensor::eye(8, OPTIONS)) - 8.0).abs() < 1e-9);
        assert!((effective_rank(&Tensor::ones([8, 5], OPTIONS)) - 1.0).abs() < 1e-6);
    }

    /// Two directions of equal weight and one of half: shares .4 .4 .2.
    #[test]
    fn effective_rank_of_unequal_directions() {
        let h = Tensor::from_slice(&[2.0f32, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0]).view([3, 3]);
        let entropy = -(2.0 * 0.4 * 0.4f64.ln() + 0.2 * 0.2f64.ln());
        assert!((effective_rank(&h) - entropy.exp()).abs() < 1e-6);
        // Tall and wide matrices of the same singular values agree.
        let tall = Tensor::cat(&[&h, &Tensor::zeros([4, 3], OPTIONS)], 0);
        assert!((effective_rank(&tall) - effective_rank(&tall.tr())).abs() < 1e-6);
    }

    /// Several blocks, the last one partial, against the formulas over whole matrices.
    #[test]
    fn blockwise_metrics_agree_with_whole_matrices() {
        let n = ROWS as i64 + 7;
        let z = Tensor::arange(2 * n * 3, OPTIONS).sin().view([2 * n, 3]);
        let unit = l2_normalize(&z).to_kind(Kind::Double);
        let potentials: Tensor = ((unit.matmul(&unit.tr()) * 2.0 - 2.0) * 2.0).exp();
        for offset in [0, n, -n] {
            let _ = potentials.diagonal(offset, 0, 1).fill_(0.0);
        }
        let expected = (potentials.sum(Kind::Double).double_value(&[]) / (2 * n * (2 * n - 2)) as f64).ln();
        let health = health(&z, &z, 1.0, 0.5);
        assert!((health.uniformity - expected).abs() < 1e-5, "{} {expected}", health.uniformity);
        let singular = z.to_kind(Kind::Double).svd(true, false).1;
        let share = &singular / singular.sum(Kind::Double);
        let entropy = -(&share * share.log()).sum(Kind::Double).double_value(&[]);
        assert!((health.effective_rank - entropy.exp()).abs() < 1e-4, "{}", health.effective_rank);
    }

    #[test]
    fn non_finite_features_do_not_panic() {
        let h = Tensor::from_slice(&[f32::NAN, 1.0, 2.0, f32::INFINITY]).view([2, 2]);
        let health = health(&h, &Tensor::eye(2, OPTIONS), 1.0, 0.5);
        assert!(health.effective_rank.is_nan(), "{}", health.effective_rank);
        assert!(!health.verdict().is_empty());
    }

    #[test]
    fn verdict_mentions_a_low_effective_rank() {
        let h = test_normals(0, &[64, 2]).matmul(&test_normals(1, &[2, 128]));
        let health = health(&h, &test_normals(2, &[64, 16]), 1.0, 0.5);
        assert!(health.effective_rank < 2.001, "{}", health.effective_rank);
        assert!(health.verdict().contains("of 128 dimensions: few"), "{}", health.verdict());
    }

    #[test]
    fn verdict_of_equal_projections_is_collapsed() {
        let health = health(&Tensor::ones([8, 4], OPTIONS), &Tensor::ones([8, 4], OPTIONS), 7f64.ln(), 0.25);
        assert!(health.alignment.abs() < 1e-6 && health.spread < 1e-3);
        assert!(
            health.uniformity.abs() < 1e-5,
            "all at one point: exp(0), ln 1 = 0, got {}",
            health.uniformity
        );
        assert!(health.verdict().starts_with("collapsed"), "{}", health.verdict());
    }

    /// Two images, views at (1, 0) and (0, 1): positives coincide, others are a squared distance of 2 apart.
    #[test]
    fn alignment_and_uniformity_of_a_square() {
        let z = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]).view([4, 2]);
        let health = health(&z, &z, 0.5, 1.0);
        assert!(health.alignment.abs() < 1e-6);
        assert!((health.uniformity + 4.0).abs() < 1e-5, "{}", health.uniformity);
        assert!((health.chance_loss - 3f64.ln()).abs() < 1e-12);
        assert!(health.verdict().starts_with("learning"), "{}", health.verdict());
    }

    #[test]
    fn regimes_lie_below_at_and_far_above_chance() {
        let of = |loss| Regime::of(loss, 6.0);
        assert_eq!((of(5.9), of(5.95), of(6.2)), (Regime::Learning, Regime::AtChance, Regime::AtChance));
        assert_eq!(
            (of(6.4), of(f64::INFINITY), of(f64::NAN)),
            (Regime::Diverged, Regime::Diverged, Regime::Diverged)
        );
    }

    /// The loss of NT-Logistic says little: with 64 images, one own view in 64 is chance.
    #[test]
    fn accuracy_decides_where_the_loss_does_not() {
        let z = test_normals(0, &[128, 16]);
        let of = |accuracy| Health::of(&z, &z, [90.0, 88.0], accuracy, false);
        assert_eq!((of(0.02).regime(), of(0.5).regime()), (Regime::AtChance, Regime::Learning));
        assert!(of(0.5).verdict().starts_with("learning"), "{}", of(0.5).verdict());
        let verdict = of(0.02).verdict();
        assert!(verdict.starts_with("not learning yet: own view found for 2 % of images"), "{verdict}");
    }

    #[test]
    fn verdicts_at_chance_and_far_above_it_differ() {
        let z = test_normals(0, &[64, 16]);
        let far = health(&z, &z, 576_953.625, 0.03).verdict();
        assert!(far.starts_with("not learning: loss 576953.625 is far above chance"), "{far}");
        assert!(!far.contains("at chance"), "{far}");
        let health = health(&z, &z, 63f64.ln(), 0.03);
        assert!(health.verdict().starts_with("not learning yet"), "{}", health.verdict());
        assert!((health.spread - 1.0).abs() < 0.1, "{}", health.spread);
    }
}
