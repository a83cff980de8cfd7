//! Smooth convex functions to their minima, many at a time: limited-memory BFGS with a strong-Wolfe line search (Nocedal
//! and Wright, Numerical Optimization, algorithms 7.4, 7.5, 3.5 and 3.6; constants of spec 8.4).
//!
//! The functions advance in lock step: each round evaluates all of them once, as rows of one tensor `[P, d]` in `f64`, on
//! any device. What a line search decides by (a value and a slope for each function) is copied to the host once a round.
//!
//! Own code because the line search must end well where rounding hides further descent (the usual crate's More-Thuente
//! search stops with an error there, argmin-rs/argmin issue 400), and because no crate minimises many functions together.

use std::collections::VecDeque;

use serde::Serialize;
use tch::{Kind, Tensor};

/// When to stop and how to search; the defaults are spec 8.4's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lbfgs {
    /// Pairs (step, gradient change) remembered.
    pub history: usize,
    /// Largest number of iterations.
    pub max_iterations: usize,
    /// Done where the largest absolute gradient component is below this.
    pub tolerance: f64,
}

impl Default for Lbfgs {
    fn default() -> Self {
        Self { history: 10, max_iterations: 1000, tolerance: 1e-5 }
    }
}

/// Why the search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The gradient is below the tolerance.
    Converged,
    /// `max_iterations` are done.
    Iterations,
    /// No step along the steepest descent lowers the function: as low as `f64` rounding lets it be seen.
    Precision,
}

/// Where the search ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// The largest absolute gradient component there.
    pub gradient: f64,
    /// Iterations done.
    pub iterations: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Functions that are minimised together; row p of every tensor belongs to function p.
pub trait Functions {
    /// Values `[P]` and gradients `[P, d]` at `points` `[P, d]`.
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor);

    /// An approximation of each inverse Hessian, applied to `vectors` `[P, d]`; fixed, symmetric, positive definite. None:
    /// the identity.
    fn inverse(&self, _vectors: &Tensor) -> Option<Tensor> {
        None
    }

    /// Some functions have `ended`. May drop rows: returns the rows that stay, in their new order, all those that have not
    /// ended among them.
    fn shrink(&mut self, _ended: &[bool]) -> Option<Vec<i64>> {
        None
    }
}

/// Sufficient decrease (Armijo) and curvature constants of the strong Wolfe conditions (spec 8.4).
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// Function evaluations of one line search.
const MAX_TRIALS: usize = 30;

impl Lbfgs {
    /// Minimises one function from `start`. `function(x, gradient)` writes the gradient and returns the value.
    pub fn minimise(&self, start: Vec<f64>, function: &mut dyn FnMut(&[f64], &mut [f64]) -> f64) -> Minimum {
        let start = Tensor::from_slice(&start).unsqueeze(0);
        self.minimise_all(start, &mut One(function)).remove(0)
    }

    /// Minimises all of `functions` from the rows of `start` `[P, d]`.
    pub fn minimise_all(&self, start: Tensor, functions: &mut dyn Functions) -> Vec<Minimum> {
        let _guard = tch::no_grad_guard();
        let mut descent = Descent::new(self, start, functions);
        while descent.rows.iter().any(|row| !row.ended) {
            descent.round(functions);
        }
        let minima = descent.minima.into_iter();
        minima.map(|minimum| minimum.expect("every function has ended")).collect()
    }
}

/// A function of a slice as a batch of one.
struct One<'a>(&'a mut dyn FnMut(&[f64], &mut [f64]) -> f64);

impl Functions for One<'_> {
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor) {
        let x = numbers(points);
        let mut gradient = vec![0.0; x.len()];
        let value = (self.0)(&x, &mut gradient);
        (Tensor::from_slice(&[value]), Tensor::from_slice(&gradient).unsqueeze(0))
    }
}

/// What is known of one function on the host.
#[derive(Clone)]
struct Row {
    /// Position in the list that was asked for.
    id: usize,
    value: f64,
    /// Largest absolute component and length of the gradient.
    gradient: f64,
    length: f64,
    iterations: usize,
    /// Steps taken since the memory was last emptied.
    remembered: usize,
    line: Line,
    ended: bool,
}

/// One remembered step s, gradient change y, 1 / (s . y) (0 in the rows that have no such pair), and H y for the initial H.
struct Pair {
    step: Tensor,
    change: Tensor,
    rho: Tensor,
    applied: Tensor,
}

