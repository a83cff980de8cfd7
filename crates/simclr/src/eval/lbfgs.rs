//! A smooth convex function of `x` (`[d]`, `f64`) to its minimum: limited-memory BFGS with a strong-Wolfe line search
//! (Nocedal and Wright, Numerical Optimization, algorithms 7.4, 7.5, 3.5 and 3.6; constants of spec 8.4).
//!
//! Own code because the line search must end well where rounding hides further descent: the usual crate's
//! More-Thuente search stops with an error there (argmin-rs/argmin issue 400).

use std::collections::VecDeque;

use serde::Serialize;

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

/// Sufficient decrease (Armijo) and curvature constants of the strong Wolfe conditions (spec 8.4).
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// Function evaluations of one line search.
const MAX_TRIALS: usize = 30;

/// A function: writes its gradient at `x` and returns its value.
type Function<'a> = dyn FnMut(&[f64], &mut [f64]) -> f64 + 'a;
/// An approximation of the inverse Hessian, applied to a vector; fixed, symmetric, positive definite.
pub type Inverse<'a> = dyn Fn(&[f64]) -> Vec<f64> + 'a;

/// A point with its value and gradient.
#[derive(Clone)]
struct Point {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Lbfgs {
    /// Minimises `function` from `start`. `function(x, gradient)` writes the gradient and returns the value.
    pub fn minimise(&self, start: Vec<f64>, function: &mut Function<'_>) -> Minimum {
        self.minimise_with(start, function, None)
    }

    /// The same, with the approximate inverse Hessian that the memory starts from in place of the identity.
    pub fn minimise_with(
        &self,
        start: Vec<f64>,
        function: &mut Function<'_>,
        inverse: Option<&Inverse<'_>>,
    ) -> Minimum {
        let mut here = evaluate(start, function);
        let mut memory = Memory { pairs: VecDeque::new(), limit: self.history, inverse, applied: Vec::new() };
        memory.applied = memory.apply(here.gradient.clone());
        for iteration in 0..self.max_iterations {
            if max_abs(&here.gradient) < self.tolerance {
                return here.ended(iteration, Stop::Converged);
            }
            let next = memory.search(&here, function).or_else(|| {
                // A stale memory may spoil the direction: once more along the gradient, then give up.
                memory.pairs.clear();
                memory.search(&here, function)
            });
            let Some(next) = next else { return here.ended(iteration, Stop::Precision) };
            memory.remember(&here, &next);
            here = next;
        }
        let stop = if max_abs(&here.gradient) < self.tolerance { Stop::Converged } else { Stop::Iterations };
        here.ended(self.max_iterations, stop)
    }
}

impl Point {
    fn ended(self, iterations: usize, stop: Stop) -> Minimum {
        Minimum { gradient: max_abs(&self.gradient), x: self.x, value: self.value, iterations, stop }
    }
}

/// One remembered step s, gradient change y, 1 / (s . y).
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    rho: f64,
    /// H y for the initial H.
    applied: Vec<f64>,
}

struct Memory<'a> {
    pairs: VecDeque<Pair>,
    limit: usize,
    inverse: Option<&'a Inverse<'a>>,
    /// H g for the initial H and the newest gradient. H is linear, so that with it and the pairs' H y one product with H
    /// for each iteration is enough.
    applied: Vec<f64>,
}

impl Memory<'_> {
    /// The next point along the quasi-Newton direction, or none where the line search finds no lower one.
    fn search(&self, here: &Point, function: &mut Function<'_>) -> Option<Point> {
        let direction = self.direction(&here.gradient);
        // Without any notion of curvature a unit step has no meaning: a first move of length at most 1.
        let blind = self.pairs.is_empty() && self.inverse.is_none();
        let first = if blind { (1.0 / dot(&direction, &direction).sqrt()).min(1.0) } else { 1.0 };
        Line { here, direction: &direction, function }.wolfe(first)
    }

    /// `-H g` by the two-loop recursion (algorithm 7.4), the initial H scaled to fit the newest pair (equation 7.20).
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut direction: Vec<f64> = self.applied.iter().map(|hg| -hg).collect();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let alpha = pair.rho * dot(&pair.step, &q);
            add_scaled(&mut q, -alpha, &pair.change);
            add_scaled(&mut direction, -alpha, &pair.applied);
            alphas.push(alpha);
        }
        if let Some(newest) = self.pairs.back() {
            let scale = 1.0 / (newest.rho * dot(&newest.change, &newest.applied));
            direction.iter_mut().for_each(|d| *d *= scale);
        }
        for (pair, alpha) in self.pairs.iter().zip(alphas.into_iter().rev()) {
            let beta = pair.rho * dot(&pair.change, &direction);
            add_scaled(&mut direction, alpha - beta, &pair.step);
        }
        direction
    }

    /// The initial H times a vector, before scaling.
    fn apply(&self, vector: Vec<f64>) -> Vec<f64> {
        match self.inverse {
            Some(inverse) => inverse(&vector),
            None => vector,
        }
    }

    /// Keeps the pair where it has positive curvature (else H would lose positive definiteness).
    fn remember(&mut self, from: &Point, to: &Point) {
        let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        let step = difference(&to.x, &from.x);
        let change = difference(&to.gradient, &from.gradient);
        let after = self.apply(to.gradient.clone());
        let applied = difference(&after, &self.applied);
        self.applied = after;
        let curvature = dot(&step, &change);
        if curvature > f64::EPSILON * dot(&change, &change) && dot(&change, &applied) > 0.0 {
            if self.pairs.len() == self.limit {
                self.pairs.pop_front();
            }
            self.pairs.push_back(Pair { step, change, rho: 1.0 / curvature, applied });
        }
    }
}

