//! Cosine kNN: a bank of features `[M, F]` with labels, and queries `[Q, F]`, to predicted labels `[Q]`, by weighted votes as
//! in the kNN monitor of MoCo, or by plain majority.

use simclr_data::rng::Key;
use tch::{Device, Kind, Tensor};

/// Temperature of the weights exp(sim / T).
pub const TEMPERATURE: f64 = 0.1;

/// Most elements of a block of the similarity matrix (128 MiB of `f32`).
const BLOCK: i64 = 1 << 25;

/// Neighbours for a bank of `bank` images: 200 from 50,000 on, else 20.
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
        let (bank, queries) = (unit_rows(bank), unit_rows(queries));
        if bank.device() == Device::Cpu
            && Screen::is_faster((bank.size()[0], bank.size()[1]), queries.size()[0], k)
        {
            return Screen::of(&bank).nearest(&bank, &queries, k);
        }
        let bank = bank.transpose(0, 1);
        let rows = (BLOCK / bank.size()[1]).max(1);
        let blocks = queries.split(rows, 0).into_iter();
        let (similarity, position): (Vec<_>, Vec<_>) =
            blocks.map(|block| block.matmul(&bank).topk(k, 1, true, true)).unzip();
        Self { similarity: Tensor::cat(&similarity, 0), position: Tensor::cat(&position, 0) }
    }

    /// Rows of the bank, nearest first, `[Q, k]`.
    pub fn positions(&self) -> &Tensor {
        &self.position
    }

    /// Cosines with these rows, `[Q, k]`.
    pub fn similarities(&self) -> &Tensor {
        &self.similarity
    }

    /// Similarities and positions of the nearest `k`.
    fn nearest(&self, k: i64) -> (Tensor, Tensor) {
        let k = k.min(self.position.size()[1]);
        (self.similarity.narrow(1, 0, k), self.position.narrow(1, 0, k))
    }

    /// Labels `[Q]` by a vote of the nearest `k`, with labels from `labels` `[M]` (i64 in `0..classes`).
    ///
    /// The weight of a vote is exp(sim / T) for `Some(T)`, 1 for `None`; ties go to the smallest label.
    pub fn vote(&self, labels: &Tensor, classes: i64, k: i64, temperature: Option<f64>) -> Tensor {
        self.scores(labels, classes, k, temperature).argmax(1, false)
    }

    /// The votes for each class, `[Q, K]`; see [`Neighbours::vote`].
    pub fn scores(&self, labels: &Tensor, classes: i64, k: i64, temperature: Option<f64>) -> Tensor {
        let _guard = tch::no_grad_guard();
        let (similarity, position) = self.nearest(k);
        scores(&similarity, &labels.take(&position), classes, temperature)
    }

    /// Retrieval: for each query the fraction of its nearest `k` that have its label, `[Q]` in `[0, 1]`; `labels` `[M]` of the
    /// bank, `wanted` `[Q]` of the queries.
    pub fn precision(&self, labels: &Tensor, wanted: &Tensor, k: i64) -> Tensor {
        let (_, position) = self.nearest(k);
        let same = labels.take(&position).eq_tensor(&wanted.unsqueeze(1));
        same.to_kind(Kind::Double).mean_dim([1].as_slice(), false, Kind::Double)
    }
}

/// Exact nearest rows of a wide bank with a sixth of the work: cosines in a subspace bound the full cosines, and only rows
/// with a high bound are compared in full.
struct Screen {
    /// `[F, R]`, orthonormal columns: approximately the leading R principal directions of the bank.
    basis: Tensor,
    /// `[M, R + 1]`, see [`Screen::bounding`].
    bank: Tensor,
}

impl Screen {
    /// R. With 512, 0.4 % of a row of raw CIFAR-10 pixels lies outside, and 1.5 k rows need a full comparison.
    const DIRECTIONS: i64 = 512;
    /// Rows of the bank that the directions are estimated from.
    const SAMPLE: i64 = 4096;
    /// Upper bound of the single-precision error of a cosine.
    const ROUNDING: f64 = 2e-6;

    fn is_faster((rows, width): (i64, i64), queries: i64, k: i64) -> bool {
        width >= 4 * Self::DIRECTIONS && rows >= 2 * Self::SAMPLE && rows >= 20 * k && queries >= 1000
    }

    /// `bank` has unit rows.
    fn of(bank: &Tensor) -> Self {
        let step = (bank.size()[0] / Self::SAMPLE).max(1);
        let sample = bank.slice(0, 0, bank.size()[0], step);
        // Subspace iteration from fixed random numbers, which affect speed only.
        let width = bank.size()[1];
        let start = Key::weights(0, 0).stream().normals((width * Self::DIRECTIONS) as usize);
        let mut basis = Tensor::from_slice(&start).view([width, Self::DIRECTIONS]);
        for _ in 0..2 {
            let moved = sample.transpose(0, 1).matmul(&sample.matmul(&basis));
            basis = Tensor::linalg_qr(&moved, "reduced").0;
        }
        let bounded = Self::bounding(bank, &basis);
        Self { basis, bank: bounded }
    }

    /// `[n, R + 1]`: the projection of each row, and the length of the remainder. By Cauchy-Schwarz the product of two such rows
    /// is at least their cosine.
    fn bounding(rows: &Tensor, basis: &Tensor) -> Tensor {
        let square = |of: &Tensor| of.square().sum_dim_intlist([1].as_slice(), true, Kind::Float);
        let within = rows.matmul(basis);
        let rest = (square(rows) - square(&within)).clamp_min(0.0) + Self::ROUNDING;
        Tensor::cat(&[within, rest.sqrt()], 1)
    }

