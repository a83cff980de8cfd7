//! A batch sharded over ranks.

use tch::{Kind, Tensor};

use super::ProcessGroup;
use crate::losses::AllGather;

/// The shards of one batch.
#[derive(Debug)]
pub struct BatchShards<'a> {
    group: &'a ProcessGroup,
    /// Number of images by rank, without images that could not be decoded.
    counts: Vec<usize>,
}

impl<'a> BatchShards<'a> {
    /// Shards with `counts` images, by rank.
    ///
    /// # Panics
    /// If there is not one count per rank.
    pub fn new(group: &'a ProcessGroup, counts: Vec<usize>) -> Self {
        assert_eq!(counts.len(), group.count(), "one count per rank");
        Self { group, counts }
    }

    /// Number of images by rank.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Number of images N over all ranks.
    pub fn images(&self) -> usize {
        self.counts.iter().sum()
    }

    /// The rows of all ranks, by rank; `own` has one for each image of this rank, f32.
    pub fn all_gather_rows(&self, own: &Tensor) -> Tensor {
        self.group.all_gather_counted_rows(own, &self.counts)
    }

    /// Sum of every rank's share.
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
        let views: Vec<usize> = self.counts.iter().map(|images| 2 * images).collect();
        let all = self.group.all_gather_counted_rows(&rows, &views);
        // From first and second views by rank to all first views, then all second views.
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
