//! The partition of a batch into chunks, for batches that do not fit into memory as a whole.

use std::collections::HashSet;

use crate::rng::Key;

/// Options of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking {
    /// Maximal number of images per chunk; the sizes of chunks differ by at most one.
    pub images: usize,
    /// Whether the two views of an image go to different chunks, so that batch statistics of a chunk leak no information on
    /// which views are positives (MoCo, arXiv 1911.05722, section 3.3, which shuffles over GPUs).
    pub shuffle_views: bool,
    /// Passes over the chunks of a step: 1 or 2.
    pub passes: usize,
}

/// The rows of a chunk: ids of the images of first and of second views.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkRows {
    /// Ids of first views.
    pub first: Vec<usize>,
    /// Ids of second views.
    pub second: Vec<usize>,
}

impl ChunkRows {
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Image and view of every row, in row order.
    pub(crate) fn views(&self) -> impl Iterator<Item = (usize, u64)> {
        let first = self.first.iter().map(|&id| (id, 0));
        first.chain(self.second.iter().map(|&id| (id, 1)))
    }

    /// Removes the views of the images `failed`.
    pub(crate) fn remove(&mut self, failed: &HashSet<usize>) {
        self.first.retain(|id| !failed.contains(id));
        self.second.retain(|id| !failed.contains(id));
    }
}

impl Chunking {
    /// The chunks of the batch `ids` with `views` views per image. The batch is divided into `parts` parts with equally many
    /// chunks, which are listed part after part.
    ///
    /// With `shuffle_views`, the second views of a chunk's images are spread evenly over all other chunks, in an order determined
    /// by `key`; the numbers of first and second views of a chunk differ by at most one.
    pub fn partition(&self, ids: &[usize], views: usize, key: Key, parts: usize) -> Vec<ChunkRows> {
        let count = parts * ids.len().div_ceil(parts).div_ceil(self.images.max(1)).max(1);
        let part = |index: usize| &ids[index * ids.len() / count..(index + 1) * ids.len() / count];
        let chunk = |index| ChunkRows { first: part(index).to_vec(), second: Vec::new() };
        let mut chunks: Vec<_> = (0..count).map(chunk).collect();
        let mut stream = key.stream();
        for source in 0..if views < 2 { 0 } else { count } {
            let images = part(source);
            if !self.shuffle_views || count == 1 {
                chunks[source].second = images.to_vec();
                continue;
            }
            for (turn, place) in stream.permutation(images.len()).into_iter().enumerate() {
                chunks[(source + 1 + turn % (count - 1)) % count].second.push(images[place]);
            }
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const KEY: Key = Key { seed: 3, epoch: 1, image: 0, view: 0 };

    fn chunking(images: usize, shuffle_views: bool) -> Chunking {
        Chunking { images, shuffle_views, passes: 2 }
    }

    #[test]
    fn chunks_are_even_and_hold_every_view_once() {
        for (n, images, shuffle_views) in
            [(24, 6, false), (24, 6, true), (25, 6, true), (31, 8, true), (7, 4, true), (9, 9, true)]
        {
            let ids: Vec<usize> = (100..100 + n).collect();
            let chunks = chunking(images, shuffle_views).partition(&ids, 2, KEY, 1);
            assert_eq!(chunks.len(), n.div_ceil(images));
            for views in [|chunk: &ChunkRows| chunk.first.clone(), |chunk: &ChunkRows| chunk.second.clone()] {
                let mut all: Vec<usize> = chunks.iter().flat_map(views).collect();
                all.sort_unstable();
                assert_eq!(all, ids, "{n} in {images}");
            }
            for chunk in &chunks {
                assert!(
                    chunk.first.len().abs_diff(chunk.second.len()) <= usize::from(shuffle_views),
                    "{n} in {images}: {chunks:?}"
                );
                assert!(chunk.first.len() <= images && chunk.first.len() + 1 >= n / chunks.len());
            }
        }
    }

    #[test]
    fn parts_have_equally_many_chunks_of_their_own_images() {
        let ids: Vec<usize> = (0..21).collect();
        for (parts, images, expected) in [(2, 4, 6), (4, 100, 4), (3, 7, 3)] {
            let chunks = chunking(images, true).partition(&ids, 2, KEY, parts);
            assert_eq!(chunks.len(), expected, "{parts} parts in chunks of {images}");
            for (part, own) in chunks.chunks(expected / parts).enumerate() {
                let first: Vec<usize> = own.iter().flat_map(|chunk| chunk.first.clone()).collect();
                assert_eq!(first, ids[part * 21 / parts..(part + 1) * 21 / parts]);
                assert!(own.iter().all(|chunk| chunk.first.len() <= images));
            }
        }
    }

    #[test]
    fn without_shuffling_chunks_hold_both_views_in_order() {
        let chunks = chunking(3, false).partition(&[5, 9, 2, 7, 1], 2, KEY, 1);
        let expected = [[5, 9].to_vec(), [2, 7, 1].to_vec()];
        assert!(chunks.iter().zip(&expected).all(|(chunk, ids)| chunk.first == *ids && chunk.second == *ids));
        let labelled = chunking(3, false).partition(&[5, 9, 2, 7, 1], 1, KEY, 1);
        assert!(labelled.iter().all(|chunk| chunk.second.is_empty()));
    }

    #[test]
    fn shuffled_views_of_a_chunk_are_spread_evenly_over_all_others() {
        let ids: Vec<usize> = (0..64).collect();
        let chunks = chunking(8, true).partition(&ids, 2, KEY, 1);
        for (source, chunk) in chunks.iter().enumerate() {
            assert!(chunk.first.iter().all(|id| !chunk.second.contains(id)));
            let mut shares: HashMap<usize, usize> = HashMap::new();
            for (target, other) in chunks.iter().enumerate() {
                let shared = other.second.iter().filter(|id| chunk.first.contains(id)).count();
                shares.insert(target, shared);
            }
            assert_eq!(shares.remove(&source), Some(0));
            assert!(
                shares.values().all(|share| [1, 2].contains(share)),
                "8 partners over 7 chunks: {shares:?}"
            );
        }
        let again = chunking(8, true).partition(&ids, 2, KEY, 1);
        let other = chunking(8, true).partition(&ids, 2, Key { view: 1, ..KEY }, 1);
        assert!(again == chunks && other != chunks, "the key decides");
    }
}
