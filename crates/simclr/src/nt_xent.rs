//! NT-Xent, the normalised temperature-scaled cross entropy (paper section 2.1; google-research/simclr `objective.py`).
//!
//! The `[2N, 2N]` similarity matrix is never stored: two passes compute it tile by tile, the first for the sum of exponentials
//! of every row, the second for the closed-form gradient (docs/method.md 1.3), so memory is O(N D). The matrix is symmetric: if all
//! rows are local, only the tiles on and above the diagonal are computed.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[loss]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// tau, above 0. Paper: 0.1 on ImageNet (Table 5), 0.5 on CIFAR-10 (B.9).
    pub temperature: f64,
    /// Mean over anchors (paper) or twice that (official code; docs/method.md 1.1).
    pub scale: LossScale,
    /// L2-normalise z; off only for the ablation of Table 5.
    pub normalize: bool,
    /// Leave the positive out of the denominator: DCL (Yeh et al. 2021, arXiv 2110.06848, equation 4).
    pub decoupled: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { temperature: 0.1, scale: LossScale::Paper, normalize: true, decoupled: false }
    }
}

/// `loss.scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossScale {
    /// Mean over the 2N anchors.
    Paper,
    /// Sum of two means over N anchors each: twice the paper's.
    Official,
}

impl LossScale {
    /// Factor of the mean over anchors.
    pub fn factor(self) -> f64 {
        match self {
            Self::Paper => 1.0,
            Self::Official => 2.0,
        }
    }
}

impl LossConfig {
    /// Loss of `rows` views if all similarities were equal.
    pub fn chance(&self, rows: usize) -> f64 {
        self.scale.factor() * ((rows - self.excluded()) as f64).ln()
    }

    /// Views that are not in the denominator: the anchor and, decoupled, its positive.
    fn excluded(&self) -> usize {
        1 + usize::from(self.decoupled)
    }

    /// One line for the start of a run over `rows` views.
    pub fn describe(&self, rows: usize) -> String {
        let name = if self.decoupled { "DCL" } else { "NT-Xent" };
        let excluded = self.excluded();
        let chance = ((rows - excluded) as f64).ln();
        let temperature = self.temperature;
        format!(
            "{name} over {rows} views, temperature {temperature}; at chance ln({rows} - {excluded}) = {chance:.3}"
        )
    }
}

/// All-gather over the processes that hold a shard of the batch each.
///
/// Every process calls it the same number of times in the same order.
pub trait AllGather {
    /// Local rows `[2m, ..]`, m first views and then the m second views, to the rows of all ranks `[2N, ..]`: all first views by
    /// rank, then all second views. Not differentiable.
    fn all_gather(&self, own: &Tensor) -> Tensor;

    /// Number of images on lower ranks.
    fn first_image(&self) -> i64;
}

/// A single process that holds the whole batch.
#[derive(Debug, Clone, Copy)]
pub struct SingleProcess;

impl AllGather for SingleProcess {
    fn all_gather(&self, own: &Tensor) -> Tensor {
        own.shallow_clone()
    }

    fn first_image(&self) -> i64 {
        0
    }
}

/// The loss of `z` `[2m, D]`, rows `i` and `i + m` being two views of one image, and the contrastive accuracy (docs/method.md 1.4).
///
/// If several ranks share a batch of N images, loss and accuracy are this rank's share, to be summed; the gradient is that of
/// the whole loss.
#[derive(Debug)]
pub struct NtXent {
    /// `[]`, f32. Its graph leads to `z` only.
    pub loss: Tensor,
    /// Contrastive accuracy over the N views of the other side, `[]`, f32, no gradient. A tie counts as wrong.
    pub accuracy: Tensor,
}

/// Lower bound of the squared norm, the default epsilon of TensorFlow's `l2_normalize`.
const NORM_EPSILON: f64 = 1e-12;

/// Side of a tile of similarities: two tiles in f32 are 8 MiB, which fits the last-level cache.
pub(crate) const TILE: i64 = 1024;