/// The function along one direction from one point.
struct Line<'a, 'f> {
    here: &'a Point,
    direction: &'a [f64],
    function: &'a mut Function<'f>,
}

/// A trial step: length, point, slope along the direction.
struct Trial {
    step: f64,
    slope: f64,
    point: Point,
}

impl Line<'_, '_> {
    /// A point that meets the strong Wolfe conditions (algorithm 3.5), or the lowest one seen below the start.
    fn wolfe(mut self, first: f64) -> Option<Point> {
        let slope = dot(self.direction, &self.here.gradient);
        if slope >= 0.0 || !slope.is_finite() {
            return None;
        }
        let start = Trial { step: 0.0, slope, point: self.here.clone() };
        let mut low = start;
        let mut step = first;
        for trials in 0..MAX_TRIALS {
            let trial = self.at(step);
            if !self.decreases(&trial, slope) || (trials > 0 && trial.point.value >= low.point.value) {
                return self.zoom(low, trial, slope, MAX_TRIALS - trials);
            }
            if trial.slope.abs() <= -C2 * slope {
                return Some(trial.point);
            }
            if trial.slope >= 0.0 {
                return self.zoom(trial, low, slope, MAX_TRIALS - trials);
            }
            low = trial;
            step *= 2.0;
        }
        Some(low.point)
    }

    /// Narrows the bracket between `low` (lowest so far) and `high` (algorithm 3.6).
    fn zoom(&mut self, mut low: Trial, mut high: Trial, slope: f64, trials: usize) -> Option<Point> {
        for _ in 0..trials {
            let trial = self.at(interpolate(&low, &high));
            if !self.decreases(&trial, slope) || trial.point.value >= low.point.value {
                high = trial;
            } else if trial.slope.abs() <= -C2 * slope {
                return Some(trial.point);
            } else {
                if trial.slope * (high.step - low.step) >= 0.0 {
                    high = std::mem::replace(&mut low, trial);
                } else {
                    low = trial;
                }
            }
            if (high.step - low.step).abs() <= f64::EPSILON * low.step.max(high.step) {
                break;
            }
        }
        (low.step > 0.0 && low.point.value < self.here.value).then_some(low.point)
    }

    /// Sufficient decrease; a value that is not a number has none.
    fn decreases(&self, trial: &Trial, slope: f64) -> bool {
        trial.point.value <= self.here.value + C1 * trial.step * slope
    }

    fn at(&mut self, step: f64) -> Trial {
        let mut x = self.here.x.clone();
        add_scaled(&mut x, step, self.direction);
        let point = evaluate(x, self.function);
        Trial { step, slope: dot(self.direction, &point.gradient), point }
    }
}

/// Minimum of the cubic through both values and slopes, kept away from the bracket's ends; the middle where the cubic
/// has none.
fn interpolate(a: &Trial, b: &Trial) -> f64 {
    let width = b.step - a.step;
    let d1 = a.slope + b.slope - 3.0 * (a.point.value - b.point.value) / (a.step - b.step);
    let d2 = (d1 * d1 - a.slope * b.slope).sqrt().copysign(width);
    let cubic = b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2.0 * d2);
    let share = (cubic - a.step) / width;
    if share.is_finite() { a.step + share.clamp(0.1, 0.9) * width } else { a.step + 0.5 * width }
}

fn evaluate(x: Vec<f64>, function: &mut Function<'_>) -> Point {
    let mut gradient = vec![0.0; x.len()];
    let value = function(&x, &mut gradient);
    Point { x, value, gradient }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(x: &mut [f64], scale: f64, direction: &[f64]) {
    x.iter_mut().zip(direction).for_each(|(x, d)| *x += scale * d);
}

fn max_abs(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |max, x| x.abs().max(max))
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

    #[test]
    fn the_true_inverse_hessian_ends_a_quadratic_at_once() {
        let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(6.0 * f64::from(i) / 49.0)).collect();
        let mut quadratic = |x: &[f64], gradient: &mut [f64]| {
            for i in 0..50 {
                gradient[i] = scales[i] * (x[i] - 1.0);
            }
            x.iter().zip(&scales).map(|(x, s)| 0.5 * s * (x - 1.0) * (x - 1.0)).sum()
        };
        // Off by a factor of 3, which the newest pair mends.
        let inverse = |v: &[f64]| v.iter().zip(&scales).map(|(v, s)| v / s / 3.0).collect();
        let found = Lbfgs::default().minimise_with(vec![0.0; 50], &mut quadratic, Some(&inverse));
        assert_eq!(found.stop, Stop::Converged);
        assert!(found.iterations <= 3, "{}", found.iterations);
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