/// All searches, in lock step.
struct Descent<'a> {
    options: &'a Lbfgs,
    rows: Vec<Row>,
    minima: Vec<Option<Minimum>>,
    points: Tensor,
    gradients: Tensor,
    /// H g for the initial H. H is linear, so that with it and the pairs' H y one product with H for each iteration is enough.
    applied: Tensor,
    directions: Tensor,
    /// Slopes along the directions `[P]`.
    slopes: Tensor,
    pairs: VecDeque<Pair>,
    /// Of the initial H, to fit the newest pair `[P, 1]` (equation 7.20).
    scale: Tensor,
    preconditioned: bool,
}

impl<'a> Descent<'a> {
    fn new(options: &'a Lbfgs, points: Tensor, functions: &mut dyn Functions) -> Self {
        let (values, gradients) = functions.evaluate(&points);
        let inverse = functions.inverse(&gradients);
        let preconditioned = inverse.is_some();
        let applied = inverse.unwrap_or_else(|| gradients.shallow_clone());
        let directions = applied.neg();
        let slopes = dot(&directions, &gradients);
        let known = columns(&[&values, &largest(&gradients), &lengths(&gradients)]);
        let row = |(id, known): (usize, &[f64])| Row {
            id,
            value: known[0],
            gradient: known[1],
            length: known[2],
            iterations: 0,
            remembered: 0,
            line: Line::new(1.0),
            ended: false,
        };
        let rows: Vec<Row> = known.chunks(3).enumerate().map(row).collect();
        let minima = rows.iter().map(|_| None).collect();
        let scale = slopes.ones_like().unsqueeze(1);
        let pairs = VecDeque::new();
        let mut descent = Self {
            options,
            rows,
            minima,
            points,
            gradients,
            applied,
            directions,
            slopes,
            pairs,
            scale,
            preconditioned,
        };
        for at in 0..descent.rows.len() {
            descent.begin(at);
        }
        descent.shrink(functions);
        descent
    }

    /// Ends the search of row `at` where it is done, else prepares its next line search.
    fn begin(&mut self, at: usize) {
        let row = &mut self.rows[at];
        let stop = if row.gradient < self.options.tolerance {
            Stop::Converged
        } else if row.iterations >= self.options.max_iterations {
            Stop::Iterations
        } else {
            // Without any notion of curvature a unit step has no meaning: a first move of length at most 1.
            let blind = row.remembered == 0 && !self.preconditioned;
            row.line = Line::new(if blind { (1.0 / row.length).min(1.0) } else { 1.0 });
            return;
        };
        self.end(at, stop);
    }

    fn end(&mut self, at: usize, stop: Stop) {
        let x = numbers(&self.points.get(at as i64));
        let Row { id, value, gradient, iterations, .. } = self.rows[at];
        self.minima[id] = Some(Minimum { x, value, gradient, iterations, stop });
        self.rows[at].ended = true;
    }

    /// Evaluates every function once, at its search's next trial.
    fn round(&mut self, functions: &mut dyn Functions) {
        let steps: Vec<f64> =
            self.rows.iter().map(|row| if row.ended { 0.0 } else { row.line.step }).collect();
        let steps = self.column(&steps);
        let trials = &self.points + &steps * &self.directions;
        let (values, gradients) = functions.evaluate(&trials);
        let along = dot(&self.directions, &gradients);
        let known = [&values, &along, &largest(&gradients), &lengths(&gradients), &self.slopes];
        let known = columns(&known);
        let (mut taken, mut failed) = (vec![false; self.rows.len()], Vec::new());
        for (at, (row, known)) in self.rows.iter_mut().zip(known.chunks(5)).enumerate() {
            if row.ended {
                continue;
            }
            match row.line.next((row.value, known[4]), (known[0], known[1])) {
                Verdict::Try(step) => row.line.step = step,
                Verdict::Take => {
                    (row.value, row.gradient, row.length) = (known[0], known[2], known[3]);
                    (row.iterations, row.remembered) = (row.iterations + 1, row.remembered + 1);
                    taken[at] = true;
                }
                Verdict::Fail => failed.push(at),
            }
        }
        if taken.contains(&true) {
            self.take(&taken, &steps, (trials, gradients), functions);
        }
        if !failed.is_empty() {
            self.retry(&failed);
        }
        let begun = taken.iter().enumerate().filter(|(_, taken)| **taken).map(|(at, _)| at);
        begun.collect::<Vec<_>>().into_iter().for_each(|at| self.begin(at));
        self.shrink(functions);
    }