/// The loss of a whole batch, computed in f32 for any dtype of `z`.
///
/// # Panics
/// If the number of rows of `z` is odd or 0.
pub fn nt_xent(z: &Tensor, config: &LossConfig) -> NtXent {
    nt_xent_sharded(z, config, &SingleProcess)
}

/// [`nt_xent`] of a batch that is sharded over ranks: each computes its own anchors.
///
/// There are two all-gathers, of the rows and of their sums of exponentials. As similarities are symmetric, the gradient of a row
/// as negative of other anchors follows from these, so no gradient is communicated.
///
/// # Panics
/// If the number of rows of `z` is odd or 0.
pub fn nt_xent_sharded(z: &Tensor, config: &LossConfig, group: &dyn AllGather) -> NtXent {
    let rows = z.size()[0];
    assert!(rows >= 2 && rows % 2 == 0, "rows i and i + N are two views of one image, got {rows} rows");
    let z = z.to_kind(Kind::Float); // with graph
    let (loss, accuracy, gradient) = tch::no_grad(|| {
        let rows = UnitRows::new(&z, config.normalize);
        let contrast = Similarities::new(&rows.unit, group, config);
        let AnchorTerms { sums, loss, right } = contrast.anchors();
        let anchors = contrast.all.size()[0] as f64;
        let scale = config.scale.factor() / anchors;
        let all_sums = group.all_gather(&sums);
        let gradient = contrast.gradient(&sums, &all_sums) * (scale / config.temperature);
        let accuracy = right.sum(Kind::Float) * (2.0 / anchors);
        ((loss * scale).to_kind(Kind::Float), accuracy, rows.back(&gradient))
    });
    NtXent { loss: with_gradient(&z, &gradient) + loss, accuracy }
}

/// A zero with the gradient `gradient` with respect to `z`: inserts a known gradient into a graph.
pub fn with_gradient(z: &Tensor, gradient: &Tensor) -> Tensor {
    ((z - z.detach()) * gradient).sum(Kind::Float)
}

/// Rows to unit length, `[B, D]`.
pub fn l2_normalize(z: &Tensor) -> Tensor {
    let squares = (z * z).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    z * squares.clamp_min(NORM_EPSILON).rsqrt()
}

/// Rows `[B, D]` normalised to unit length, and the factors of the backward pass.
pub(crate) struct UnitRows {
    pub(crate) unit: Tensor,
    /// 1 / |z| `[B, 1]`, and 1 for rows with a squared norm above epsilon, else 0.
    inverse: Option<(Tensor, Tensor)>,
}

impl UnitRows {
    pub(crate) fn new(z: &Tensor, normalize: bool) -> Self {
        if !normalize {
            return Self { unit: z.contiguous(), inverse: None };
        }
        let squares = (z * z).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let inverse = squares.clamp_min(NORM_EPSILON).rsqrt();
        let long = squares.gt(NORM_EPSILON).to_kind(Kind::Float);
        Self { unit: (z * &inverse).contiguous(), inverse: Some((inverse, long)) }
    }

    /// The gradient with respect to z from that of the unit rows: its radial component vanishes (docs/method.md 1.3).
    pub(crate) fn back(&self, gradient: &Tensor) -> Tensor {
        let Some((inverse, long)) = &self.inverse else { return gradient.shallow_clone() };
        let along = (gradient * &self.unit).sum_dim_intlist([1i64].as_slice(), true, Kind::Float) * long;
        (gradient - &self.unit * along) * inverse
    }
}

/// Similarities of the local rows with all rows.
struct Similarities {
    /// Local rows divided by the temperature, `[2m, D]`.
    own: Tensor,
    /// `[2N, D]`.
    all: Tensor,
    /// Images on lower ranks.
    first: i64,
    /// Buffers for two tiles.
    room: [Tensor; 2],
    decoupled: bool,
}

