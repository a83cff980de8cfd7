//! Features `[M, F]` with labels and queries `[Q, F]` to predicted labels `[Q]`: cosine nearest neighbours, weighted
//! as the kNN monitor of MoCo and its followers (spec 8.2) or by plain majority.

use simclr_data::rng::Key;
use tch::{Device, Kind, Tensor};

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
        let (bank, queries) = (unit_rows(bank), unit_rows(queries));
        if bank.device() == Device::Cpu
            && Screen::pays((bank.size()[0], bank.size()[1]), queries.size()[0], k)
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

    /// The nearest `k` of these.
    fn nearest(&self, k: i64) -> (Tensor, Tensor) {
        let k = k.min(self.position.size()[1]);
        (self.similarity.narrow(1, 0, k), self.position.narrow(1, 0, k))
    }

    /// Labels `[Q]` by a vote of the nearest `k`, whose labels are among `labels` `[M]` (i64 in `0..classes`).
    ///
    /// A neighbour's vote weighs exp(sim / T) for `Some(T)`, 1 for `None`. Equal votes go to the smallest label.
    pub fn vote(&self, labels: &Tensor, classes: i64, k: i64, temperature: Option<f64>) -> Tensor {
        self.scores(labels, classes, k, temperature).argmax(1, false)
    }

    /// The votes for each class, `[Q, K]`; see [`Neighbours::vote`].
    pub fn scores(&self, labels: &Tensor, classes: i64, k: i64, temperature: Option<f64>) -> Tensor {
        let _guard = tch::no_grad_guard();
        let (similarity, position) = self.nearest(k);
        scores(&similarity, &labels.take(&position), classes, temperature)
    }

    /// Retrieval: for each query the share of its nearest `k` that have its label, `[Q]` in `[0, 1]`; `labels` `[M]` of the
    /// bank, `wanted` `[Q]` of the queries.
    pub fn precision(&self, labels: &Tensor, wanted: &Tensor, k: i64) -> Tensor {
        let (_, position) = self.nearest(k);
        let same = labels.take(&position).eq_tensor(&wanted.unsqueeze(1));
        same.to_kind(Kind::Double).mean_dim([1].as_slice(), false, Kind::Double)
    }
}

/// Finds the nearest rows of a wide bank with a sixth of the work: cosines in a few directions bound those in all of them,
/// and only rows with a high bound are compared in full. The neighbours are those of the full comparison.
struct Screen {
    /// `[F, R]`, orthonormal columns: nearly the R directions in which the bank is largest.
    basis: Tensor,
    /// `[M, R + 1]`, see [`Screen::bounding`].
    bank: Tensor,
}

impl Screen {
    /// Directions; with 512, raw pixels of CIFAR-10 leave 0.4 % of a row outside of them, and 1.5 k rows need a full
    /// comparison.
    const DIRECTIONS: i64 = 512;
    /// Rows of the bank that the directions are found from.
    const SAMPLE: i64 = 4096;
    /// More than what single precision loses in a cosine.
    const ROUNDING: f64 = 2e-6;

    fn pays((rows, width): (i64, i64), queries: i64, k: i64) -> bool {
        width >= 4 * Self::DIRECTIONS && rows >= 2 * Self::SAMPLE && rows >= 20 * k && queries >= 1000
    }

    /// Of unit rows.
    fn of(bank: &Tensor) -> Self {
        let step = (bank.size()[0] / Self::SAMPLE).max(1);
        let sample = bank.slice(0, 0, bank.size()[0], step);
        // Subspace iteration from fixed random numbers: nothing depends on them but speed.
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

    /// `[n, R + 1]`: the part of each row within the basis, and the length of the rest. The product of two such rows is not
    /// below their cosine (Cauchy-Schwarz for the rest).
    fn bounding(rows: &Tensor, basis: &Tensor) -> Tensor {
        let square = |of: &Tensor| of.square().sum_dim_intlist([1].as_slice(), true, Kind::Float);
        let within = rows.matmul(basis);
        let rest = (square(rows) - square(&within)).clamp_min(0.0) + Self::ROUNDING;
        Tensor::cat(&[within, rest.sqrt()], 1)
    }

    fn nearest(&self, bank: &Tensor, queries: &Tensor, k: i64) -> Neighbours {
        let candidates = 5 * k / 2 + 16;
        let bounding = self.bank.transpose(0, 1).contiguous();
        let room = Tensor::empty([k + k / 4, bank.size()[1]], (Kind::Float, bank.device()));
        let search = Search { bank, k, room };
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
    /// Where rows are copied to be compared, so that no query allocates.
    room: Tensor,
}

impl Search<'_> {
    /// Cosines and positions, nearest first; `bounds` are the highest of all rows, descending, and `rows` their positions.
    fn nearest(&self, query: &Tensor, bounds: &Tensor, rows: &Tensor) -> (Tensor, Tensor) {
        let upper = Vec::<f32>::try_from(bounds).expect("bounds are a vector");
        let (mut compared, mut cosines) = (0, Vec::new());
        // k rows first, then a quarter of k at a time: CIFAR-10's raw pixels need 1.4 k on average.
        let mut next = self.k + self.k / 4;
        while compared < rows.size()[0] {
            let some = rows.slice(0, compared, (compared + next).min(rows.size()[0]), 1);
            compared += some.size()[0];
            let room = self.room.narrow(0, 0, some.size()[0]);
            cosines.push(self.bank.index_select_out(&room, 0, &some).mv(query));
            let (nearest, places) = Tensor::cat(&cosines, 0).topk(self.k, 0, true, true);
            // No row that was not compared is above the last bound.
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

/// `similarity` and `labels` `[B, k]`, most similar first, to votes `[B, K]`.
fn scores(similarity: &Tensor, labels: &Tensor, classes: i64, temperature: Option<f64>) -> Tensor {
    let weights = match temperature {
        // The largest exponent is 0: small temperatures do not overflow, and a common factor changes no vote.
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

    /// Rows near a few directions, as features and pixels are, and rows in all directions, where every bound is useless.
    #[test]
    fn the_screen_finds_the_neighbours_of_the_full_comparison() {
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
    fn a_bound_is_never_below_the_cosine() {
        tch::set_num_threads(1);
        let rows = unit_rows(&crate::test_normals(6, &[600, 700]));
        let screen = Screen::of(&rows);
        let bounds = screen.bank.matmul(&screen.bank.transpose(0, 1));
        let cosines = rows.matmul(&rows.transpose(0, 1));
        assert!((bounds - cosines).min().double_value(&[]) >= 0.0);
    }
}
