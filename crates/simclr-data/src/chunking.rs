//! Which views of a batch go through the encoder together, where it does not fit as a whole.

use std::collections::HashSet;

use crate::rng::Key;

/// How a batch is parted into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking {
    /// Images of a chunk, at most; chunks differ by one image at most.
    pub images: usize,
    /// Whether the two views of an image are dealt to different chunks. Batch norm over the chunk then tells nothing about
    /// which views belong together (MoCo, arXiv 1911.05722, section 3.3, which shuffles over GPUs).
    pub shuffle_views: bool,
    /// How often the chunks of a step are made, one after the other: 1 or 2.
    pub passes: usize,
}

/// Images whose first view, and images whose second view, are in one chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dealt {
    /// Of first views.
    pub first: Vec<usize>,
    /// Of second views.
    pub second: Vec<usize>,
}

impl Dealt {
    /// Views.
    pub(crate) fn rows(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Image and view of every row, in row order.
    pub(crate) fn views(&self) -> impl Iterator<Item = (usize, u64)> {
        let view = |number: u64| move |&id: &usize| (id, number);
        self.first.iter().map(view(0)).chain(self.second.iter().map(view(1)))
    }

    /// Drops the views of the images `bad`.
    pub(crate) fn leave_out(&mut self, bad: &HashSet<usize>) {
        if !bad.is_empty() {
            self.first.retain(|id| !bad.contains(id));
            self.second.retain(|id| !bad.contains(id));
        }
    }
}

impl Chunking {
    /// The chunks of the batch `ids`, of which `views` views are made. The batch lies in `parts` parts, with as many chunks
    /// each; those of a part follow one another.
    ///
    /// Dealt shuffle_views, the partners of a chunk's first views are spread evenly over all other chunks, in an order that `key`
    /// decides; no chunk has more second views than first views by more than one.
    pub fn deal(&self, ids: &[usize], views: usize, key: Key, parts: usize) -> Vec<Dealt> {
        let count = parts * ids.len().div_ceil(parts).div_ceil(self.images.max(1)).max(1);
        let part = |index: usize| &ids[index * ids.len() / count..(index + 1) * ids.len() / count];
        let chunk = |index| Dealt { first: part(index).to_vec(), second: Vec::new() };
        let mut chunks: Vec<_> = (0..count).map(chunk).collect();
        let mut dice = key.stream();
        for source in 0..if views < 2 { 0 } else { count } {
            let images = part(source);
            if !self.shuffle_views || count == 1 {
                chunks[source].second = images.to_vec();
                continue;
            }
            for (turn, place) in dice.permutation(images.len()).into_iter().enumerate() {
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

    /// Odd sizes too: every view once, chunks of nearly equal size.
    #[test]
    fn every_view_is_dealt_once_and_evenly() {
        for (n, images, shuffle_views) in
            [(24, 6, false), (24, 6, true), (25, 6, true), (31, 8, true), (7, 4, true), (9, 9, true)]
        {
            let ids: Vec<usize> = (100..100 + n).collect();
            let chunks = chunking(images, shuffle_views).deal(&ids, 2, KEY, 1);
            assert_eq!(chunks.len(), n.div_ceil(images));
            for views in [|chunk: &Dealt| chunk.first.clone(), |chunk: &Dealt| chunk.second.clone()] {
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

    /// Over parts, the images of a part stay together, and its chunks are no larger than asked for.
    #[test]
    fn parts_have_as_many_chunks_each() {
        let ids: Vec<usize> = (0..21).collect();
        for (parts, images, expected) in [(2, 4, 6), (4, 100, 4), (3, 7, 3)] {
            let chunks = chunking(images, true).deal(&ids, 2, KEY, parts);
            assert_eq!(chunks.len(), expected, "{parts} parts in chunks of {images}");
            for (part, own) in chunks.chunks(expected / parts).enumerate() {
                let first: Vec<usize> = own.iter().flat_map(|chunk| chunk.first.clone()).collect();
                assert_eq!(first, ids[part * 21 / parts..(part + 1) * 21 / parts]);
                assert!(own.iter().all(|chunk| chunk.first.len() <= images));
            }
        }
    }

    #[test]
    fn together_means_pairs_in_order() {
        let chunks = chunking(3, false).deal(&[5, 9, 2, 7, 1], 2, KEY, 1);
        let expected = [[5, 9].to_vec(), [2, 7, 1].to_vec()];
        assert!(chunks.iter().zip(&expected).all(|(chunk, ids)| chunk.first == *ids && chunk.second == *ids));
        let labelled = chunking(3, false).deal(&[5, 9, 2, 7, 1], 1, KEY, 1);
        assert!(labelled.iter().all(|chunk| chunk.second.is_empty()));
    }

    /// The two views of an image never meet, and the companions of a chunk are in all other chunks.
    #[test]
    fn apart_means_never_together_and_spread() {
        let ids: Vec<usize> = (0..64).collect();
        let chunks = chunking(8, true).deal(&ids, 2, KEY, 1);
        for (source, chunk) in chunks.iter().enumerate() {
            assert!(chunk.first.iter().all(|id| !chunk.second.contains(id)));
            let mut shares: HashMap<usize, usize> = HashMap::new();
            for (target, other) in chunks.iter().enumerate() {
                let met = other.second.iter().filter(|id| chunk.first.contains(id)).count();
                shares.insert(target, met);
            }
            assert_eq!(shares.remove(&source), Some(0));
            assert!(shares.values().all(|&met| met == 1 || met == 2), "8 partners over 7 chunks: {shares:?}");
        }
        let again = chunking(8, true).deal(&ids, 2, KEY, 1);
        let other = chunking(8, true).deal(&ids, 2, Key { view: 1, ..KEY }, 1);
        assert!(again == chunks && other != chunks, "the key decides");
    }
}