/// Results of the first pass over the local anchors.
struct AnchorTerms {
    /// Per anchor, excluding itself: the largest logit, and the sum of exp(logit - largest), `[2m, 2]`. A single f32
    /// log-sum-exp would round away small losses of confident anchors.
    sums: Tensor,
    /// Sum of their losses, `[]`, f64.
    loss: Tensor,
    /// Per local first view: whether the most similar second view is its positive, `[m]`.
    right: Tensor,
}

/// A rectangle of the similarity matrix within one view in rows and one view in columns.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// First local row, and number of rows.
    row: (i64, i64),
    /// First column, and number of columns.
    column: (i64, i64),
    /// Diagonal of the tile that holds self-similarities.
    itself: i64,
    /// Diagonal of the tile that holds positive pairs.
    partner: i64,
    /// Whether the tile also represents its transpose.
    mirrored: bool,
    /// Whether rows are first views and columns second views.
    crossed: bool,
}

impl Similarities {
    fn new(own: &Tensor, group: &dyn AllGather, config: &LossConfig) -> Self {
        let all = group.all_gather(own);
        let side = TILE.min(all.size()[0] / 2);
        let room = [(); 2].map(|()| Tensor::empty([side * side], (Kind::Float, own.device())));
        let (own, first) = (own / config.temperature, group.first_image());
        Self { own, all, first, room, decoupled: config.decoupled }
    }

    /// Number of local images and of all images.
    fn images(&self) -> (i64, i64) {
        (self.own.size()[0] / 2, self.all.size()[0] / 2)
    }

    /// All tiles; if all rows are local, only those on and above the diagonal.
    fn tiles(&self) -> impl Iterator<Item = Tile> {
        let ((own, all), first) = (self.images(), self.first);
        let starts = |images: i64| {
            (0..2).flat_map(move |view| (0..images).step_by(TILE as usize).map(move |i| (view, i)))
        };
        let whole = own == all;
        let tile = move |(view, i): (i64, i64), (other, k): (i64, i64)| {
            let (row, column) = (view * own + i, other * all + k);
            let among_all = view * all + first + i;
            Tile {
                row: (row, TILE.min(own - i)),
                column: (column, TILE.min(all - k)),
                itself: among_all - column,
                partner: (among_all + all) % (2 * all) - column,
                mirrored: whole && column > row,
                crossed: (view, other) == (0, 1),
            }
        };
        let tiles = starts(own).flat_map(move |row| starts(all).map(move |column| tile(row, column)));
        tiles.filter(move |tile| !whole || tile.column.0 >= tile.row.0)
    }

    /// A buffer for a tile.
    fn room(&self, index: usize, tile: Tile) -> Tensor {
        let (rows, columns) = (tile.row.1, tile.column.1);
        self.room[index].narrow(0, 0, rows * columns).view([rows, columns])
    }

    /// Similarities divided by the temperature; self-similarities are masked to minus infinity.
    fn logits(&self, tile: Tile) -> Tensor {
        let (rows, columns) = (narrow(&self.own, tile.row), narrow(&self.all, tile.column));
        let logits = rows.mm_out(&self.room(0, tile), &columns.tr());
        let _ = logits.diagonal(tile.itself, 0, 1).fill_(f64::NEG_INFINITY);
        logits
    }