    fn nearest(&self, bank: &Tensor, queries: &Tensor, k: i64) -> Neighbours {
        let candidates = 5 * k / 2 + 16;
        let bounding = self.bank.transpose(0, 1).contiguous();
        let scratch = Tensor::empty([k + k / 4, bank.size()[1]], (Kind::Float, bank.device()));
        let search = Search { bank, k, scratch };
        let (mut similarity, mut position) = (Vec::new(), Vec::new());
        for block in queries.split((BLOCK / bank.size()[0]).max(1), 0) {
            let bounds = Self::bounding(&block, &self.basis).matmul(&bounding);
            let (bounds, rows) = bounds.topk(candidates, 1, true, true);
            for at in 0..block.size()[0] {
                let (nearest, places) = search.nearest(&block.get(at), &bounds.get(at), &rows.get(at));
                similarity.push(nearest);
                position.push(places);
            }
        }
        Neighbours { similarity: Tensor::stack(&similarity, 0), position: Tensor::stack(&position, 0) }
    }
}

/// The `k` rows of `bank` nearest to one query, from upper bounds of the cosines.
struct Search<'a> {
    bank: &'a Tensor,
    k: i64,
    /// Rows gathered for comparison, so that queries do not allocate.
    scratch: Tensor,
}

impl Search<'_> {
    /// Cosines and positions, nearest first; `bounds` are the highest of all rows, descending, and `rows` their positions.
    fn nearest(&self, query: &Tensor, bounds: &Tensor, rows: &Tensor) -> (Tensor, Tensor) {
        let upper = Vec::<f32>::try_from(bounds).expect("bounds are a vector");
        let (mut compared, mut cosines) = (0, Vec::new());
        // 1.25 k rows first, then a quarter of k at a time: raw CIFAR-10 pixels need 1.4 k on average.
        let mut next = self.k + self.k / 4;
        while compared < rows.size()[0] {
            let some = rows.slice(0, compared, (compared + next).min(rows.size()[0]), 1);
            compared += some.size()[0];
            let gathered = self.scratch.narrow(0, 0, some.size()[0]);
            cosines.push(self.bank.index_select_out(&gathered, 0, &some).mv(query));
            let (nearest, places) = Tensor::cat(&cosines, 0).topk(self.k, 0, true, true);
            // No uncompared row exceeds the last bound.
            if nearest.double_value(&[self.k - 1])
                >= f64::from(upper[compared as usize - 1]) + Screen::ROUNDING
            {
                return (nearest, rows.index_select(0, &places));
            }
            next = (self.k / 4).max(1);
        }
        self.bank.mv(query).topk(self.k, 0, true, true)
    }
}

/// Labels `[Q]` i64 of `queries` `[Q, F]` by a vote of the nearest `k` rows of `bank` `[M, F]` with `labels` `[M]`; see
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

/// Fraction of equal elements of two label tensors `[Q]`, in `[0, 1]`.
pub fn accuracy(predicted: &Tensor, labels: &Tensor) -> f64 {
    predicted.eq_tensor(labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

/// `similarity` and `labels` `[B, k]`, most similar first, to votes `[B, K]`.
fn scores(similarity: &Tensor, labels: &Tensor, classes: i64, temperature: Option<f64>) -> Tensor {
    let weights = match temperature {
        // A common factor changes no vote: the largest exponent is 0, so that small temperatures do not overflow.
        Some(t) => ((similarity - similarity.narrow(1, 0, 1)) / t).exp(),
        None => similarity.ones_like(),
    };
    let scores = Tensor::zeros([similarity.size()[0], classes], (Kind::Float, similarity.device()));
    scores.scatter_add(1, labels, &weights)
}

/// Rows of length 1 in `f32`; a row of zeros stays zero.
fn unit_rows(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let norm = features.square().sum_dim_intlist([1].as_slice(), true, Kind::Float).sqrt();
    &features / norm.clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows near a subspace, as features and pixels are, and isotropic rows, for which the bounds are useless.
    #[test]
    fn screening_is_exact() {
        tch::set_num_threads(1);
        let near = |seed, n: i64| {
            let low = crate::test_normals(seed, &[n, 20]).matmul(&crate::test_normals(1, &[20, 700]));
            unit_rows(&(low + crate::test_normals(seed + 100, &[n, 700]) * 0.3))
        };
        let anywhere = |seed, n: i64| unit_rows(&crate::test_normals(seed, &[n, 700]));
        let cases: [(&str, Tensor, Tensor); 2] =
            [("near", near(2, 3000), near(3, 40)), ("anywhere", anywhere(4, 3000), anywhere(5, 40))];
        for (name, bank, queries) in cases {
            let found = Screen::of(&bank).nearest(&bank, &queries, 10);
            let (similarity, position) = queries.matmul(&bank.transpose(0, 1)).topk(10, 1, true, true);
            assert_eq!(found.position, position, "{name}");
            assert!((found.similarity - similarity).abs().max().double_value(&[]) < 1e-5, "{name}");
        }
    }

    #[test]
    fn bounds_are_at_least_the_cosine() {
        tch::set_num_threads(1);
        let rows = unit_rows(&crate::test_normals(6, &[600, 700]));
        let screen = Screen::of(&rows);
        let bounds = screen.bank.matmul(&screen.bank.transpose(0, 1));
        let cosines = rows.matmul(&rows.transpose(0, 1));
        assert!((bounds - cosines).min().double_value(&[]) >= 0.0);
    }
}
