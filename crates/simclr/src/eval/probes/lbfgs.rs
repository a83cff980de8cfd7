//! Minimisation of many smooth convex functions at a time: limited-memory BFGS with a strong-Wolfe line search (Nocedal and
//! Wright, Numerical Optimization, algorithms 7.4 and 7.5).
//!
//! Each round evaluates all functions once, as rows of one tensor `[P, d]` in `f64`, on any device; the values and slopes that
//! the line searches need are copied to the host once a round.
//!
//! Own code because the line search must end without an error when rounding hides further descent (unlike the More-Thuente
//! search of argmin, argmin-rs/argmin issue 400), and because no crate minimises many functions together.

use std::collections::VecDeque;

use tch::{Kind, Tensor};

use super::line_search::{Action, LineSearch};
use crate::eval::options::Lbfgs;

/// Reason why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The gradient is below the tolerance.
    Converged,
    /// `max_iterations` was reached.
    Iterations,
    /// No step along the steepest descent lowers the function: the limit of `f64` rounding.
    Precision,
}

impl Stop {
    /// Human-readable.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Converged => "converged",
            Self::Iterations => "iteration limit",
            Self::Precision => "precision limit",
        }
    }
}

/// End of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function value.
    pub value: f64,
    /// The largest absolute gradient component.
    pub gradient: f64,
    /// Number of iterations.
    pub iterations: usize,
    /// Reason of the end.
    pub stop: Stop,
}

/// Functions minimised together; row p of every tensor belongs to function p.
pub trait Functions {
    /// Values `[P]` and gradients `[P, d]` at `points` `[P, d]`.
    fn evaluate(&mut self, points: &Tensor) -> (Tensor, Tensor);

    /// Preconditioner: an approximation of each inverse Hessian, applied to `vectors` `[P, d]`; fixed, symmetric, positive
    /// definite. None: the identity.
    fn inverse(&self, _vectors: &Tensor) -> Option<Tensor> {
        None
    }

    /// May drop rows of functions that have `ended`: returns the remaining rows in their new order, which include all that
    /// have not ended.
    fn shrink(&mut self, _ended: &[bool]) -> Option<Vec<i64>> {
        None
    }
}

impl Lbfgs {
    /// Minimises all of `functions` from the rows of `start` `[P, d]`.
    pub fn minimise_all(&self, start: Tensor, functions: &mut dyn Functions) -> Vec<Minimum> {
        let _guard = tch::no_grad_guard();
        let mut descent = Descent::new(self, start, functions);
        while descent.rows.iter().any(|row| !row.ended) {
            descent.round(functions);
        }
        let minima = descent.minima.into_iter();
        minima.map(|minimum| minimum.expect("the loop runs until every function has ended")).collect()
    }
}

/// Host-side state of one function.
#[derive(Clone)]
struct Row {
    /// Index of the function.
    id: usize,
    value: f64,
    /// Largest absolute component and length of the gradient.
    gradient: f64,
    length: f64,
    iterations: usize,
    /// Pairs stored since the history was last cleared.
    stored: usize,
    line: LineSearch,
    ended: bool,
}

/// Step s, gradient change y, 1 / (s . y) (0 in rows without such a pair), and H y for the initial H.
struct Pair {
    step: Tensor,
    change: Tensor,
    rho: Tensor,
    applied: Tensor,
}