    /// The first pass.
    fn anchors(&self) -> AnchorTerms {
        let (own, _) = self.images();
        let mut sums = LogSums::new(2 * own, &self.own);
        let lowest = |rows: i64| Tensor::full([rows], f64::NEG_INFINITY, (Kind::Float, self.own.device()));
        let (partners, others) = (lowest(2 * own), lowest(own));
        for tile in self.tiles() {
            let (logits, spare) = (self.logits(tile), self.room(1, tile));
            let mut positives = logits.diagonal(tile.partner, 0, 1);
            if positives.numel() > 0 {
                let here = |start: i64| partners.narrow(0, start, positives.size()[0]);
                here(tile.row.0 + (-tile.partner).max(0)).copy_(&positives);
                if tile.mirrored {
                    here(tile.column.0 + tile.partner.max(0)).copy_(&positives);
                }
            }
            if self.decoupled {
                let _ = positives.fill_(f64::NEG_INFINITY);
            }
            sums.add(&logits, tile.row, 1, &spare);
            if tile.mirrored {
                sums.add(&logits, tile.column, 0, &spare);
            }
            let _ = positives.fill_(f64::NEG_INFINITY);
            if tile.crossed {
                let mut best = narrow(&others, tile.row);
                best.copy_(&best.maximum(&logits.amax([1i64].as_slice(), false)));
            }
        }
        let losses = (&sums.largest - &partners) + sums.sum.log();
        AnchorTerms {
            sums: Tensor::stack(&[sums.largest, sums.sum], 1),
            loss: losses.sum(Kind::Double),
            right: partners.narrow(0, 0, own).gt_tensor(&others),
        }
    }

    /// The second pass: sum over k of (P_ik + P_ki - 2 Y_ik) z_k for every local row i, `[2m, D]` (docs/method.md 1.3), from the sums
    /// of the local anchors and of all.
    fn gradient(&self, own_sums: &Tensor, all_sums: &Tensor) -> Tensor {
        let split = |sums: &Tensor| (sums.select(1, 0).contiguous(), sums.select(1, 1).reciprocal());
        let ((own_largest, own_inverse), (all_largest, all_inverse)) = (split(own_sums), split(all_sums));
        let gradient = self.own.zeros_like();
        for tile in self.tiles() {
            let (mut logits, by_row) = (self.logits(tile), self.room(1, tile));
            let down = |of_rows: &Tensor| narrow(of_rows, tile.row).unsqueeze(1);
            // The exponent is at most 0 for either row as anchor.
            let _ = logits.sub_out(&by_row, &down(&own_largest)).exp_();
            let mut weights = logits.g_sub_(&narrow(&all_largest, tile.column)).exp_();
            let _ = weights.g_mul_(&narrow(&all_inverse, tile.column)).addcmul_(&by_row, &down(&own_inverse));
            let mut positives = weights.diagonal(tile.partner, 0, 1);
            // P of a positive is 0 if decoupled; what was computed there may have overflowed.
            let _ = if self.decoupled { positives.fill_(-2.0) } else { positives.g_sub_scalar_(2.0) };
            let _ = narrow(&gradient, tile.row).addmm_(&weights, &narrow(&self.all, tile.column));
            if tile.mirrored {
                let _ = narrow(&gradient, tile.column).addmm_(&weights.tr(), &narrow(&self.all, tile.row));
            }
        }
        gradient
    }
}

pub(crate) fn narrow(tensor: &Tensor, (start, length): (i64, i64)) -> Tensor {
    tensor.narrow(0, start, length)
}

/// Streaming log-sum-exp: the largest term so far, and the sum of the terms divided by its exponential.
pub(crate) struct LogSums {
    pub(crate) largest: Tensor,
    pub(crate) sum: Tensor,
}

impl LogSums {
    pub(crate) fn new(rows: i64, like: &Tensor) -> Self {
        let options = (Kind::Float, like.device());
        // The lowest finite value instead of minus infinity: differences stay finite.
        Self {
            largest: Tensor::full([rows], f64::from(f32::MIN), options),
            sum: Tensor::zeros([rows], options),
        }
    }

    /// Adds the terms of `logits` along its dimension `along` to the rows `rows`.
    pub(crate) fn add(&mut self, logits: &Tensor, rows: (i64, i64), along: i64, spare: &Tensor) {
        let (mut largest, mut sum) = (narrow(&self.largest, rows), narrow(&self.sum, rows));
        let now = largest.maximum(&logits.amax([along].as_slice(), false));
        let terms = logits.sub_out(spare, &now.unsqueeze(along)).exp_();
        let terms = terms.sum_dim_intlist([along].as_slice(), false, Kind::Float);
        let before = &sum * (&largest - &now).exp();
        sum.copy_(&(before + terms));
        largest.copy_(&now);
    }
}
