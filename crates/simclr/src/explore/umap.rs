//! UMAP (McInnes, Healy, Melville 2018, arXiv 1802.03426): places in two dimensions in which neighbours of h lie together. With the
//! defaults of umap-learn but for exact neighbours by cosine, a start from principal components, and updates in a fixed order, so that
//! equal features give equal places. `umap-rs`, the crate for it, draws from an unseeded generator and updates without synchronisation.

use std::collections::BTreeMap;

use simclr_data::rng::{Key, Stream};
use tch::Tensor;

use super::{
    map::principal,
    nearest::{self, Near},
};
use crate::EvalError;

/// Neighbours of a row, itself included.
const NEIGHBOURS: usize = 15;
/// Side of the square of the start.
const EXTENT: f64 = 10.0;
/// a and b of 1 / (1 + a d^(2b)), umap-learn's fit to `min_dist` 0.1 and `spread` 1.
const CURVE: (f32, f32) = (1.576_943_4, 0.895_060_9);
/// Rows that are pushed away for each pair that is pulled together.
const NEGATIVES: usize = 5;
/// Largest change of a coordinate by one pair, before the learning rate.
const CLIP: f32 = 4.0;

/// Places of the rows of `h` `[n, F]`; fewer than three rows keep their places on the principal components.
///
/// # Errors
/// libtorch's, for an eigenvalue problem that does not converge.
pub fn umap(h: &Tensor, seed: u64) -> Result<Vec<[f64; 2]>, EvalError> {
    let start = principal(h)?.points;
    if start.len() < 3 {
        return Ok(start);
    }
    let near = nearest::of_each(h, NEIGHBOURS.min(start.len()) - 1);
    let mut places = in_a_square(&start);
    Layout::new(&graph(&near)).optimize(&mut places, Key::choice(seed, 3).stream());
    Ok(places.into_iter().map(|place| place.map(f64::from)).collect())
}

/// Weights of pairs of rows, the fuzzy union of both directions (sections 3.1 and 4.1); the smaller row comes first.
fn graph(near: &[Vec<Near>]) -> BTreeMap<(usize, usize), f32> {
    let distances =
        |near: &[Near]| near.iter().map(|(_, cosine)| (1.0 - cosine).max(0.0)).collect::<Vec<_>>();
    let all: Vec<Vec<f64>> = near.iter().map(|near| distances(near)).collect();
    let mean = all.iter().flatten().sum::<f64>() / (all.len() * (all[0].len() + 1)) as f64;
    let mut graph = BTreeMap::new();
    for (row, (near, distances)) in near.iter().zip(&all).enumerate() {
        let weights = memberships(distances, mean);
        for ((other, _), weight) in near.iter().zip(weights) {
            let both: &mut f32 = graph.entry((row.min(*other), row.max(*other))).or_default();
            *both += weight as f32 - *both * weight as f32;
        }
    }
    graph
}

/// exp(-(d - rho) / sigma) of the `distances` of a row, nearest first, where rho is the smallest positive one and sigma makes the sum
/// log2 of the number of neighbours (umap-learn's `smooth_knn_dist`). `mean` is that of all rows, for rows of equals.
fn memberships(distances: &[f64], mean: f64) -> Vec<f64> {
    let neighbours = distances.len() + 1;
    let target = (neighbours as f64).log2();
    let rho = distances.iter().copied().find(|distance| *distance > 0.0).unwrap_or(0.0);
    let weight =
        |distance: &f64, sigma: f64| if *distance > rho { (-(distance - rho) / sigma).exp() } else { 1.0 };
    let sum = |sigma: f64| distances.iter().map(|distance| weight(distance, sigma)).sum::<f64>();
    let (mut low, mut high, mut sigma) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..64 {
        let excess = sum(sigma) - target;
        if excess.abs() < 1e-5 {
            break;
        }
        if excess > 0.0 {
            high = sigma;
        } else {
            low = sigma;
        }
        sigma = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * sigma };
    }
    let own = distances.iter().sum::<f64>() / neighbours as f64;
    let sigma = sigma.max(1e-3 * if rho > 0.0 { own } else { mean }).max(f64::MIN_POSITIVE);
    distances.iter().map(|distance| weight(distance, sigma)).collect()
}

/// `points` in a square of side [`EXTENT`].
fn in_a_square(points: &[[f64; 2]]) -> Vec<[f32; 2]> {
    let bounds = [0, 1].map(|axis| {
        let values = || points.iter().map(move |point| point[axis]);
        let low = values().fold(f64::INFINITY, f64::min);
        (low, (values().fold(f64::NEG_INFINITY, f64::max) - low).max(f64::MIN_POSITIVE))
    });
    let place = |point: &[f64; 2]| {
        [0, 1].map(|axis| ((point[axis] - bounds[axis].0) / bounds[axis].1 * EXTENT) as f32)
    };
    points.iter().map(place).collect()
}

/// Pairs in both directions, with the epochs at which they are pulled together.
struct Layout {
    pairs: Vec<Pair>,
    epochs: usize,
}

struct Pair {
    head: usize,
    tail: usize,
    /// Epochs between two updates: heavier pairs are updated more often.
    period: f32,
    next: f32,
    next_negative: f32,
}