/// All searches.
struct Descent<'a> {
    options: &'a Lbfgs,
    rows: Vec<Row>,
    minima: Vec<Option<Minimum>>,
    points: Tensor,
    gradients: Tensor,
    /// H g for the initial H. By linearity, this and H y of the pairs need one product with H per iteration.
    applied: Tensor,
    directions: Tensor,
    /// Slopes along the directions `[P]`.
    slopes: Tensor,
    pairs: VecDeque<Pair>,
    /// Scale of the initial H `[P, 1]`, which fits the newest pair (equation 7.20).
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
        let host = columns(&[&values, &largest(&gradients), &lengths(&gradients)]);
        let row = |(id, host): (usize, &[f64])| Row {
            id,
            value: host[0],
            gradient: host[1],
            length: host[2],
            iterations: 0,
            stored: 0,
            line: LineSearch::new(1.0),
            ended: false,
        };
        let rows: Vec<Row> = host.chunks(3).enumerate().map(row).collect();
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

    /// Starts the next line search of row `at`, or ends its search.
    fn begin(&mut self, at: usize) {
        let row = &mut self.rows[at];
        let stop = if row.gradient < self.options.tolerance {
            Stop::Converged
        } else if row.iterations >= self.options.max_iterations {
            Stop::Iterations
        } else {
            // Without curvature information a unit step has no meaning: the first step has at most length 1.
            let blind = row.stored == 0 && !self.preconditioned;
            row.line = LineSearch::new(if blind { (1.0 / row.length).min(1.0) } else { 1.0 });
            return;
        };
        self.end(at, stop);
    }

    fn end(&mut self, at: usize, stop: Stop) {
        let x = to_host(&self.points.get(at as i64));
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
        let host = columns(&[&values, &along, &largest(&gradients), &lengths(&gradients), &self.slopes]);
        let (mut accepted, mut failed) = (vec![false; self.rows.len()], Vec::new());
        for (at, (row, host)) in self.rows.iter_mut().zip(host.chunks(5)).enumerate() {
            if row.ended {
                continue;
            }
            match row.line.next((row.value, host[4]), (host[0], host[1])) {
                Action::Try(step) => row.line.step = step,
                Action::Accept => {
                    (row.value, row.gradient, row.length) = (host[0], host[2], host[3]);
                    (row.iterations, row.stored) = (row.iterations + 1, row.stored + 1);
                    accepted[at] = true;
                }
                Action::Fail => failed.push(at),
            }
        }
        if accepted.contains(&true) {
            self.accept(&accepted, &steps, (trials, gradients), functions);
        }
        if !failed.is_empty() {
            self.retry(&failed);
        }
        for at in (0..accepted.len()).filter(|&at| accepted[at]) {
            self.begin(at);
        }
        self.shrink(functions);
    }

    /// Moves the `accepted` rows to their trials and computes their next directions.
    fn accept(
        &mut self,
        accepted: &[bool],
        steps: &Tensor,
        (trials, gradients): (Tensor, Tensor),
        functions: &dyn Functions,
    ) {
        let accepted = Tensor::from_slice(accepted).to_device(self.points.device()).unsqueeze(1);
        let applied = functions.inverse(&gradients).unwrap_or_else(|| gradients.shallow_clone());
        let step = steps * &self.directions;
        let (change, applied_change) = (&gradients - &self.gradients, &applied - &self.applied);
        let (curvature, fit) = (dot(&step, &change).unsqueeze(1), dot(&change, &applied_change).unsqueeze(1));
        // A pair without positive curvature would make H indefinite.
        let least = dot(&change, &change).unsqueeze(1) * f64::EPSILON;
        let useful = curvature.gt_tensor(&least).logical_and(&fit.gt(0.0)).logical_and(&accepted);
        let rho = curvature.reciprocal().where_self(&useful, &curvature.zeros_like());
        self.scale = (curvature / fit).where_self(&useful, &self.scale);
        let masked = |of: Tensor| of.where_self(&useful, &self.points.zeros_like());
        if self.pairs.len() == self.options.history {
            self.pairs.pop_front();
        }
        let pair = Pair { step: masked(step), change: masked(change), rho, applied: masked(applied_change) };
        self.pairs.push_back(pair);
        self.points = trials.where_self(&accepted, &self.points);
        self.gradients = gradients.where_self(&accepted, &self.gradients);
        self.applied = applied.where_self(&accepted, &self.applied);
        self.directions = self.quasi_newton().where_self(&accepted, &self.directions);
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

    /// Restarts failed line searches without history, as stale pairs may spoil the direction; ends those that had none.
    fn retry(&mut self, failed: &[usize]) {
        let mut again = vec![0.0; self.rows.len()];
        for &at in failed {
            if self.rows[at].stored == 0 {
                self.end(at, Stop::Precision);
                continue;
            }
            self.rows[at].stored = 0;
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

    /// Drops the rows that the functions dropped.
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

    /// `[P, 1]`.
    fn column(&self, values: &[f64]) -> Tensor {
        Tensor::from_slice(values).to_device(self.points.device()).unsqueeze(1)
    }
}

/// Scalar products of rows, `[P]`.
fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist([1].as_slice(), false, Kind::Double)
}

fn lengths(rows: &Tensor) -> Tensor {
    dot(rows, rows).sqrt()
}

fn largest(rows: &Tensor) -> Tensor {
    rows.abs().amax([1].as_slice(), false)
}

/// Several `[P]` to the host in one copy, row by row.
fn columns(of: &[&Tensor]) -> Vec<f64> {
    to_host(&Tensor::stack(of, 1))
}

fn to_host(of: &Tensor) -> Vec<f64> {
    let flat = of.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous().view([-1]);
    Vec::try_from(flat).expect("a vector of f64")
}

#[cfg(test)]
mod tests;
