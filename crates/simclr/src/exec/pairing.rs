//! Rows of the two views of each image, over all chunks of all ranks. With shuffle BN the views of an image lie in different
//! chunks, possibly of different ranks.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::DeviceBatch;
use crate::dist::{BatchShards, ProcessGroup};

/// A chunk after its first pass; h and z have no autograd graph.
pub(super) struct EmbeddedChunk {
    pub batch: DeviceBatch,
    pub h: Tensor,
    pub z: Tensor,
}

/// The order of rows in the loss. Rows are counted over all ranks and chunks; a chunk has its first views before its second
/// views.
pub(super) struct Pairing {
    rank: usize,
    /// Images of which all views are present, ordered by the rank that holds their first view.
    ids: Vec<usize>,
    /// How many of `ids` each rank holds.
    counts: Vec<usize>,
    /// Rows of the first views of `ids`, then of the second views: `[2N]` or `[N]`.
    order: Tensor,
    /// Rows of lower ranks.
    first_row: i64,
    /// Rows of each chunk of this rank.
    chunk_rows: Vec<i64>,
    total_rows: i64,
}

/// A view of an image: (rank, image, row).
type FirstView = (usize, usize, i64);

impl Pairing {
    pub fn new(group: &ProcessGroup, chunks: &[EmbeddedChunk], device: Device) -> Self {
        let layout = RowLayout::gather(group, chunks);
        let (mut first_views, second_rows) = layout.views();
        let one_view = second_rows.is_empty();
        first_views.retain(|(_, id, _)| one_view || second_rows.contains_key(id));
        let ids: Vec<usize> = first_views.iter().map(|&(_, id, _)| id).collect();
        let seconds = ids.iter().filter_map(|id| second_rows.get(id).copied());
        let order: Vec<i64> = first_views.iter().map(|&(_, _, row)| row).chain(seconds).collect();
        let count = |rank| first_views.iter().filter(|(owner, _, _)| *owner == rank).count();
        Self {
            rank: group.rank(),
            counts: (0..group.count()).map(count).collect(),
            order: Tensor::from_slice(&order).to_device(device),
            ids,
            first_row: layout.rows_before(group.rank()),
            chunk_rows: chunks.iter().map(|chunk| chunk.z.size()[0]).collect(),
            total_rows: layout.rows_before(group.count()),
        }
    }

    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// All images, and how many of them each rank holds.
    pub fn into_ids(self) -> (Vec<usize>, Vec<usize>) {
        (self.ids, self.counts)
    }

    /// Position in `ids` of this rank's images, and their number.
    fn own_range(&self) -> (i64, i64) {
        (self.counts[..self.rank].iter().sum::<usize>() as i64, self.counts[self.rank] as i64)
    }

    pub fn own_ids(&self) -> &[usize] {
        let (start, length) = self.own_range();
        &self.ids[start as usize..(start + length) as usize]
    }

    /// Rows of this rank's images, first views and then second views, from the rows of all chunks of all ranks.
    pub fn own_rows(&self, all: &Tensor) -> Tensor {
        let (start, length) = self.own_range();
        let images = self.ids.len() as i64;
        let views = self.order.size()[0] / images.max(1);
        let order: Vec<Tensor> =
            (0..views).map(|view| self.order.narrow(0, view * images + start, length)).collect();
        all.index_select(0, &Tensor::cat(&order, 0))
    }

    /// The gradient at the rows of every chunk of this rank, from the gradient at the rows of its images; zero for a view
    /// without partner. The second view of an image may be on another rank, so gradients are gathered first.
    pub fn by_chunk(&self, own: &Tensor, shards: &BatchShards<'_>) -> Vec<Tensor> {
        use crate::losses::AllGather;
        let two_views = self.order.size()[0] > self.ids.len() as i64;
        let gradient = if two_views { shards.all_gather(own) } else { shards.all_gather_rows(own) };
        let all = Tensor::zeros([self.total_rows, gradient.size()[1]], (Kind::Float, gradient.device()));
        let all = all.index_copy(0, &self.order, &gradient);
        let own_rows = all.narrow(0, self.first_row, self.chunk_rows.iter().sum());
        own_rows.split_with_sizes(&self.chunk_rows[..], 0)
    }
}

/// Images of the rows of every rank, by chunk.
struct RowLayout {
    first_ids: Vec<Vec<usize>>,
    second_ids: Vec<Vec<usize>>,
    /// By rank: number of first and of second views of every chunk, alternating.
    sizes: Vec<Vec<usize>>,
}

impl RowLayout {
    fn gather(group: &ProcessGroup, chunks: &[EmbeddedChunk]) -> Self {
        let first: Vec<usize> = chunks.iter().flat_map(|chunk| chunk.batch.ids.iter().copied()).collect();
        let second: Vec<usize> =
            chunks.iter().flat_map(|chunk| chunk.batch.second_view_ids.iter().copied()).collect();
        let sizes = |chunk: &EmbeddedChunk| [chunk.batch.ids.len(), chunk.batch.second_view_ids.len()];
        let sizes: Vec<usize> = chunks.iter().flat_map(sizes).collect();
        Self {
            first_ids: group.all_gather_usize(&first),
            second_ids: group.all_gather_usize(&second),
            sizes: group.all_gather_usize(&sizes),
        }
    }

    fn rows_before(&self, rank: usize) -> i64 {
        self.sizes[..rank].iter().flatten().sum::<usize>() as i64
    }

    /// First views by rank and chunk, and the row of every second view by image.
    fn views(&self) -> (Vec<FirstView>, HashMap<usize, i64>) {
        let mut row = 0;
        let mut first_views = Vec::new();
        let mut second_rows = HashMap::new();
        for (rank, sizes) in self.sizes.iter().enumerate() {
            let mut first = self.first_ids[rank].iter();
            let mut second = self.second_ids[rank].iter();
            for pair in sizes.chunks_exact(2) {
                let ids = first.by_ref().take(pair[0]);
                first_views.extend(ids.zip(row..).map(|(&id, row)| (rank, id, row)));
                let ids = second.by_ref().take(pair[1]);
                second_rows.extend(ids.zip(row + pair[0] as i64..).map(|(&id, row)| (id, row)));
                row += (pair[0] + pair[1]) as i64;
            }
        }
        (first_views, second_rows)
    }
}