    /// Moves the `taken` rows to their trials, and gives them new directions.
    fn take(
        &mut self,
        taken: &[bool],
        steps: &Tensor,
        (trials, gradients): (Tensor, Tensor),
        functions: &dyn Functions,
    ) {
        let taken = Tensor::from_slice(taken).to_device(self.points.device()).unsqueeze(1);
        let applied = functions.inverse(&gradients).unwrap_or_else(|| gradients.shallow_clone());
        let step = steps * &self.directions;
        let (change, bent) = (&gradients - &self.gradients, &applied - &self.applied);
        let (curvature, fit) = (dot(&step, &change).unsqueeze(1), dot(&change, &bent).unsqueeze(1));
        // A pair without positive curvature would cost H its positive definiteness.
        let least = dot(&change, &change).unsqueeze(1) * f64::EPSILON;
        let useful = curvature.gt_tensor(&least).logical_and(&fit.gt(0.0)).logical_and(&taken);
        let rho = curvature.reciprocal().where_self(&useful, &curvature.zeros_like());
        self.scale = (curvature / fit).where_self(&useful, &self.scale);
        let empty = |of: Tensor| of.where_self(&useful, &self.points.zeros_like());
        if self.pairs.len() == self.options.history {
            self.pairs.pop_front();
        }
        let pair = Pair { step: empty(step), change: empty(change), rho, applied: empty(bent) };
        self.pairs.push_back(pair);
        self.points = trials.where_self(&taken, &self.points);
        self.gradients = gradients.where_self(&taken, &self.gradients);
        self.applied = applied.where_self(&taken, &self.applied);
        self.directions = self.quasi_newton().where_self(&taken, &self.directions);
        self.slopes = dot(&self.directions, &self.gradients);
    }

    /// `-H g` by the two-loop recursion (algorithm 7.4).
    fn quasi_newton(&self) -> Tensor {
        let mut q = self.gradients.neg();
        let mut directions = self.applied.neg();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let alpha = &pair.rho * dot(&pair.step, &q).unsqueeze(1);
            q -= &alpha * &pair.change;
            directions -= &alpha * &pair.applied;
            alphas.push(alpha);
        }
        directions *= &self.scale;
        for (pair, alpha) in self.pairs.iter().zip(alphas.into_iter().rev()) {
            let beta = &pair.rho * dot(&pair.change, &directions).unsqueeze(1);
            directions += (alpha - beta) * &pair.step;
        }
        directions
    }

    /// Rows whose line search found nothing lower. A stale memory may spoil the direction: once more without it, then the
    /// search ends.
    fn retry(&mut self, failed: &[usize]) {
        let mut again = vec![0.0; self.rows.len()];
        for &at in failed {
            if self.rows[at].remembered == 0 {
                self.end(at, Stop::Precision);
                continue;
            }
            self.rows[at].remembered = 0;
            again[at] = 1.0;
            self.begin(at);
        }
        let again = self.column(&again).gt(0.5);
        for pair in &mut self.pairs {
            pair.rho = pair.rho.where_self(&again.logical_not(), &pair.rho.zeros_like());
        }
        self.scale = self.scale.ones_like().where_self(&again, &self.scale);
        self.directions = self.applied.neg().where_self(&again, &self.directions);
        self.slopes = dot(&self.directions, &self.gradients);
    }

    /// Drops rows that the functions no longer evaluate.
    fn shrink(&mut self, functions: &mut dyn Functions) {
        let ended: Vec<bool> = self.rows.iter().map(|row| row.ended).collect();
        if ended.iter().all(|ended| *ended) || !ended.contains(&true) {
            return;
        }
        let Some(stay) = functions.shrink(&ended) else { return };
        self.rows = stay.iter().map(|&at| self.rows[at as usize].clone()).collect();
        let stay = Tensor::from_slice(&stay).to_device(self.points.device());
        let select = |of: &mut Tensor| *of = of.index_select(0, &stay);
        let own = [&mut self.points, &mut self.gradients, &mut self.applied, &mut self.directions];
        own.into_iter().chain([&mut self.slopes, &mut self.scale]).for_each(select);
        for pair in &mut self.pairs {
            [&mut pair.step, &mut pair.change, &mut pair.rho, &mut pair.applied].into_iter().for_each(select);
        }
    }

    /// A number for each row, `[P, 1]`.
    fn column(&self, numbers: &[f64]) -> Tensor {
        Tensor::from_slice(numbers).to_device(self.points.device()).unsqueeze(1)
    }
}

