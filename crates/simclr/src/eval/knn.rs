//! Features `[M, F]` with labels and queries `[Q, F]` to predicted labels `[Q]`: cosine nearest neighbours, weighted
//! as the kNN monitor of MoCo and its followers (spec 8.2) or by plain majority.

use tch::{Kind, Tensor};

/// Temperature of the weights exp(sim / T) (spec 8.2).
pub const TEMPERATURE: f64 = 0.1;

/// Rows of the similarity matrix held at once are bounded by this many elements (128 MiB of `f32`).
const BLOCK: i64 = 1 << 25;

/// Neighbours for a bank of `bank` images: 200 from 50,000 on, else 20 (spec 8.2, 15.0).
pub fn default_k(bank: i64) -> i64 {
    if bank >= 50_000 { 200 } else { 20 }
}

/// The bank rows nearest to each query by cosine, nearest first.
#[derive(Debug)]
pub struct Neighbours {
    /// `[Q, k]`, descending.
    similarity: Tensor,
    /// `[Q, k]` i64, positions in the bank.
    position: Tensor,
}

impl Neighbours {
    /// The `k` rows of `bank` `[M, F]` nearest to each of `queries` `[Q, F]`; a `k` above M means all M.
    ///
    /// # Panics
    /// If the bank is empty, `k` is not positive, or widths differ.
    pub fn of(bank: &Tensor, queries: &Tensor, k: i64) -> Self {
        assert!(bank.size()[0] > 0 && k > 0, "there must be at least one neighbour");
        let _guard = tch::no_grad_guard();
        let k = k.min(bank.size()[0]);
        let (bank, queries) = (unit_rows(bank).transpose(0, 1), unit_rows(queries));
        let rows = (BLOCK / bank.size()[1]).max(1);
        let blocks = queries.split(rows, 0).into_iter();
        let (similarity, position): (Vec<_>, Vec<_>) =
            blocks.map(|block| block.matmul(&bank).topk(k, 1, true, true)).unzip();
        Self { similarity: Tensor::cat(&similarity, 0), position: Tensor::cat(&position, 0) }
    }

    /// The nearest `k` of these.
    fn nearest(&self, k: i64) -> (Tensor, Tensor) {
        let k = k.min(self.position.size()[1]);
        (self.similarity.narrow(1, 0, k), self.position.narrow(1, 0, k))
    }

    /// Labels `[Q]` by a vote of the nearest `k`, whose labels are among `labels` `[M]` (i64 in `0..classes`).
    ///
    /// A neighbour's vote weighs exp(sim / T) for `Some(T)`, 1 for `None`. Equal votes go to the smallest label.
    pub fn vote(&self, labels: &Tensor, classes: i64, k: i64, temperature: Option<f64>) -> Tensor {
        let _guard = tch::no_grad_guard();
        let (similarity, position) = self.nearest(k);
        vote(&similarity, &labels.take(&position), classes, temperature)
    }

    /// Retrieval: for each query the share of its nearest `k` that have its label, `[Q]` in `[0, 1]`; `labels` `[M]` of the
    /// bank, `wanted` `[Q]` of the queries.
    pub fn precision(&self, labels: &Tensor, wanted: &Tensor, k: i64) -> Tensor {
        let (_, position) = self.nearest(k);
        let same = labels.take(&position).eq_tensor(&wanted.unsqueeze(1));
        same.to_kind(Kind::Double).mean_dim([1].as_slice(), false, Kind::Double)
    }
}

/// Labels of `queries` `[Q, F]` by a vote of the `k` bank rows (`[M, F]`, `labels` `[M]`) nearest to them: `[Q]` i64; see
/// [`Neighbours::vote`].
///
/// # Panics
/// As [`Neighbours::of`].
pub fn knn_predict(
    bank: &Tensor,
    labels: &Tensor,
    queries: &Tensor,
    classes: i64,
    k: i64,
    temperature: Option<f64>,
) -> Tensor {
    Neighbours::of(bank, queries, k).vote(labels, classes, k, temperature)
}

/// Retrieval: the mean over queries of [`Neighbours::precision`].
///
/// # Panics
/// As [`Neighbours::of`].
pub fn precision_at_k(bank: &Tensor, labels: &Tensor, queries: &Tensor, wanted: &Tensor, k: i64) -> f64 {
    Neighbours::of(bank, queries, k).precision(labels, wanted, k).mean(Kind::Double).double_value(&[])
}

/// Share of equal elements of two label tensors `[Q]`, in `[0, 1]`.
pub fn accuracy(predicted: &Tensor, labels: &Tensor) -> f64 {
    predicted.eq_tensor(labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

/// `similarity` and `labels` `[B, k]`, most similar first, to the winning labels `[B]`.
fn vote(similarity: &Tensor, labels: &Tensor, classes: i64, temperature: Option<f64>) -> Tensor {
    let weights = match temperature {
        // The largest exponent is 0: small temperatures do not overflow, and a common factor changes no vote.
        Some(t) => ((similarity - similarity.narrow(1, 0, 1)) / t).exp(),
        None => similarity.ones_like(),
    };
    let scores = Tensor::zeros([similarity.size()[0], classes], (Kind::Float, similarity.device()));
    scores.scatter_add(1, labels, &weights).argmax(1, false)
}

/// Rows of length 1 in `f32`; a row of zeros stays zero.
fn unit_rows(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let norm = features.square().sum_dim_intlist([1].as_slice(), true, Kind::Float).sqrt();
    &features / norm.clamp_min(1e-12)
}
