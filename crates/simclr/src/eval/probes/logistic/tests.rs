//! Unit tests of the objective.

use super::*;

/// Three overlapping clusters in 4 dimensions, one of which is constant.
pub(in crate::eval::probes) fn clusters(n: i64, seed: u64) -> (Tensor, Tensor) {
    tch::set_num_threads(1);
    let labels = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).remainder(3);
    let centres =
        Tensor::from_slice(&[1.0f32, 0.0, 0.0, 7.0, 0.0, 1.0, 0.0, 7.0, 0.0, 0.0, 1.0, 7.0]).view([3, 4]);
    let noise = crate::test_normals(seed, &[n, 4]) * Tensor::from_slice(&[0.7f32, 0.7, 0.7, 0.0]);
    (centres.index_select(0, &labels) + noise, labels)
}

/// One set of images.
fn problem(x: &Tensor, standard: &Standardisation, y: &Tensor, classes: i64) -> Problems {
    let sample = Sample { features: x.shallow_clone(), standard, labels: y.shallow_clone() };
    Problems::new(&[sample], classes, 1e-5)
}

fn solve(problem: &Problems, start: &[f64], lambda: f64, solver: &Lbfgs) -> Minimum {
    problem.solve(Tensor::from_slice(start).unsqueeze(0), &[lambda], solver).remove(0)
}

/// J and its gradient.
fn at(problem: &Problems, point: &[f64], lambda: f64) -> (f64, Vec<f64>) {
    let lambda = Tensor::from_slice(&[lambda]);
    let (value, gradient) = problem.evaluate(&Tensor::from_slice(point).unsqueeze(0), &lambda);
    (value.double_value(&[0]), Vec::try_from(gradient.view([-1])).unwrap())
}

#[test]
fn gradient_matches_finite_differences() {
    let (x, y) = clusters(50, 1);
    let problem = problem(&x, &Standardisation::of(&x), &y, 3);
    let point: Vec<f64> = (0..15).map(|i| (f64::from(i) * 1.7).sin()).collect();
    let (_, gradient) = at(&problem, &point, 0.3);
    for i in 0..15 {
        let moved = |shift: f64| {
            let mut moved = point.clone();
            moved[i] += shift;
            at(&problem, &moved, 0.3).0
        };
        let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} {}", gradient[i]);
    }
}

#[test]
fn single_precision_products_of_a_large_set_match_double() {
    tch::set_num_threads(1);
    let x = crate::test_normals(7, &[17_000, 128]).to_kind(Kind::Double);
    let y = crate::test_normals(9, &[17_000]).abs().multiply_scalar(10.0).to_kind(Kind::Int64).remainder(5);
    let plain = Standardisation::of(&x);
    let single = problem(&x, &plain, &y, 5);
    assert_eq!((single.kind, single.blocks.len()), (Kind::Float, 17));
    let halves =
        |part: i64| problem(&x.narrow(0, part * 8500, 8500), &plain, &y.narrow(0, part * 8500, 8500), 5);
    let point: Vec<f64> = (0..5 * 129).map(|i| 0.1 * (i as f64 * 1.3).sin()).collect();
    let at = |problem: &Problems| at(problem, &point, 0.0);
    let ((value, gradient), (a, b)) = (at(&single), (at(&halves(0)), at(&halves(1))));
    assert_eq!(halves(0).kind, Kind::Double);
    assert!((value - (a.0 + b.0) / 2.0).abs() < 1e-6);
    let worst = gradient.iter().zip(a.1.iter().zip(&b.1)).map(|(g, (a, b))| (g - (a + b) / 2.0).abs());
    assert!(worst.fold(0.0, f64::max) < 1e-6);
}