/// Row by row, `[P]`.
fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist([1].as_slice(), false, Kind::Double)
}

fn lengths(rows: &Tensor) -> Tensor {
    dot(rows, rows).sqrt()
}

fn largest(rows: &Tensor) -> Tensor {
    rows.abs().amax([1].as_slice(), false)
}

/// `[P]` each, to the host in one copy: the numbers of the first row, then those of the second.
fn columns(of: &[&Tensor]) -> Vec<f64> {
    numbers(&Tensor::stack(of, 1))
}

fn numbers(of: &Tensor) -> Vec<f64> {
    let flat = of.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous().view([-1]);
    Vec::try_from(flat).expect("a vector of f64")
}

/// The line search of one function.
#[derive(Clone)]
struct Line {
    /// Length of the next trial.
    step: f64,
    /// Trials made.
    trials: usize,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Doubles the step until it brackets a minimum (algorithm 3.5); the last trial.
    Widen(Trial),
    /// Narrows the bracket between the lowest trial so far and another (algorithm 3.6).
    Zoom(Trial, Trial),
    /// Takes the next trial, whatever it is.
    Settle,
}

/// Length, value, slope along the direction.
#[derive(Clone, Copy)]
struct Trial {
    step: f64,
    value: f64,
    slope: f64,
}

enum Verdict {
    Try(f64),
    /// The trial is the next point.
    Take,
    /// No lower point was found.
    Fail,
}

impl Line {
    fn new(step: f64) -> Self {
        Self { step, trials: 0, phase: Phase::Widen(Trial { step: 0.0, value: f64::NAN, slope: f64::NAN }) }
    }

    /// What to do after the trial at `step`, from value and slope at the start and at the trial: a point that meets the strong
    /// Wolfe conditions is taken, or at last the lowest one seen below the start.
    fn next(&mut self, (start, slope): (f64, f64), (value, along): (f64, f64)) -> Verdict {
        if slope >= 0.0 || !slope.is_finite() {
            return Verdict::Fail;
        }
        let trial = Trial { step: self.step, value, slope: along };
        self.trials += 1;
        // A value that is not finite does not decrease.
        let decreases = trial.value <= start + C1 * trial.step * slope;
        let flat = trial.slope.abs() <= -C2 * slope;
        match self.phase {
            Phase::Settle => Verdict::Take,
            Phase::Widen(low) => {
                let low = if self.trials == 1 { Trial { step: 0.0, value: start, slope } } else { low };
                if !decreases || (self.trials > 1 && trial.value >= low.value) {
                    return self.narrow(start, low, trial);
                }
                if flat || (trial.slope < 0.0 && self.trials == MAX_TRIALS) {
                    return Verdict::Take;
                }
                if trial.slope >= 0.0 {
                    return self.narrow(start, trial, low);
                }
                self.phase = Phase::Widen(trial);
                Verdict::Try(2.0 * trial.step)
            }
            Phase::Zoom(low, _) if !decreases || trial.value >= low.value => self.narrow(start, low, trial),
            Phase::Zoom(..) if flat => Verdict::Take,
            Phase::Zoom(low, high) => {
                let turned = trial.slope * (high.step - low.step) >= 0.0;
                self.narrow(start, trial, if turned { low } else { high })
            }
        }
    }

    /// Goes on between `low` and `high`, or ends at `low`.
    fn narrow(&mut self, start: f64, low: Trial, high: Trial) -> Verdict {
        let closed = matches!(self.phase, Phase::Zoom(..))
            && (high.step - low.step).abs() <= f64::EPSILON * low.step.max(high.step);
        if self.trials < MAX_TRIALS && !closed {
            self.phase = Phase::Zoom(low, high);
            return Verdict::Try(interpolate(low, high));
        }
        if !(low.step > 0.0 && low.value < start) {
            return Verdict::Fail;
        }
        if low.step == self.step {
            return Verdict::Take;
        }
        self.phase = Phase::Settle;
        Verdict::Try(low.step)
    }
}

