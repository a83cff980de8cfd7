//! Unit tests of the solver.

use super::*;

/// Minimises one function from `start`. `function(x, gradient)` writes the gradient and returns the value.
fn minimise(solver: &Lbfgs, start: Vec<f64>, function: &mut dyn FnMut(&[f64], &mut [f64]) -> f64) -> Minimum {
    let start = Tensor::from_slice(&start).unsqueeze(0);
    solver.minimise_all(start, &mut One(function)).remove(0)
}

/// Adapter of a single function.
struct One<'a>(&'a mut dyn FnMut(&[f64], &mut [f64]) -> f64);

impl Functions for One<'_> {
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor) {
        let x = to_host(points);
        let mut gradient = vec![0.0; x.len()];
        let value = (self.0)(&x, &mut gradient);
        (Tensor::from_slice(&[value]), Tensor::from_slice(&gradient).unsqueeze(0))
    }
}

fn rosenbrock(x: &[f64], gradient: &mut [f64]) -> f64 {
    let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
    gradient[0] = -2.0 * a - 400.0 * x[0] * b;
    gradient[1] = 200.0 * b;
    a * a + 100.0 * b * b
}

#[test]
fn rosenbrock_converges() {
    let found = minimise(&Lbfgs { tolerance: 1e-9, ..Lbfgs::default() }, vec![-1.2, 1.0], &mut rosenbrock);
    assert_eq!(found.stop, Stop::Converged);
    assert!((found.x[0] - 1.0).abs() < 1e-8 && (found.x[1] - 1.0).abs() < 1e-8, "{found:?}");
    assert!(found.iterations < 60, "{found:?}");
}

#[test]
fn iterations_of_an_ill_conditioned_quadratic_match_scipy() {
    let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(4.0 * f64::from(i) / 49.0)).collect();
    let mut quadratic = |x: &[f64], gradient: &mut [f64]| {
        for i in 0..50 {
            gradient[i] = scales[i] * (x[i] - 1.0);
        }
        x.iter().zip(&scales).map(|(x, s)| 0.5 * s * (x - 1.0) * (x - 1.0)).sum()
    };
    let found = minimise(&Lbfgs::default(), vec![0.0; 50], &mut quadratic);
    assert_eq!(found.stop, Stop::Converged, "{} {}", found.iterations, found.gradient);
    assert!(found.x.iter().all(|x| (x - 1.0).abs() < 1e-4));
    // scipy 1.x, L-BFGS-B with ten pairs: 663 iterations to the same tolerance.
    assert!(found.iterations < 800, "{}", found.iterations);
}

/// f_p(x) = sum scales (x - centre_p)^2 / 2, with an optional preconditioner: the inverse Hessian over 3.
struct Quadratics {
    scales: Tensor,
    centres: Tensor,
    preconditioned: bool,
    rounds: usize,
}

impl Quadratics {
    fn new(centres: &[f64], preconditioned: bool) -> Self {
        let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(6.0 * f64::from(i) / 49.0)).collect();
        let centres = Tensor::from_slice(centres).unsqueeze(1);
        Self { scales: Tensor::from_slice(&scales), centres, preconditioned, rounds: 0 }
    }

    fn start(&self) -> Tensor {
        Tensor::zeros([self.centres.size()[0], 50], (Kind::Double, tch::Device::Cpu))
    }
}

impl Functions for Quadratics {
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor) {
        self.rounds += 1;
        let gradient = (points - &self.centres) * &self.scales;
        (dot(&gradient, &(points - &self.centres)) * 0.5, gradient)
    }

    fn inverse(&self, vectors: &Tensor) -> Option<Tensor> {
        self.preconditioned.then(|| vectors / &self.scales / 3.0)
    }

    fn shrink(&mut self, ended: &[bool]) -> Option<Vec<i64>> {
        // In another order than before.
        let stay: Vec<i64> = (0..ended.len() as i64).rev().filter(|&at| !ended[at as usize]).collect();
        self.centres = self.centres.index_select(0, &Tensor::from_slice(&stay));
        Some(stay)
    }
}

#[test]
fn the_inverse_hessian_as_preconditioner_converges_at_once() {
    let mut quadratic = Quadratics::new(&[1.0], true);
    let found = Lbfgs::default().minimise_all(quadratic.start(), &mut quadratic).remove(0);
    assert_eq!(found.stop, Stop::Converged);
    assert!(found.iterations <= 3, "{}", found.iterations);
}

#[test]
fn functions_minimised_together_need_fewer_rounds() {
    let centres = [0.0, 1.0, -3.0, 1e-9, 50.0];
    let solver = Lbfgs { tolerance: 1e-6, ..Lbfgs::default() };
    // Condition 100: plain L-BFGS needs more than its 1,000 iterations for 1e6.
    let gentle = |of: Quadratics| Quadratics { scales: of.scales.pow_tensor_scalar(1.0 / 3.0), ..of };
    let mut all = gentle(Quadratics::new(&centres, false));
    let together = solver.minimise_all(all.start(), &mut all);
    let mut rounds = 0;
    for (centre, found) in centres.iter().zip(&together) {
        let mut one = gentle(Quadratics::new(&[*centre], false));
        let alone = solver.minimise_all(one.start(), &mut one).remove(0);
        assert_eq!((found.stop, alone.stop), (Stop::Converged, Stop::Converged), "{centre}");
        assert!(found.gradient < 1e-6 && found.x.iter().all(|x| (x - centre).abs() < 1e-5), "{centre}");
        rounds += one.rounds;
    }
    assert_eq!(together[0].iterations, 0, "it starts at its minimum");
    assert!(all.rounds < rounds, "{} {rounds}", all.rounds);
}

#[test]
fn ends_without_error_at_the_precision_limit() {
    // The constant swallows every decrease below 1e-10: a gradient of 1e-14 cannot be reached.
    let mut flat = |x: &[f64], gradient: &mut [f64]| {
        gradient[0] = x[0].tanh();
        1e6 + x[0].cosh().ln()
    };
    let found = minimise(&Lbfgs { tolerance: 1e-300, ..Lbfgs::default() }, vec![3.0], &mut flat);
    assert!(found.x[0].abs() < 1e-3, "{found:?}");
}

#[test]
fn steps_back_from_nan() {
    let mut wall = |x: &[f64], gradient: &mut [f64]| {
        gradient[0] = 1.0 - 1e-3 / x[0];
        x[0] - 1e-3 * x[0].ln()
    };
    let found = minimise(&Lbfgs::default(), vec![0.5], &mut wall);
    assert!((found.x[0] - 1e-3).abs() < 1e-6, "{found:?}");
}