#[test]
fn minimum_is_independent_of_the_start() {
    let (x, y) = clusters(200, 2);
    let problem = problem(&x, &Standardisation::of(&x), &y, 3);
    let solver = Lbfgs { tolerance: 1e-9, ..Lbfgs::default() };
    let near = solve(&problem, &[0.0; 15], 1e-2, &solver);
    let far: Vec<f64> = (0..15).map(|i| 5.0 * (f64::from(i) * 2.3).cos()).collect();
    let far = solve(&problem, &far, 1e-2, &solver);
    assert!((near.value - far.value).abs() < 1e-12, "{} {}", near.value, far.value);
    let distance = |i: usize| (near.x[i] - far.x[i]).abs();
    assert!((0..12).all(|i| distance(i) < 1e-6), "W is unique");
}

/// Wide features with few rows are solved in the span of the rows.
#[test]
fn row_space_has_the_same_minimum() {
    tch::set_num_threads(1);
    let x = crate::test_normals(8, &[20, 60]).to_kind(Kind::Double);
    let y = Tensor::arange(20, (Kind::Int64, tch::Device::Cpu)).remainder(4);
    let standard = Standardisation::of(&x);
    let narrow = problem(&x, &standard, &y, 4);
    assert_eq!(
        (narrow.width, narrow.origin().size()),
        (19, vec![1, 80]),
        "centred rows span one dimension less"
    );
    // The same rows three times over are too many for the row space, and have the same minimum.
    let (more_x, more_y) = (x.repeat([3, 1]), y.repeat([3]));
    let wide = problem(&more_x, &standard, &more_y, 4);
    assert!(wide.bases.is_none());
    let solver = Lbfgs { tolerance: 1e-10, ..Lbfgs::default() };
    let a = solve(&narrow, &[0.0; 80], 1e-2, &solver);
    let b = solve(&wide, &[0.0; 61 * 4], 1e-2, &solver);
    assert!((a.value - b.value).abs() < 1e-12, "{} {}", a.value, b.value);
    let ((w, _), (v, _)) = (narrow.unpack(0, &a.x), wide.unpack(0, &b.x));
    assert_eq!(w.size(), [60, 4]);
    assert!((w - v).abs().max().double_value(&[]) < 1e-7);
}

/// Sets of different sizes and penalties, over all features and in the row space.
#[test]
fn classifiers_solved_together_equal_those_solved_alone() {
    tch::set_num_threads(1);
    let solver = Lbfgs { tolerance: 1e-10, ..Lbfgs::default() };
    for width in [6, 90] {
        let rows = [37, 20, 31];
        let sets: Vec<(Tensor, Tensor)> = rows
            .iter()
            .enumerate()
            .map(|(at, &rows)| {
                let x = crate::test_normals(20 + at as u64, &[rows, width]).to_kind(Kind::Double);
                (x, Tensor::arange(rows, (Kind::Int64, tch::Device::Cpu)).remainder(4))
            })
            .collect();
        let standards: Vec<Standardisation> = sets.iter().map(|(x, _)| Standardisation::of(x)).collect();
        let samples: Vec<Sample<'_>> = sets
            .iter()
            .zip(&standards)
            .map(|((x, y), standard)| Sample {
                features: x.shallow_clone(),
                standard,
                labels: y.shallow_clone(),
            })
            .collect();
        let all = Problems::new(&samples, 4, 1e-5);
        let lambdas = [3.0, 0.3, 0.01];
        let together = all.solve(all.origin(), &lambdas, &solver);
        for (set, (found, lambda)) in together.iter().zip(lambdas).enumerate() {
            let one = problem(&sets[set].0, &standards[set], &sets[set].1, 4);
            let alone = one.solve(one.origin(), &[lambda], &solver).remove(0);
            assert!((found.value - alone.value).abs() < 1e-12, "{width} {set}");
            let ((w, b), (v, c)) = (all.unpack(set, &found.x), one.unpack(0, &alone.x));
            assert!((w - v).abs().max().double_value(&[]) < 1e-6, "{width} {set}");
            assert!((b - c).abs().max().double_value(&[]) < 1e-6, "{width} {set}");
        }
    }
}
