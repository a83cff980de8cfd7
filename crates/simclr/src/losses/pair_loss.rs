//! Losses on similarities: the loss of an anchor is a function of its logit with the positive and of its logits with the negatives.
//! What such a loss has to define, and its value and gradient in passes over the tiles.

use tch::{Kind, Tensor};

use super::{
    gather::AllGather,
    tiles::{Similarities, Tile, narrow},
};

/// A loss on similarities. An implementation must not synchronise with the host: a step is captured in a CUDA graph.
///
/// A logit is a similarity divided by the temperature. The candidates of an anchor are its negatives and, if
/// [`PairLoss::positive_is_candidate`], its positive; all other logits of a tile are minus infinity.
pub(super) trait PairLoss {
    /// As reports call it.
    fn name(&self) -> String;

    /// Divides the similarities.
    fn temperature(&self) -> f64;

    /// The mean over anchors if all similarities were equal, for this number of negatives per anchor, and its formula.
    fn chance(&self, negatives: usize) -> (f64, String) {
        let candidates = negatives + 1;
        ((candidates as f64).ln(), format!("ln {candidates}"))
    }

    /// Whether the loss of equal similarities is the same at every value of them and is above 0, so that a lower loss shows learning.
    fn chance_decides(&self) -> bool {
        true
    }

    /// Whether the positive is a term of the sums. Its slope is then that of a candidate, minus 1.
    fn positive_is_candidate(&self) -> bool {
        false
    }

    /// Values per anchor before the first candidate, `[2m]` each; `positives` are the anchors' logits with their positives.
    fn start(&self, positives: &Tensor) -> Vec<Tensor>;

    /// Adds the candidates of a tile to the values of its anchors, in place. `spare` is a buffer of the tile's shape.
    fn add(&self, anchors: &Side, logits: &Tensor, spare: &Tensor);

    /// Losses and slopes from the values after the last candidate.
    fn finish(&self, values: &[Tensor], positives: &Tensor, batch: &Batch<'_>) -> AnchorTerms;

    /// Derivatives of the losses of the rows at the logits of the tile, plus those of the columns. `logits` and `spare` may be
    /// overwritten. What is computed for a positive that is no candidate is not used.
    fn slopes(&self, rows: &Side, columns: &Side, logits: Tensor, spare: Tensor) -> Tensor;
}

/// The anchors along one side of a tile.
pub(super) struct Side {
    /// Values or coefficients of the anchors, 1-D.
    pub values: Vec<Tensor>,
    /// Dimension of the tile along which their candidates lie: 1 if the anchors are its rows.
    pub along: i64,
    /// Number of the first candidate among the 2N rows.
    first: i64,
}

impl Side {
    fn of_rows(tile: Tile, values: &[Tensor]) -> Self {
        Self { values: at(values, tile.row), along: 1, first: tile.column.0 }
    }

    fn of_columns(tile: Tile, values: &[Tensor]) -> Self {
        Self { values: at(values, tile.column), along: 0, first: tile.row_among_all }
    }

    /// The value of `index`, shaped to broadcast over the tile.
    pub fn over_tile(&self, index: usize) -> Tensor {
        self.values[index].unsqueeze(self.along)
    }

    /// Numbers of the candidates of a tile among the 2N rows, f32, shaped to broadcast over it. Exact up to 2^24 rows.
    pub fn candidates(&self, tile: &Tensor) -> Tensor {
        let end = self.first + tile.size()[self.along as usize];
        Tensor::arange_start(self.first, end, (Kind::Float, tile.device())).unsqueeze(1 - self.along)
    }

    /// [`Side::candidates`] from their position along the tile.
    pub fn number(&self, position: &Tensor) -> Tensor {
        (position + self.first).to_kind(Kind::Float)
    }
}

fn at(values: &[Tensor], range: (i64, i64)) -> Vec<Tensor> {
    values.iter().map(|value| narrow(value, range)).collect()
}

/// What [`PairLoss::finish`] may need of the batch.
pub(super) struct Batch<'a> {
    /// Negatives per anchor.
    pub negatives: f64,
    pub group: &'a dyn AllGather,
}

/// Results of the first pass over the local anchors.
pub(super) struct AnchorTerms {
    /// `[2m]`.
    pub losses: Tensor,
    /// What the slopes at the candidates depend on, `[2m]` each.
    pub coefficients: Vec<Tensor>,
    /// Derivatives at the positives `[2m]`; not used if the positive is a candidate.
    pub at_positive: Tensor,
}

