//! InfoNCE: cross entropy of the positive key of a query against negative keys (MoCo, arXiv 1911.05722, equation 1).
//!
//! Logits `[m, K]` are never stored: as in the losses of a batch, two passes compute them tile by tile, the first for the sum of
//! exponentials of every query, the second for the closed-form gradient (docs/method.md 7.1). Keys have no gradient.

use tch::{Kind, Tensor};

use super::{
    log_sums,
    tiles::{TILE, narrow},
    unit_rows::UnitRows,
    with_gradient,
};

/// Negative keys of all queries.
#[derive(Debug, Clone, Copy)]
pub struct NegativeKeys<'a> {
    /// `[K, D]`, unit length.
    pub keys: &'a Tensor,
    /// Keys that are no negative of a query: key `i + d` of query `i`, for every `d`.
    pub excluded: &'a [i64],
}

/// Loss and accuracy of [`info_nce`].
#[derive(Debug)]
pub struct InfoNce {
    /// Sum over the queries, `[]`, f32. Its graph leads to the queries only.
    pub loss: Tensor,
    /// Number of queries with the positive as their most similar key, `[]`, f32, no gradient. A tie counts as wrong.
    pub right: Tensor,
}

/// The loss of `queries` `[m, D]`, normalised here, with `positives` `[m, D]` of unit length, in f32 for any dtype.
pub fn info_nce(
    queries: &Tensor,
    positives: &Tensor,
    negatives: &[NegativeKeys<'_>],
    temperature: f64,
) -> InfoNce {
    let queries = queries.to_kind(Kind::Float); // with graph
    let (loss, right, gradient) = tch::no_grad(|| {
        let rows = UnitRows::new(&queries, true);
        let contrast = Contrast::new(&rows.unit, positives, negatives, temperature);
        let (sums, right) = contrast.sums();
        let losses = (&sums[0] - &contrast.positive_logits) + sums[1].log();
        let gradient = contrast.gradient(&sums) / temperature;
        (losses.sum(Kind::Double).to_kind(Kind::Float), right, rows.back(&gradient))
    });
    InfoNce { loss: with_gradient(&queries, &gradient) + loss, right }
}

struct Contrast<'a> {
    /// Unit queries divided by the temperature, `[m, D]`.
    queries: Tensor,
    positives: &'a Tensor,
    /// `[m]`.
    positive_logits: Tensor,
    negatives: &'a [NegativeKeys<'a>],
    /// Buffers for two tiles.
    room: [Tensor; 2],
}

/// A rectangle of the logits: first row and number of rows, first column and number of columns.
#[derive(Debug, Clone, Copy)]
struct Tile {
    rows: (i64, i64),
    columns: (i64, i64),
}

impl<'a> Contrast<'a> {
    fn new(
        unit: &Tensor,
        positives: &'a Tensor,
        negatives: &'a [NegativeKeys<'a>],
        temperature: f64,
    ) -> Self {
        let queries = unit / temperature;
        let positive_logits = (&queries * positives).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let room = [(); 2].map(|()| Tensor::empty([TILE * TILE], (Kind::Float, unit.device())));
        Self { queries, positives, positive_logits, negatives, room }
    }

    /// The tiles of the logits with `keys` keys; few queries have wide tiles.
    fn tiles(&self, keys: i64) -> impl Iterator<Item = Tile> + use<> {
        let queries = self.queries.size()[0];
        let width = TILE * TILE / TILE.min(queries.max(1));
        let starts =
            |all: i64, side: i64| (0..all).step_by(side as usize).map(move |at| (at, side.min(all - at)));
        starts(queries, TILE)
            .flat_map(move |rows| starts(keys, width).map(move |columns| Tile { rows, columns }))
    }

    fn room(&self, index: usize, tile: Tile) -> Tensor {
        let (rows, columns) = (tile.rows.1, tile.columns.1);
        self.room[index].narrow(0, 0, rows * columns).view([rows, columns])
    }

    /// Minus infinity for excluded keys.
    fn logits(&self, negatives: &NegativeKeys<'_>, tile: Tile) -> Tensor {
        let (queries, keys) = (narrow(&self.queries, tile.rows), narrow(negatives.keys, tile.columns));
        let logits = queries.mm_out(&self.room(0, tile), &keys.tr());
        for diagonal in negatives.excluded {
            let offset = diagonal + tile.rows.0 - tile.columns.0;
            let _ = logits.diagonal(offset, 0, 1).fill_(f64::NEG_INFINITY);
        }
        logits
    }

    /// The first pass: largest logit and sum over the positive and all negatives, and the number of queries with a positive above all negatives.
    fn sums(&self) -> (Vec<Tensor>, Tensor) {
        let sums = log_sums::start(&self.positive_logits);
        for negatives in self.negatives {
            for tile in self.tiles(negatives.keys.size()[0]) {
                let here: Vec<Tensor> = sums.iter().map(|values| narrow(values, tile.rows)).collect();
                log_sums::add_along(&here, 1, &self.logits(negatives, tile), &self.room(1, tile));
            }
        }
        let right = self.positive_logits.gt_tensor(&sums[0]).sum(Kind::Float);
        let positives = self.positive_logits.unsqueeze(1);
        log_sums::add_along(&sums, 1, &positives, &positives.empty_like());
        (sums, right)
    }

    /// The second pass: the sum over the negatives k of P k, plus (P - 1) times the positive, `[m, D]`.
    fn gradient(&self, sums: &[Tensor]) -> Tensor {
        let (largest, inverse) = (&sums[0], sums[1].reciprocal());
        let positive = (&self.positive_logits - largest).exp() * &inverse - 1.0;
        let gradient = self.positives * positive.unsqueeze(1);
        for negatives in self.negatives {
            for tile in self.tiles(negatives.keys.size()[0]) {
                let down = |of_rows: &Tensor| narrow(of_rows, tile.rows).unsqueeze(1);
                let mut weights = self.logits(negatives, tile);
                let _ = weights.g_sub_(&down(largest)).exp_().g_mul_(&down(&inverse));
                let _ = narrow(&gradient, tile.rows).addmm_(&weights, &narrow(negatives.keys, tile.columns));
            }
        }
        gradient
    }
}
