//! Contrastive losses, a file each: z `[2N, D]` to a loss (docs/method.md section 1).
//!
//! The `[2N, 2N]` similarity matrix is never stored: passes compute it tile by tile, first for the sums of every row, then for the
//! closed-form gradient, so memory is O(N D). The matrix is symmetric: if all rows are local, only the tiles on and above the diagonal
//! are computed. A new loss is a `PairLoss` in a file of its own, a line in `LossConfig::build`, and its keys in `config.rs`.

mod config;
mod dcl;
mod dclw;
mod debiased;
mod gather;
mod hard;
mod info_nce;
mod log_sums;
mod margin;
mod nt_logistic;
mod nt_xent;
mod pair_loss;
mod semi_hard;
mod tiles;
mod unit_rows;

use tch::{Kind, Tensor};

use dcl::Dcl;
use dclw::Dclw;
use debiased::Debiased;
use hard::Hard;
use margin::Margin;
use nt_logistic::NtLogistic;
use nt_xent::NtXent;
use pair_loss::{Batch, Evaluated, PairLoss, evaluate};
use semi_hard::SemiHard;
use tiles::Similarities;
use unit_rows::UnitRows;

pub use config::{LossConfig, LossKind, Negatives, Reduction};
pub use gather::{AllGather, SingleProcess};
pub use info_nce::{InfoNce, NegativeKeys, info_nce};
pub use unit_rows::l2_normalize;

impl LossConfig {
    /// The loss of a valid configuration.
    fn build(&self) -> Box<dyn PairLoss> {
        let Self { temperature, margin, debias_prior: prior, hard_beta: beta, .. } = *self;
        let sigma = self.decoupled_weight_sigma;
        match (self.kind, self.semi_hard) {
            (LossKind::NtXent, true) => Box::new(SemiHard { loss: NtXent { temperature } }),
            (LossKind::NtXent, false) if sigma > 0.0 => Box::new(Dclw { dcl: Dcl { temperature }, sigma }),
            (LossKind::NtXent, false) if self.decoupled => Box::new(Dcl { temperature }),
            (LossKind::NtXent, false) if beta > 0.0 => Box::new(Hard { temperature, prior, beta }),
            (LossKind::NtXent, false) if prior > 0.0 => Box::new(Debiased { temperature, prior }),
            (LossKind::NtXent, false) => Box::new(NtXent { temperature }),
            (LossKind::NtLogistic, true) => Box::new(SemiHard { loss: NtLogistic { temperature } }),
            (LossKind::NtLogistic, false) => Box::new(NtLogistic { temperature }),
            (LossKind::Margin, true) => Box::new(SemiHard { loss: Margin { margin } }),
            (LossKind::Margin, false) => Box::new(Margin { margin }),
        }
    }

    /// Loss of `rows` views if all similarities were equal; for NT-Logistic, if all were 0.
    pub fn chance(&self, rows: usize) -> f64 {
        self.reduction.factor() * self.build().chance(self.negatives.count(rows)).0
    }

    /// Whether a loss below [`LossConfig::chance`] shows learning. Not so for NT-Logistic, where the loss of equal similarities depends
    /// on them, and for a margin of 0, where it is 0.
    pub fn chance_decides(&self) -> bool {
        self.build().chance_decides()
    }

    /// One line for the start of a run over `rows` views.
    pub fn describe(&self, rows: usize) -> String {
        let loss = self.build();
        let negatives = self.negatives.count(rows);
        let (chance, formula) = loss.chance(negatives);
        let temperature = match self.kind {
            LossKind::Margin => String::new(),
            _ => format!(", temperature {}", self.temperature),
        };
        format!(
            "{} over {rows} views, {negatives} negatives each{temperature}; at chance {formula} = {chance:.3}",
            loss.name()
        )
    }
}

/// The loss of `z` `[2m, D]`, rows `i` and `i + m` being two views of one image, and the contrastive accuracy (docs/method.md 1.4).
///
/// If several ranks share a batch of N images, loss and accuracy are this rank's share, to be summed; the gradient is that of
/// the whole loss.
#[derive(Debug)]
pub struct ContrastiveLoss {
    /// `[]`, f32. Its graph leads to `z` only.
    pub loss: Tensor,
    /// Contrastive accuracy over the N views of the other side, `[]`, f32, no gradient. A tie counts as wrong.
    pub accuracy: Tensor,
}

/// The loss of a whole batch, computed in f32 for any dtype of `z`.
///
/// # Panics
/// If the number of rows of `z` is odd or 0, or `config` is invalid.
pub fn contrastive_loss(z: &Tensor, config: &LossConfig) -> ContrastiveLoss {
    contrastive_loss_sharded(z, config, &SingleProcess)
}

/// [`contrastive_loss`] of a batch that is sharded over ranks: each computes its own anchors. No gradient is communicated.
///
/// # Panics
/// If the number of rows of `z` is odd or 0, or `config` is invalid.
pub fn contrastive_loss_sharded(z: &Tensor, config: &LossConfig, group: &dyn AllGather) -> ContrastiveLoss {
    let rows = z.size()[0];
    assert!(rows >= 2 && rows % 2 == 0, "rows i and i + N are two views of one image, got {rows} rows");
    assert!(config.validate().is_ok(), "{:?}", config.validate());
    let z = z.to_kind(Kind::Float); // with graph
    let loss = config.build();
    let (value, accuracy, gradient) = tch::no_grad(|| {
        let rows = UnitRows::new(&z, config.normalize);
        let crossed_only = config.negatives == Negatives::OtherView;
        let similarities = Similarities::new(&rows.unit, group, loss.temperature(), crossed_only);
        let anchors = similarities.all.size()[0] as usize;
        let negatives = config.negatives.count(anchors) as f64;
        let Evaluated { loss: sum, gradient, right } =
            evaluate(&*loss, &similarities, &Batch { negatives, group });
        let scale = config.reduction.factor() / anchors as f64;
        let gradient = gradient * (scale / loss.temperature());
        let accuracy = right.sum(Kind::Float) * (2.0 / anchors as f64);
        ((sum * scale).to_kind(Kind::Float), accuracy, rows.back(&gradient))
    });
    ContrastiveLoss { loss: with_gradient(&z, &gradient) + value, accuracy }
}

/// A zero with the gradient `gradient` with respect to `z`: inserts a known gradient into a graph.
pub fn with_gradient(z: &Tensor, gradient: &Tensor) -> Tensor {
    ((z - z.detach()) * gradient).sum(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_name_the_loss_and_its_value_at_chance() {
        let nt_xent = LossConfig::default();
        assert_eq!(
            nt_xent.describe(512),
            "NT-Xent over 512 views, 510 negatives each, temperature 0.1; at chance ln 511 = 6.236"
        );
        let margin = LossConfig {
            kind: LossKind::Margin,
            negatives: Negatives::OtherView,
            semi_hard: true,
            ..LossConfig::default()
        };
        assert_eq!(
            margin.describe(512),
            "margin loss (0.4) with semi-hard negatives over 512 views, 255 negatives each; at chance the margin = 0.400"
        );
    }
}
