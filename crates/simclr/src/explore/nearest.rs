//! Nearest images by the cosine of h, exact.

use tch::Tensor;

use crate::knn::Neighbours;

/// A row of the set, and its cosine with the image in question.
pub type Near = (usize, f64);

/// The `k` rows of `h` `[n, F]` nearest to each of `queries` `[q, F]`, nearest first; fewer if the set is smaller. Memory is bounded: see
/// [`Neighbours::of`].
pub fn of_queries(h: &Tensor, queries: &Tensor, k: usize) -> Vec<Vec<Near>> {
    let rows = h.size()[0] as usize;
    if k == 0 || rows == 0 || queries.size()[0] == 0 {
        return vec![Vec::new(); queries.size()[0] as usize];
    }
    let found = Neighbours::of(h, queries, k as i64);
    let width = k.min(rows);
    let positions = Vec::<i64>::try_from(found.positions().contiguous().view([-1])).unwrap_or_default();
    let cosines =
        Vec::<f64>::try_from(found.similarities().to_kind(tch::Kind::Double).contiguous().view([-1]))
            .unwrap_or_default();
    let near: Vec<Near> = positions.into_iter().map(|at| at as usize).zip(cosines).collect();
    near.chunks(width).map(<[Near]>::to_vec).collect()
}

/// The `k` other rows nearest to each row of `h` `[n, F]`; fewer if there are no more.
pub fn of_each(h: &Tensor, k: usize) -> Vec<Vec<Near>> {
    let with_own = of_queries(h, h, k + 1);
    with_own.into_iter().enumerate().map(|(own, near)| without(near, own, k)).collect()
}

/// At most `k` of `near` that are not `own`, which may lie behind equal rows or be cut off by them.
pub fn without(near: Vec<Near>, own: usize, k: usize) -> Vec<Near> {
    near.into_iter().filter(|(row, _)| *row != own).take(k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in single precision against cosines in double precision, with blocks and with equal rows.
    #[test]
    fn neighbours_are_those_of_brute_force() {
        tch::set_num_threads(1);
        let (n, width, k) = (300, 24, 7);
        let h = crate::test_normals(1, &[n, width]);
        h.get(5).copy_(&h.get(17));
        let rows = Vec::<f32>::try_from(h.view([-1])).unwrap();
        let row = |at: usize| rows[at * width as usize..][..width as usize].iter().map(|&x| f64::from(x));
        let dot = |a: usize, b: usize| row(a).zip(row(b)).map(|(x, y)| x * y).sum::<f64>();
        let found = of_each(&h, k);
        for (own, near) in found.iter().enumerate() {
            let cosine = |other: usize| dot(own, other) / (dot(own, own) * dot(other, other)).sqrt();
            let mut all: Vec<Near> =
                (0..n as usize).filter(|at| *at != own).map(|at| (at, cosine(at))).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            let same = near.iter().zip(&all).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5);
            // Rows 5 and 17 are equal, in either order.
            let tied = [5, 17].iter().any(|row| all[..=k].iter().any(|near| near.0 == *row));
            assert!(near.len() == k && (same || tied), "{own}: {near:?} {:?}", &all[..k]);
            assert!(near.iter().zip(&all).all(|(a, b)| (a.1 - b.1).abs() < 1e-5), "{own}");
        }
        assert_eq!((found[5][0].0, found[17][0].0), (17, 5));
    }

    #[test]
    fn small_sets_have_fewer_neighbours() {
        let h = crate::test_normals(2, &[3, 4]);
        assert!(of_each(&h, 10).iter().all(|near| near.len() == 2));
        assert_eq!(of_each(&h.narrow(0, 0, 1), 10), [Vec::new()]);
        assert_eq!(of_queries(&h, &h.narrow(0, 0, 2), 0), [Vec::new(), Vec::new()]);
    }
}
