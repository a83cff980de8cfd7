//! Images to look at, from the neighbours of every image: odd ones, near-duplicates, possible label errors, examples of classes.

use simclr_data::rng::Key;

use super::nearest::Near;

/// Two images that are almost the same to the encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The rows, ascending.
    pub rows: [usize; 2],
    /// Their cosine.
    pub cosine: f64,
}

/// An image with a label that its neighbours contradict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Row of the image.
    pub row: usize,
    /// Its class.
    pub label: usize,
    /// Class of most of its neighbours.
    pub other: usize,
    /// Neighbours of that class.
    pub votes: usize,
    /// Neighbours with a label.
    pub of: usize,
}

/// The `count` rows farthest from the last of their neighbours, with 1 - cosine, the farthest first.
pub fn odd(near: &[Vec<Near>], count: usize) -> Vec<Near> {
    let distance = |(row, near): (usize, &Vec<Near>)| near.last().map(|(_, cosine)| (row, 1.0 - cosine));
    let mut all: Vec<Near> = near.iter().enumerate().filter_map(distance).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

/// Pairs with a cosine of at least `threshold`, where one is among the neighbours of the other, the most similar first.
pub fn duplicates(near: &[Vec<Near>], threshold: f64) -> Vec<Pair> {
    let mut pairs = std::collections::BTreeMap::new();
    for (row, near) in near.iter().enumerate() {
        for (other, cosine) in near.iter().filter(|(_, cosine)| *cosine >= threshold) {
            pairs.entry([row.min(*other), row.max(*other)]).or_insert(*cosine);
        }
    }
    let mut pairs: Vec<Pair> = pairs.into_iter().map(|(rows, cosine)| Pair { rows, cosine }).collect();
    pairs.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.rows.cmp(&b.rows)));
    pairs
}

/// Images of which at least the share `agreement` of the labelled neighbours, and at least three, are of one other class; most votes
/// first, then the nearest neighbours.
pub fn suspects(near: &[Vec<Near>], labels: &[Option<usize>], agreement: f64) -> Vec<Suspect> {
    let suspect = |(row, near): (usize, &Vec<Near>)| {
        let label = labels[row]?;
        let (other, votes, of) = majority(near, labels)?;
        let agreed = votes >= 3 && votes as f64 >= agreement * of as f64;
        (other != label && agreed).then_some(Suspect { row, label, other, votes, of })
    };
    let mut all: Vec<Suspect> = near.iter().enumerate().filter_map(suspect).collect();
    let share = |found: &Suspect| found.votes as f64 / found.of as f64;
    let first = |found: &Suspect| near[found.row].first().map_or(0.0, |near| near.1);
    all.sort_by(|a, b| share(b).total_cmp(&share(a)).then(first(b).total_cmp(&first(a))));
    all
}

/// Class of most labelled neighbours, the nearest among equals; its votes, and all votes.
fn majority(near: &[Near], labels: &[Option<usize>]) -> Option<(usize, usize, usize)> {
    let voted: Vec<usize> = near.iter().filter_map(|(row, _)| labels[*row]).collect();
    let votes = |class: usize| voted.iter().filter(|voted| **voted == class).count();
    // `max_by_key` takes the last of equals.
    let other = voted.iter().copied().rev().max_by_key(|class| votes(*class))?;
    Some((other, votes(other), voted.len()))
}

/// Share of the labelled images with the class of most of their neighbours; none without labels.
pub fn agreement(near: &[Vec<Near>], labels: &[Option<usize>]) -> Option<f64> {
    let judged =
        near.iter().zip(labels).filter_map(|(near, label)| Some(majority(near, labels)?.0 == (*label)?));
    let judged: Vec<bool> = judged.collect();
    (!judged.is_empty()).then(|| judged.iter().filter(|same| **same).count() as f64 / judged.len() as f64)
}

/// One random row of each of at most `count` random classes, or `count` random rows without labels; ascending by class.
pub fn examples(labels: &[Option<usize>], count: usize, seed: u64) -> Vec<usize> {
    let order = Key::choice(seed, 1).stream().permutation(labels.len());
    if labels.iter().all(Option::is_none) {
        return order.into_iter().take(count).collect();
    }
    let mut by_class: Vec<(usize, usize)> = Vec::new();
    for row in order {
        if let Some(label) = labels[row].filter(|label| by_class.iter().all(|(known, _)| known != label)) {
            by_class.push((label, row));
        }
        if by_class.len() == count {
            break;
        }
    }
    by_class.sort_unstable();
    by_class.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::{super::nearest, *};

    /// Two clusters of 20 around two axes; row 7 has the label of the other cluster, row 40 lies between nothing, row 41 is row 3.
    fn planted() -> (Tensor, Vec<Option<usize>>) {
        tch::set_num_threads(1);
        let h = crate::test_normals(3, &[42, 6]) * 0.05;
        for row in 0..42i64 {
            let axis = if row < 20 { 0 } else { 1 };
            let _ = h.get(row).get(axis).f_add_(&Tensor::from(1.0f32)).unwrap();
        }
        h.get(40).copy_(&Tensor::from_slice(&[0.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]));
        h.get(41).copy_(&h.get(3));
        let mut labels: Vec<Option<usize>> = (0..42).map(|row| Some(usize::from(row >= 20))).collect();
        labels[7] = Some(1);
        labels[41] = None;
        (h.to_kind(Kind::Float), labels)
    }

    #[test]
    fn planted_images_are_found() {
        let (h, labels) = planted();
        let near = nearest::of_each(&h, 8);
        let odd = odd(&near, 3);
        assert_eq!(odd[0].0, 40);
        assert!(odd[0].1 > 5.0 * odd[1].1 && odd.len() == 3, "{odd:?}");
        let pairs = duplicates(&near, 0.99999);
        assert_eq!(pairs.iter().map(|pair| pair.rows).collect::<Vec<_>>(), [[3, 41]]);
        assert!((pairs[0].cosine - 1.0).abs() < 1e-6);
        let found = suspects(&near, &labels, 0.8);
        let of_7 = found.iter().find(|found| found.row == 7).unwrap();
        assert_eq!(
            (of_7.label, of_7.other, of_7.votes),
            (1, 0, of_7.of),
            "an image without a label does not vote"
        );
        assert!(found.iter().all(|found| found.row == 7 || found.row == 40), "{found:?}");
        let share = agreement(&near, &labels).unwrap();
        assert!((39.0 / 41.0 - 1e-9..=40.0 / 41.0).contains(&share), "{share}");
    }

    #[test]
    fn every_class_has_an_example_of_its_own() {
        let labels: Vec<Option<usize>> = (0..40).map(|row| (row % 5 != 4).then_some(row % 5)).collect();
        let rows = examples(&labels, 10, 1);
        assert_eq!(rows.iter().map(|row| labels[*row]).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
        assert_eq!(rows, examples(&labels, 10, 1));
        assert_ne!(rows, examples(&labels, 10, 2));
        assert_eq!(examples(&labels, 2, 1).len(), 2);
        assert_eq!(examples(&[None; 9], 4, 0).len(), 4);
        assert!(suspects(&[vec![(1, 0.5)], vec![(0, 0.5)]], &[Some(0), Some(1)], 0.8).is_empty(), "one vote");
        assert_eq!(agreement(&[vec![(1, 0.5)], vec![(0, 0.5)]], &[None, None]), None);
    }
}