impl Layout {
    fn new(graph: &BTreeMap<(usize, usize), f32>) -> Self {
        let rows = graph.keys().map(|(_, larger)| larger + 1).max().unwrap_or(0);
        let epochs = if rows <= 10_000 { 500 } else { 200 };
        let heaviest = graph.values().copied().fold(0.0, f32::max);
        let mut pairs = Vec::new();
        for ((a, b), weight) in graph {
            let period = heaviest / weight;
            // Lighter pairs would not be updated once.
            if period <= epochs as f32 {
                let pair = |head, tail| Pair {
                    head,
                    tail,
                    period,
                    next: period,
                    next_negative: period / NEGATIVES as f32,
                };
                pairs.extend([pair(*a, *b), pair(*b, *a)]);
            }
        }
        Self { pairs, epochs }
    }

    fn optimize(mut self, places: &mut [[f32; 2]], mut stream: Stream) {
        for epoch in 0..self.epochs {
            let rate = 1.0 - epoch as f32 / self.epochs as f32;
            for pair in self.pairs.iter_mut().filter(|pair| pair.next <= epoch as f32) {
                pair.next += pair.period;
                pull(places, pair, rate);
                let every = pair.period / NEGATIVES as f32;
                let negatives = ((epoch as f32 - pair.next_negative) / every).max(0.0) as usize;
                pair.next_negative += negatives as f32 * every;
                for _ in 0..negatives {
                    push(places, pair.head, (stream.bits() % places.len() as u64) as usize, rate);
                }
            }
        }
    }
}

fn difference(places: &[[f32; 2]], a: usize, b: usize) -> ([f32; 2], f32) {
    let difference = [places[a][0] - places[b][0], places[a][1] - places[b][1]];
    (difference, difference[0] * difference[0] + difference[1] * difference[1])
}

/// Descends the cross entropy of a pair of the graph; both ends move.
fn pull(places: &mut [[f32; 2]], pair: &Pair, rate: f32) {
    let (difference, squared) = difference(places, pair.head, pair.tail);
    if squared > 0.0 {
        let (a, b) = CURVE;
        let power = squared.powf(b);
        let gradient = -2.0 * a * b * power / squared / (1.0 + a * power);
        for axis in 0..2 {
            let step = rate * (gradient * difference[axis]).clamp(-CLIP, CLIP);
            places[pair.head][axis] += step;
            places[pair.tail][axis] -= step;
        }
    }
}

/// Descends the cross entropy of a pair outside the graph; only the head moves.
fn push(places: &mut [[f32; 2]], head: usize, other: usize, rate: f32) {
    let (difference, squared) = difference(places, head, other);
    if squared > 0.0 {
        let (a, b) = CURVE;
        let gradient = 2.0 * b / ((0.001 + squared) * (1.0 + a * squared.powf(b)));
        for axis in 0..2 {
            places[head][axis] += rate * (gradient * difference[axis]).clamp(-CLIP, CLIP);
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// Of three directions with noise, in 8 dimensions.
    fn groups() -> Tensor {
        let direction = Tensor::arange(120, (Kind::Int64, Device::Cpu)).divide_scalar_mode(40, "floor");
        direction.one_hot(8).to_kind(Kind::Float) + crate::test_normals(3, &[120, 8]) * 0.1
    }

    #[test]
    fn groups_lie_apart() {
        tch::set_num_threads(1);
        let places = umap(&groups(), 0).unwrap();
        let distance = |a: usize, b: usize| (places[a][0] - places[b][0]).hypot(places[a][1] - places[b][1]);
        for row in 0..120 {
            let others = (0..120).filter(|other| *other != row);
            let nearest = others.min_by(|a, b| distance(row, *a).total_cmp(&distance(row, *b))).unwrap();
            assert_eq!(nearest / 40, row / 40, "{row} lies next to {nearest}");
        }
        assert_eq!(places, umap(&groups(), 0).unwrap());
        assert_ne!(places, umap(&groups(), 1).unwrap());
    }

    /// `fuzzy_simplicial_set` of umap-learn (`reference/umap_graph.py`) on the cosine distances of the same rows.
    #[test]
    fn weights_equal_those_of_umap_learn() {
        tch::set_num_threads(1);
        let value = |at: usize| (0.7 * ((at / 6) * (at % 6 + 1)) as f64 + (at % 6) as f64).sin() as f32;
        let h = Tensor::from_slice(&(0..240).map(value).collect::<Vec<_>>()).view([40, 6]);
        let found = graph(&nearest::of_each(&h, NEIGHBOURS - 1));
        let text = include_str!("../../tests/golden/umap_graph.json");
        let goldens: Vec<(usize, usize, f32)> = serde_json::from_str(text).unwrap();
        assert_eq!(found.len(), goldens.len());
        for (a, b, weight) in goldens {
            assert!((found[&(a, b)] - weight).abs() < 1e-4, "{a} {b}: {} {weight}", found[&(a, b)]);
        }
    }

    #[test]
    fn few_and_equal_rows_have_places() {
        for rows in [1, 2, 3, 4, 20] {
            let places = umap(&crate::test_normals(4, &[rows, 5]), 0).unwrap();
            assert!(
                places.len() == rows as usize && places.iter().flatten().all(|value| value.is_finite()),
                "{places:?}"
            );
        }
        let equal = umap(&Tensor::ones([5, 3], (Kind::Float, Device::Cpu)), 0).unwrap();
        assert!(equal.iter().flatten().all(|value| value.is_finite()), "{equal:?}");
    }
}
