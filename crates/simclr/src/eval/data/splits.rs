//! Labels to index sets: class-balanced subsets, stratified hold-outs and folds, each a function of a seed.

use simclr_data::rng::{Key, Stream};

/// Positions to fit on, and held-out positions; both ascending.
pub type Split = (Vec<usize>, Vec<usize>);

/// An epoch that no run reaches separates these streams from those of training.
fn stream(seed: u64, purpose: u64) -> Stream {
    Key { seed, epoch: u64::MAX, image: purpose, view: 0 }.stream()
}

/// Positions of each class in `labels`, each list in an order drawn from (`seed`, `purpose`).
fn by_class(labels: &[i64], classes: usize, seed: u64, purpose: u64) -> Vec<Vec<usize>> {
    let mut positions = vec![Vec::new(); classes];
    for (position, &label) in labels.iter().enumerate() {
        positions[label as usize].push(position);
    }
    let mut stream = stream(seed, purpose);
    let shuffled = |list: Vec<usize>| stream.permutation(list.len()).into_iter().map(|i| list[i]).collect();
    positions.into_iter().map(shuffled).collect()
}

/// Labels per class of a class-balanced subset of `share` of `labels` labels: rounded, at least 1.
pub fn per_class(labels: usize, classes: usize, share: f64) -> usize {
    ((share * labels as f64 / classes as f64).round() as usize).max(1)
}

/// Positions of a class-balanced subset of `share` of all labels: equally many per class (rounded, at least 1, at most
/// the size of the class), ascending. `draw` numbers independent subsets of one seed.
pub fn balanced_subset(labels: &[i64], classes: usize, share: f64, seed: u64, draw: u64) -> Vec<usize> {
    few_shot(labels, classes, per_class(labels.len(), classes, share), seed, draw)
}

/// The same with `per_class` labels of each class, or all of a smaller class. Within a draw, smaller subsets are contained in
/// larger ones.
pub fn few_shot(labels: &[i64], classes: usize, per_class: usize, seed: u64, draw: u64) -> Vec<usize> {
    let lists = by_class(labels, classes, seed, 1 + draw);
    sorted(lists.into_iter().flat_map(|list| list.into_iter().take(per_class)).collect())
}

/// Positions (kept, held out) with `share` of every class held out: rounded, and at least one of each class kept.
pub fn hold_out(labels: &[i64], classes: usize, share: f64, seed: u64) -> Split {
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for list in by_class(labels, classes, seed, 0) {
        let count = ((share * list.len() as f64).round() as usize).min(list.len().saturating_sub(1));
        held.extend_from_slice(&list[..count]);
        kept.extend_from_slice(&list[count..]);
    }
    (sorted(kept), sorted(held))
}

/// `folds` pairs (fit, validate): every position is validated once, classes spread evenly over the folds.
pub fn folds(labels: &[i64], classes: usize, folds: usize, seed: u64) -> Vec<Split> {
    let mut fold_of = vec![0; labels.len()];
    // One running counter spreads classes of one or two images over different folds.
    let numbered = by_class(labels, classes, seed, 0).into_iter().flatten().enumerate();
    numbered.for_each(|(number, position)| fold_of[position] = number % folds);
    let part = |fold: usize| (0..labels.len()).partition(|&position| fold_of[position] != fold);
    (0..folds).map(part).filter(|(fit, validate): &Split| !fit.is_empty() && !validate.is_empty()).collect()
}

fn sorted(mut positions: Vec<usize>) -> Vec<usize> {
    positions.sort_unstable();
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<i64> {
        (0..500).map(|i| if i % 10 == 0 { 2 } else { i % 2 }).collect()
    }

    #[test]
    fn balanced_subsets_have_equal_counts_per_class() {
        let labels = labels();
        for (share, want) in [(0.12, 20), (0.001, 1), (1.0, 50)] {
            let subset = balanced_subset(&labels, 3, share, 7, 0);
            let count = |class| subset.iter().filter(|&&i| labels[i] == class).count();
            assert_eq!(count(2), want);
            assert!(share == 1.0 || (count(0) == want && count(1) == want), "{share}");
        }
        assert_eq!(balanced_subset(&labels, 3, 0.1, 7, 3), balanced_subset(&labels, 3, 0.1, 7, 3));
        assert_ne!(balanced_subset(&labels, 3, 0.1, 7, 3), balanced_subset(&labels, 3, 0.1, 7, 4));
        assert_ne!(balanced_subset(&labels, 3, 0.1, 7, 3), balanced_subset(&labels, 3, 0.1, 8, 3));
    }

    #[test]
    fn few_shot_subsets_have_k_per_class_and_are_nested() {
        let labels = labels();
        for (k, rare) in [(1, 1), (5, 5), (60, 50)] {
            let subset = few_shot(&labels, 3, k, 7, 2);
            let count = |class| subset.iter().filter(|&&i| labels[i] == class).count();
            assert_eq!((count(0), count(1), count(2)), (k, k, rare));
            let more = few_shot(&labels, 3, k + 3, 7, 2);
            assert!(subset.iter().all(|position| more.contains(position)));
        }
        // 3 classes of 500 labels: 12 % are 20 of each.
        assert_eq!(few_shot(&labels, 3, 20, 7, 1), balanced_subset(&labels, 3, 0.12, 7, 1));
    }

    #[test]
    fn hold_outs_are_stratified_and_disjoint() {
        let labels = labels();
        let (kept, held) = hold_out(&labels, 3, 0.2, 1);
        for class in 0..3 {
            let all = labels.iter().filter(|&&l| l == class).count();
            assert_eq!(
                held.iter().filter(|&&i| labels[i] == class).count(),
                (all as f64 * 0.2).round() as usize
            );
        }
        let mut all = [kept, held].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..500));
        assert_eq!(hold_out(&[0, 1, 1], 2, 0.9, 1).0.len(), 2, "one of each class stays");
    }

    #[test]
    fn folds_validate_each_position_once() {
        let labels = labels();
        let folds = folds(&labels, 3, 5, 1);
        assert_eq!(folds.len(), 5);
        let mut all: Vec<usize> = folds.iter().flat_map(|(_, validate)| validate.clone()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..500));
        for (fit, validate) in &folds {
            assert_eq!(fit.len() + validate.len(), 500);
            assert!(validate.iter().all(|i| !fit.contains(i)));
            assert_eq!(validate.iter().filter(|&&i| labels[i] == 2).count(), 10);
        }
        assert_eq!(super::folds(&[0, 1, 2], 3, 5, 0).len(), 3);
    }
}