/// Minimum of the cubic through both values and slopes, kept away from the bracket's ends; the middle where the cubic
/// has none.
fn interpolate(a: Trial, b: Trial) -> f64 {
    let width = b.step - a.step;
    let d1 = a.slope + b.slope - 3.0 * (a.value - b.value) / (a.step - b.step);
    let d2 = (d1 * d1 - a.slope * b.slope).sqrt().copysign(width);
    let cubic = b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2.0 * d2);
    let share = (cubic - a.step) / width;
    if share.is_finite() { a.step + share.clamp(0.1, 0.9) * width } else { a.step + 0.5 * width }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rosenbrock(x: &[f64], gradient: &mut [f64]) -> f64 {
        let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
        gradient[0] = -2.0 * a - 400.0 * x[0] * b;
        gradient[1] = 200.0 * b;
        a * a + 100.0 * b * b
    }

    #[test]
    fn finds_the_minimum_of_a_curved_valley() {
        let found = Lbfgs { tolerance: 1e-9, ..Lbfgs::default() }.minimise(vec![-1.2, 1.0], &mut rosenbrock);
        assert_eq!(found.stop, Stop::Converged);
        assert!((found.x[0] - 1.0).abs() < 1e-8 && (found.x[1] - 1.0).abs() < 1e-8, "{found:?}");
        assert!(found.iterations < 60, "{found:?}");
    }

    #[test]
    fn a_quadratic_of_condition_1e4_takes_no_more_steps_than_scipy() {
        let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(4.0 * f64::from(i) / 49.0)).collect();
        let mut quadratic = |x: &[f64], gradient: &mut [f64]| {
            for i in 0..50 {
                gradient[i] = scales[i] * (x[i] - 1.0);
            }
            x.iter().zip(&scales).map(|(x, s)| 0.5 * s * (x - 1.0) * (x - 1.0)).sum()
        };
        let found = Lbfgs::default().minimise(vec![0.0; 50], &mut quadratic);
        assert_eq!(found.stop, Stop::Converged, "{} {}", found.iterations, found.gradient);
        assert!(found.x.iter().all(|x| (x - 1.0).abs() < 1e-4));
        // scipy 1.x, L-BFGS-B with ten pairs: 663 iterations to the same tolerance.
        assert!(found.iterations < 800, "{}", found.iterations);
    }

    /// f_p(x) = sum scales (x - centre_p)^2 / 2, with their Hessian known but for a factor of 3.
    struct Quadratics {
        scales: Tensor,
        centres: Tensor,
        known: bool,
        rounds: usize,
    }

    impl Quadratics {
        fn new(centres: &[f64], known: bool) -> Self {
            let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(6.0 * f64::from(i) / 49.0)).collect();
            let centres = Tensor::from_slice(centres).unsqueeze(1);
            Self { scales: Tensor::from_slice(&scales), centres, known, rounds: 0 }
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
            self.known.then(|| vectors / &self.scales / 3.0)
        }

        fn shrink(&mut self, ended: &[bool]) -> Option<Vec<i64>> {
            // In another order than before.
            let stay: Vec<i64> = (0..ended.len() as i64).rev().filter(|&at| !ended[at as usize]).collect();
            self.centres = self.centres.index_select(0, &Tensor::from_slice(&stay));
            Some(stay)
        }
    }

    #[test]
    fn the_true_inverse_hessian_ends_a_quadratic_at_once() {
        let mut quadratic = Quadratics::new(&[1.0], true);
        let found = Lbfgs::default().minimise_all(quadratic.start(), &mut quadratic).remove(0);
        assert_eq!(found.stop, Stop::Converged);
        assert!(found.iterations <= 3, "{}", found.iterations);
    }

    #[test]
    fn many_functions_find_their_own_minima_in_fewer_rounds_than_one_after_the_other() {
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
    fn ends_quietly_where_rounding_hides_the_descent() {
        // The constant swallows every decrease below 1e-10: a gradient of 1e-14 cannot be reached.
        let mut flat = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = x[0].tanh();
            1e6 + x[0].cosh().ln()
        };
        let found = Lbfgs { tolerance: 1e-300, ..Lbfgs::default() }.minimise(vec![3.0], &mut flat);
        assert!(found.x[0].abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn not_a_number_beyond_a_wall_is_stepped_back_from() {
        let mut wall = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 1.0 - 1e-3 / x[0];
            x[0] - 1e-3 * x[0].ln()
        };
        let found = Lbfgs::default().minimise(vec![0.5], &mut wall);
        assert!((found.x[0] - 1e-3).abs() < 1e-6, "{found:?}");
    }
}