/// Losses of the local anchors.
pub(super) struct Evaluated {
    /// Their sum, `[]`, f64.
    pub loss: Tensor,
    /// Derivative of the sum of the losses of all anchors with respect to the local rows, times the temperature, `[2m, D]`.
    pub gradient: Tensor,
    /// Per local first view: whether the most similar second view is its positive, `[m]`.
    pub right: Tensor,
}

/// Value and gradient in two passes over the tiles. There are two all-gathers, of the rows and of the coefficients, and those of the
/// loss: as similarities are symmetric, the gradient of a row as negative of other anchors follows from their coefficients.
pub(super) fn evaluate(loss: &dyn PairLoss, similarities: &Similarities, batch: &Batch<'_>) -> Evaluated {
    let positives = positives(similarities);
    let (values, right) = first_pass(loss, similarities, &positives);
    let terms = loss.finish(&values, &positives, batch);
    Evaluated {
        loss: terms.losses.sum(Kind::Double),
        gradient: second_pass(loss, similarities, &terms, batch.group),
        right,
    }
}

/// Logits of the local anchors with their positives, from the same products as all other logits: equal rows compare as equal.
fn positives(similarities: &Similarities) -> Tensor {
    let found = similarities.per_anchor(f64::NEG_INFINITY);
    for tile in similarities.tiles().filter(Tile::has_positives) {
        let positives = tile.positives(&similarities.logits(tile));
        let count = positives.size()[0];
        narrow(&found, tile.rows_of_positives(count)).copy_(&positives);
        if tile.mirrored {
            narrow(&found, tile.columns_of_positives(count)).copy_(&positives);
        }
    }
    found
}

/// Values of the local anchors, and whether their positive is the most similar view of the other side.
fn first_pass(loss: &dyn PairLoss, similarities: &Similarities, positives: &Tensor) -> (Vec<Tensor>, Tensor) {
    let (own, _) = similarities.images();
    let values = loss.start(positives);
    let others = similarities.per_anchor(f64::NEG_INFINITY).narrow(0, 0, own);
    for tile in similarities.tiles() {
        let (logits, spare) = (similarities.logits(tile), similarities.room(1, tile));
        let mut of_positives = tile.positives(&logits);
        if !loss.positive_is_candidate() {
            let _ = of_positives.fill_(f64::NEG_INFINITY);
        }
        loss.add(&Side::of_rows(tile, &values), &logits, &spare);
        if tile.mirrored {
            loss.add(&Side::of_columns(tile, &values), &logits, &spare);
        }
        let _ = of_positives.fill_(f64::NEG_INFINITY);
        if tile.crossed {
            let mut best = narrow(&others, tile.row);
            best.copy_(&best.maximum(&logits.amax([1i64].as_slice(), false)));
        }
    }
    (values, positives.narrow(0, 0, own).gt_tensor(&others))
}

/// Sum over k of the derivatives at s(i, k) times row k, for every local row i (docs/method.md 1.3).
fn second_pass(
    loss: &dyn PairLoss,
    similarities: &Similarities,
    terms: &AnchorTerms,
    group: &dyn AllGather,
) -> Tensor {
    let (own, _) = similarities.images();
    let stacked = Tensor::stack(&terms.coefficients, 1);
    let all = group.all_gather(&stacked);
    let split = |stacked: &Tensor| -> Vec<Tensor> {
        (0..stacked.size()[1]).map(|index| stacked.select(1, index).contiguous()).collect()
    };
    let (own_coefficients, all_coefficients) = (split(&stacked), split(&all));
    // The two anchors of a pair.
    let at_pair = &terms.at_positive + terms.at_positive.roll([own], [0]);
    let gradient = similarities.all.narrow(0, 0, 2 * own).zeros_like();
    for tile in similarities.tiles() {
        let (rows, columns) =
            (Side::of_rows(tile, &own_coefficients), Side::of_columns(tile, &all_coefficients));
        let weights = loss.slopes(&rows, &columns, similarities.logits(tile), similarities.room(1, tile));
        let mut of_positives = tile.positives(&weights);
        if loss.positive_is_candidate() {
            let _ = of_positives.g_sub_scalar_(2.0);
        } else if tile.has_positives() {
            let rows = tile.rows_of_positives(of_positives.size()[0]);
            of_positives.copy_(&narrow(&at_pair, rows));
        }
        let _ = narrow(&gradient, tile.row).addmm_(&weights, &narrow(&similarities.all, tile.column));
        if tile.mirrored {
            let _ =
                narrow(&gradient, tile.column).addmm_(&weights.tr(), &narrow(&similarities.all, tile.row));
        }
    }
    gradient
}
