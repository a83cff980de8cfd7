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

/// Labels of `queries` `[Q, F]` by a vote of the `k` bank rows (`[M, F]`, `labels` `[M]` i64 in `0..classes`) with the
/// highest cosine similarity: `[Q]` i64.
///
/// A neighbour's vote weighs exp(sim / T) for `Some(T)`, 1 for `None`. Equal votes go to the smallest label. A `k`
/// above M means all M.
///
/// # Panics
/// If the bank is empty, `k` is not positive, or widths differ.
pub fn knn_predict(
    bank: &Tensor,
    labels: &Tensor,
    queries: &Tensor,
    classes: i64,
    k: i64,
    temperature: Option<f64>,
) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut predicted = Vec::new();
    for_each_block(bank, queries, k, &mut |similarity, neighbour| {
        predicted.push(vote(similarity, &labels.take(neighbour), classes, temperature));
    });
    if predicted.is_empty() {
        Tensor::zeros([0], (Kind::Int64, labels.device()))
    } else {
        Tensor::cat(&predicted, 0)
    }
}

/// Retrieval: the mean over queries of the share of their `k` nearest bank rows (cosine) that have their label, `[0, 1]`.
///
/// # Panics
/// If the bank is empty or `k` is not positive.
pub fn precision_at_k(bank: &Tensor, labels: &Tensor, queries: &Tensor, wanted: &Tensor, k: i64) -> f64 {
    let _guard = tch::no_grad_guard();
    let mut right = 0.0;
    let mut row = 0;
    for_each_block(bank, queries, k, &mut |_, neighbour| {
        let rows = neighbour.size()[0];
        let own = wanted.narrow(0, row, rows).unsqueeze(1);
        row += rows;
        let same = labels.take(neighbour).eq_tensor(&own);
        right += same
            .to_kind(Kind::Double)
            .mean_dim([1].as_slice(), false, Kind::Double)
            .sum(Kind::Double)
            .double_value(&[]);
    });
    right / queries.size()[0] as f64
}

/// Share of equal elements of two label tensors `[Q]`, in `[0, 1]`.
pub fn accuracy(predicted: &Tensor, labels: &Tensor) -> f64 {
    predicted.eq_tensor(labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

/// Hands over (similarity, index in the bank) `[B, k]` of the nearest rows, most similar first, block by block of queries.
fn for_each_block(bank: &Tensor, queries: &Tensor, k: i64, each: &mut dyn FnMut(&Tensor, &Tensor)) {
    assert!(bank.size()[0] > 0 && k > 0, "there must be at least one neighbour");
    let k = k.min(bank.size()[0]);
    let (bank, queries) = (unit_rows(bank).transpose(0, 1), unit_rows(queries));
    let rows = (BLOCK / bank.size()[1]).max(1);
    for block in queries.split(rows, 0).iter().filter(|block| block.size()[0] > 0) {
        let (similarity, neighbour) = block.matmul(&bank).topk(k, 1, true, true);
        each(&similarity, &neighbour);
    }
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
