//! The ranks around one batch: who holds how many of its images.

use tch::{Kind, Tensor};

use super::Ranks;
use crate::nt_xent::Gather;

/// The ranks of a step.
#[derive(Debug)]
pub struct Team<'a> {
    ranks: &'a Ranks,
    /// Images of the batch that each rank holds: images that could not be decoded are missing.
    counts: Vec<usize>,
}

impl<'a> Team<'a> {
    /// All ranks, with the number of images that each holds.
    ///
    /// # Panics
    /// If there is not one number for each rank.
    pub fn new(ranks: &'a Ranks, counts: Vec<usize>) -> Self {
        assert_eq!(counts.len(), ranks.count(), "one number for each rank");
        Self { ranks, counts }
    }

    /// Images of every rank.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// N, over all ranks.
    pub fn images(&self) -> usize {
        self.counts.iter().sum()
    }

    /// See [`Ranks::gather_rows`].
    pub fn gather_rows(&self, own: &Tensor) -> Tensor {
        self.ranks.gather_rows(own)
    }

    /// Figures of which every rank has a share.
    pub fn sum<const K: usize>(&self, mut shares: [f64; K]) -> [f64; K] {
        self.ranks.sum(&mut shares);
        shares
    }
}

impl Gather for Team<'_> {
    fn gather(&self, own: &Tensor) -> Tensor {
        if self.ranks.count() == 1 {
            return own.detach();
        }
        let width: i64 = own.size()[1..].iter().product();
        let rows = own.detach().to_kind(Kind::Float).reshape([own.size()[0], width]);
        let all = self.ranks.gather_rows(&rows);
        // By rank, each its first and its second views; wanted are all first views, then all second ones.
        let mut halves = Vec::new();
        for view in 0..2 {
            let mut start = 0;
            for images in self.counts.iter().map(|&images| images as i64) {
                halves.push(all.narrow(0, start + view * images, images));
                start += 2 * images;
            }
        }
        let shape: Vec<i64> = [-1].iter().chain(&own.size()[1..]).copied().collect();
        Tensor::cat(&halves, 0).view(&shape[..])
    }

    fn first(&self) -> i64 {
        self.counts[..self.ranks.rank()].iter().sum::<usize>() as i64
    }
}
