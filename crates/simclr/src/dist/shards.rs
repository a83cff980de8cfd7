//! The ranks around one batch: who holds how many of its images.

use tch::{Kind, Tensor};

use super::ProcessGroup;
use crate::nt_xent::AllGather;

/// The ranks of a step.
#[derive(Debug)]
pub struct BatchShards<'a> {
    group: &'a ProcessGroup,
    /// Images of the batch that each rank holds: images that could not be decoded are missing.
    counts: Vec<usize>,
}

impl<'a> BatchShards<'a> {
    /// All ranks, with the number of images that each holds.
    ///
    /// # Panics
    /// If there is not one number for each rank.
    pub fn new(group: &'a ProcessGroup, counts: Vec<usize>) -> Self {
        assert_eq!(counts.len(), group.count(), "one number for each rank");
        Self { group, counts }
    }

    /// Images of every rank.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// N, over all ranks.
    pub fn images(&self) -> usize {
        self.counts.iter().sum()
    }

    /// See [`ProcessGroup::all_gather_rows`].
    pub fn all_gather_rows(&self, own: &Tensor) -> Tensor {
        self.group.all_gather_rows(own)
    }

    /// Figures of which every rank has a share.
    pub fn sum<const K: usize>(&self, mut shares: [f64; K]) -> [f64; K] {
        self.group.all_reduce_f64(&mut shares);
        shares
    }
}

impl AllGather for BatchShards<'_> {
    fn all_gather(&self, own: &Tensor) -> Tensor {
        if self.group.count() == 1 {
            return own.detach();
        }
        let width: i64 = own.size()[1..].iter().product();
        let rows = own.detach().to_kind(Kind::Float).reshape([own.size()[0], width]);
        let all = self.group.all_gather_rows(&rows);
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

    fn first_image(&self) -> i64 {
        self.counts[..self.group.rank()].iter().sum::<usize>() as i64
    }
}
