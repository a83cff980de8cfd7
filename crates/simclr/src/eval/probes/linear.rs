//! Frozen features `[n, F]` and labels to a linear classifier: multinomial logistic regression on standardised features,
//! its regularisation chosen inside the training part (spec 8.1, 8.4, 15.0).
//!
//! Objective, for W `[F, K]` and b `[K]`:
//! `J(W, b) = (1/n) sum_i -log softmax(x_i W + b)[y_i] + (lambda/2) |W|^2`; b is not penalised. scikit-learn's
//! `LogisticRegression` minimises the same with `C = 1 / (n lambda)`. J is convex, so the solver does not matter.
//! With [`Penalty::Sum`], lambda/n takes the place of lambda, so that `C = 1 / lambda`.

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::eval::data::splits;
use crate::eval::probes::lbfgs::{Lbfgs, Minimum, Stop};
use crate::eval::probes::logistic::{self, Problems, Sample};

/// How the classifier is fitted and its regularisation chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinearOptions {
    /// Candidates for lambda, any order; see [`log_spaced`].
    pub lambdas: Vec<f64>,
    /// Candidates are tried from the largest down until this many in a row lie more than a standard error of the held-out
    /// accuracy below the best one (in every subset that is fitted together); None: all of them are.
    pub patience: Option<usize>,
    /// What lambda stands beside.
    pub penalty: Penalty,
    /// Whether each feature is divided by its standard deviation first; else the penalty sees features as they are.
    pub standardise: bool,
    /// Decides hold-outs and folds.
    pub seed: u64,
    /// Candidates are compared on at most this many images (class-balanced); the chosen one is refitted on all.
    pub tune_images: usize,
    /// Below this many labels, 5 folds instead of one hold-out of 20 %: a fifth of 600 labels is too few to choose by.
    pub folds_below: usize,
    /// Solver of the final fit.
    pub solver: Lbfgs,
    /// Solver while candidates are compared: their accuracies differ long before the last digits of the minimum.
    pub tuning_solver: Lbfgs,
}

/// What the penalty `lambda/2 |W|^2` is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// The mean of the cross entropies: the same lambda suits few and many images.
    Mean,
    /// Their sum, as in the transfer protocol (spec 8.4).
    Sum,
}

impl Penalty {
    /// lambda beside the mean over `rows` images.
    fn beside_mean(self, lambda: f64, rows: i64) -> f64 {
        match self {
            Self::Mean => lambda,
            Self::Sum => lambda / rows as f64,
        }
    }
}

/// Share of the training part that is held out to choose lambda.
const HOLD_OUT: f64 = 0.2;
/// Folds for small label sets.
const FOLDS: usize = 5;

impl Default for LinearOptions {
    fn default() -> Self {
        Self {
            // A decade apart: on standardised features the accuracy changes by tenths of a point per decade. With few labels
            // 1 is often best, and must not be the end.
            lambdas: log_spaced(1e-5, 100.0, 8),
            patience: Some(2),
            penalty: Penalty::Mean,
            standardise: true,
            seed: 0,
            tune_images: 10_000,
            folds_below: 1000,
            solver: Lbfgs::default(),
            tuning_solver: Lbfgs { tolerance: 1e-4, max_iterations: 200, ..Lbfgs::default() },
        }
    }
}

/// `count` values from `low` to `high`, evenly spaced in the logarithm (the transfer protocol: 45 from 1e-6 to 1e5,
/// spec 8.4).
pub fn log_spaced(low: f64, high: f64, count: usize) -> Vec<f64> {
    let step = (high / low).ln() / (count.max(2) - 1) as f64;
    (0..count).map(|i| low * (step * i as f64).exp()).collect()
}

/// What is taken from each feature, and what it is then multiplied by; from the training part only.
#[derive(Debug)]
pub struct Standard {
    mean: Tensor,
    scale: Tensor,
    /// What the penalty on W is multiplied by, so that it is the penalty on the weights of the features as they are.
    penalty: f64,
}

impl Standard {
    /// Mean 0 and standard deviation 1 in each of `features` `[n, F]`.
    pub fn of(features: &Tensor) -> Self {
        let (mean, deviation) = moments(features);
        // A dimension that never changes says nothing: its scale 0 keeps it at 0. Rounding may leave a trace of
        // variance where the mean is large.
        let constant = deviation.le_tensor(&(mean.abs() * 1e-9 + 1e-12));
        let scale = deviation.reciprocal().masked_fill(&constant, 0.0);
        Self { mean, scale, penalty: 1.0 }
    }

    /// Mean 0, and one scale for all features. As b is free and the penalty follows the scale, the classifier is that of
    /// the features as they are; only the solver sees numbers near 1.
    pub fn common(features: &Tensor) -> Self {
        let (mean, deviation) = moments(features);
        let size = deviation.square().mean(Kind::Double).sqrt().double_value(&[]);
        let scale = if size > 0.0 { 1.0 / size } else { 1.0 };
        Self {
            mean,
            scale: Tensor::from_slice(&[scale]).to_device(features.device()),
            penalty: scale * scale,
        }
    }

    /// Scaled `features`, in `f64`.
    pub fn apply(&self, features: &Tensor) -> Tensor {
        (features.to_kind(Kind::Double) - &self.mean) * &self.scale
    }
}

/// Mean and standard deviation of each feature `[1, F]`, `f64`, summed block by block: a copy of a large set in `f64`
/// would not fit everywhere.
fn moments(features: &Tensor) -> (Tensor, Tensor) {
    const ROWS: i64 = 4096;
    let rows = features.size()[0] as f64;
    let sum = |of: &dyn Fn(&Tensor) -> Tensor| {
        let blocks = features.split(ROWS, 0).into_iter();
        let sums =
            blocks.map(|x| of(&x.to_kind(Kind::Double)).sum_dim_intlist([0].as_slice(), true, Kind::Double));
        sums.reduce(|a, b| a + b)
            .unwrap_or_else(|| Tensor::zeros([1, features.size()[1]], (Kind::Double, features.device())))
    };
    let mean = sum(&|x| x.shallow_clone()) / rows;
    let variance = sum(&|x| (x - &mean).square()) / rows;
    (mean, variance.sqrt())
}

/// W `[F, K]` and b `[K]` over standardised features.
#[derive(Debug)]
pub struct LinearClassifier {
    standard: Standard,
    weight: Tensor,
    bias: Tensor,
}

impl LinearClassifier {
    /// x W + b of raw `features` `[n, F]`: `[n, K]`, `f64`.
    pub fn decision(&self, features: &Tensor) -> Tensor {
        const ROWS: i64 = 4096;
        let of = |x: Tensor| self.standard.apply(&x).matmul(&self.weight) + &self.bias;
        Tensor::cat(&features.split(ROWS, 0).into_iter().map(of).collect::<Vec<_>>(), 0)
    }

    /// Predicted labels `[n]`.
    pub fn predict(&self, features: &Tensor) -> Tensor {
        self.decision(features).argmax(1, false)
    }

    /// Share of right predictions, in `[0, 1]`.
    pub fn accuracy(&self, features: &Tensor, labels: &Tensor) -> f64 {
        crate::knn::accuracy(&self.predict(features), labels)
    }
}

/// A fitted classifier and how it was come by.
#[derive(Debug)]
pub struct LinearFit {
    /// The classifier.
    pub classifier: LinearClassifier,
    /// Regularisation used.
    pub lambda: f64,
    /// (lambda, accuracy on held-out training images), from large to small; empty where lambda was given.
    pub sweep: Vec<(f64, f64)>,
    /// The solver's end: objective, gradient, iterations.
    pub minimum: Minimum,
}

/// Fits on all of `features` `[n, F]` and `labels` `[n]` (i64 in `0..classes`), lambda chosen inside them.
///
/// From 1000 labels on by a stratified hold-out of 20 %, below by 5 stratified folds; the candidate with the highest
/// held-out accuracy wins, equal ones going to the larger lambda.
///
/// # Panics
/// If there are no candidates, no images, or labels out of range.
pub fn fit(features: &Tensor, labels: &Tensor, classes: i64, options: &LinearOptions) -> LinearFit {
    let all = (0..features.size()[0]).collect();
    fit_subsets((features, labels, classes), &[all], options).remove(0)
}

/// The same on each of `subsets` alone (ascending positions of images), all of them solved together.
///
/// # Panics
/// As [`fit`].
pub fn fit_subsets(
    (features, labels, classes): (&Tensor, &Tensor, i64),
    subsets: &[Vec<i64>],
    options: &LinearOptions,
) -> Vec<LinearFit> {
    let listed = labels.to_kind(Kind::Int64).to_device(Device::Cpu);
    let listed = Vec::<i64>::try_from(listed).expect("labels are a vector");
    let task = |subset: &Vec<i64>| {
        let own: Vec<i64> = subset.iter().map(|&row| listed[row as usize]).collect();
        let global = |part: Vec<i64>| part.into_iter().map(|at| subset[at as usize]).collect();
        let parts = tuning_parts(&own, classes as usize, options).into_iter();
        Task { rows: subset.clone(), parts: parts.map(|(fit, held)| (global(fit), global(held))).collect() }
    };
    let tasks: Vec<Task> = subsets.iter().map(task).collect();
    let accuracy = |decision: &Tensor, rows: &[i64]| {
        crate::knn::accuracy(&decision.argmax(1, false), &rows_of(labels, rows))
    };
    Fitting { features, labels, classes, options, judge: &accuracy }.run(&tasks)
}

/// Positions of images to fit on, and of those to judge by; ascending.
pub type Parts = (Vec<i64>, Vec<i64>);
/// The figure of a decision `[m, K]` for the images at these positions.
pub type Judge<'a> = dyn Fn(&Tensor, &[i64]) -> f64 + 'a;

/// As [`fit`], lambda chosen by the mean of `judge` over `parts`.
///
/// # Panics
/// As [`fit`].
pub fn fit_by(
    (features, labels, classes): (&Tensor, &Tensor, i64),
    parts: &[Parts],
    judge: &Judge<'_>,
    options: &LinearOptions,
) -> LinearFit {
    let task = Task { rows: (0..features.size()[0]).collect(), parts: parts.to_vec() };
    Fitting { features, labels, classes, options, judge }.run(&[task]).remove(0)
}

/// Fits on all of `features` with a given `lambda`.
pub fn fit_with(features: &Tensor, labels: &Tensor, classes: i64, lambda: f64, solver: &Lbfgs) -> LinearFit {
    let _guard = tch::no_grad_guard();
    let _threads = OneThread::for_small(features.numel() as i64 * classes);
    let options = LinearOptions { solver: solver.clone(), ..LinearOptions::default() };
    let task = Task { rows: (0..features.size()[0]).collect(), parts: Vec::new() };
    let fitting = Fitting { features, labels, classes, options: &options, judge: &|_, _| 0.0 };
    fitting.refit(&[task], &[lambda]).remove(0)
}

impl LinearOptions {
    fn standard(&self, features: &Tensor) -> Standard {
        if self.standardise { Standard::of(features) } else { Standard::common(features) }
    }
}

/// Images of one classifier, and what its lambda is chosen on: ascending positions.
struct Task {
    rows: Vec<i64>,
    parts: Vec<Parts>,
}

/// Fits classifiers on parts of one set of features.
struct Fitting<'a> {
    features: &'a Tensor,
    labels: &'a Tensor,
    classes: i64,
    options: &'a LinearOptions,
    judge: &'a Judge<'a>,
}

/// Bytes of classifiers that are solved together, about.
const TOGETHER: i64 = 1 << 30;
impl Fitting<'_> {
    fn run(&self, tasks: &[Task]) -> Vec<LinearFit> {
        let _guard = tch::no_grad_guard();
        let rows = tasks.iter().map(|task| task.rows.len() as i64).sum::<i64>();
        let _threads = OneThread::for_small(rows * self.features.size()[1] * self.classes);
        let sweeps = self.sweeps(tasks);
        // Figures that differ by rounding alone are equal.
        let better = |best: (f64, f64), next: &(f64, f64)| if next.1 > best.1 + 1e-12 { *next } else { best };
        let best = |sweep: &Vec<(f64, f64)>| sweep.iter().fold((f64::NAN, f64::NEG_INFINITY), better).0;
        let lambdas: Vec<f64> = sweeps.iter().map(best).collect();
        let sets = self.sets_together(tasks.iter().map(|task| task.rows.len()));
        let groups = tasks.chunks(sets).zip(lambdas.chunks(sets));
        let fits = groups.flat_map(|(tasks, lambdas)| self.refit(tasks, lambdas));
        fits.zip(sweeps).map(|(fit, sweep)| LinearFit { sweep, ..fit }).collect()
    }

    /// The classifier of each of `tasks` with its own of `lambdas`.
    fn refit(&self, tasks: &[Task], lambdas: &[f64]) -> Vec<LinearFit> {
        let rows: Vec<&[i64]> = tasks.iter().map(|task| &task.rows[..]).collect();
        let features: Vec<Tensor> = rows.iter().map(|rows| rows_of(self.features, rows)).collect();
        let standards: Vec<Standard> = features.iter().map(|x| self.options.standard(x)).collect();
        let solver = &self.options.solver;
        let problems = self.problems(&rows, features, &standards, solver);
        let weighed: Vec<f64> = rows
            .iter()
            .zip(&standards)
            .zip(lambdas)
            .map(|((rows, standard), lambda)| self.weighed(*lambda, rows, standard))
            .collect();
        let minima = problems.solve(problems.origin(1), &weighed, solver);
        let fits = standards.into_iter().zip(minima).zip(lambdas).enumerate();
        fits.map(|(set, ((standard, minimum), &lambda))| {
            let (weight, bias) = problems.unpack(set, &minimum.x);
            LinearFit {
                classifier: LinearClassifier { standard, weight, bias },
                lambda,
                sweep: Vec::new(),
                minimum,
            }
        })
        .collect()
    }

    /// For each task the figure of every candidate, from the largest lambda to the smallest.
    fn sweeps(&self, tasks: &[Task]) -> Vec<Vec<(f64, f64)>> {
        let mut lambdas = self.options.lambdas.clone();
        lambdas.sort_by(|a, b| b.total_cmp(a));
        assert!(!lambdas.is_empty(), "a sweep needs at least one candidate");
        let parts: Vec<(usize, &Parts)> = tasks
            .iter()
            .enumerate()
            .flat_map(|(task, of)| of.parts.iter().map(move |part| (task, part)))
            .collect();
        let mut figures = vec![vec![0.0; lambdas.len()]; tasks.len()];
        let sets = self.sets_together(parts.iter().map(|(_, (fit, _))| fit.len()));
        for group in parts.chunks(sets) {
            let of: Vec<&Parts> = group.iter().map(|(_, part)| *part).collect();
            for ((task, (_, held)), found) in group.iter().zip(self.sweep(&of, &lambdas)) {
                let judged: usize = tasks[*task].parts.iter().map(|(_, held)| held.len()).sum();
                let share = held.len() as f64 / judged as f64;
                // Parts that were not solved together may have ended at different candidates.
                figures[*task].truncate(found.len());
                figures[*task].iter_mut().zip(found).for_each(|(figure, found)| *figure += share * found);
            }
        }
        figures.into_iter().map(|figures| lambdas.iter().copied().zip(figures).collect()).collect()
    }

    /// For each of `parts` the figure of each of `lambdas`, from the largest down to where `patience` ends.
    fn sweep(&self, parts: &[&Parts], lambdas: &[f64]) -> Vec<Vec<f64>> {
        let rows: Vec<&[i64]> = parts.iter().map(|(fit, _)| &fit[..]).collect();
        let features: Vec<Tensor> = rows.iter().map(|rows| rows_of(self.features, rows)).collect();
        let standards: Vec<Standard> = features.iter().map(|x| self.options.standard(x)).collect();
        let solver = &self.options.tuning_solver;
        let problems = self.problems(&rows, features, &standards, solver);
        let held = |(set, (_, held)): (usize, &&Parts)| {
            problems.project(set, standards[set].apply(&rows_of(self.features, held)))
        };
        let held: Vec<Tensor> = parts.iter().enumerate().map(held).collect();
        let mut figures = vec![Vec::new(); parts.len()];
        let mut start = problems.origin(1);
        for &lambda in lambdas {
            let weighed: Vec<f64> = rows
                .iter()
                .zip(&standards)
                .map(|(rows, standard)| self.weighed(lambda, rows, standard))
                .collect();
            let minima = problems.solve(start, &weighed, solver);
            for (set, minimum) in minima.iter().enumerate() {
                let (weight, bias) = problems.split(&minimum.x);
                figures[set].push((self.judge)(&(held[set].matmul(&weight) + bias), &parts[set].1));
            }
            // The next smaller penalty starts here.
            let points: Vec<Tensor> = minima.iter().map(|minimum| Tensor::from_slice(&minimum.x)).collect();
            start = Tensor::stack(&points, 0).to_device(self.features.device());
            let declines = |(figures, part): (&Vec<f64>, &&Parts)| self.declines(figures, part.1.len());
            if figures.iter().zip(parts).all(declines) {
                break;
            }
        }
        figures
    }

    /// Whether the last of `figures`, which are shares of `held` images, are clearly below the best one.
    fn declines(&self, figures: &[f64], held: usize) -> bool {
        let Some(patience) = self.options.patience else { return false };
        let best = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let error = (best * (1.0 - best) / held as f64).max(0.0).sqrt();
        figures.len() > patience && figures.iter().rev().take(patience).all(|figure| *figure < best - error)
    }

    fn problems(
        &self,
        rows: &[&[i64]],
        features: Vec<Tensor>,
        standards: &[Standard],
        solver: &Lbfgs,
    ) -> Problems {
        let samples: Vec<Sample<'_>> = features
            .into_iter()
            .zip(standards)
            .zip(rows)
            .map(|((features, standard), rows)| Sample {
                features,
                standard,
                labels: rows_of(self.labels, rows),
            })
            .collect();
        Problems::new(&samples, self.classes, solver.tolerance)
    }

    /// The penalty that corresponds to lambda in a mean over the images `rows`, of weights over scaled features.
    fn weighed(&self, lambda: f64, rows: &[i64], standard: &Standard) -> f64 {
        self.options.penalty.beside_mean(lambda, rows.len() as i64) * standard.penalty
    }

    /// How many sets of images, of so many `rows`, are solved together.
    fn sets_together(&self, rows: impl Iterator<Item = usize>) -> usize {
        let (rows, width) = (rows.max().unwrap_or(0) as i64, self.features.size()[1]);
        let each = 16 * rows * width + logistic::bytes((rows, width), self.classes);
        (TOGETHER / each.max(1)).max(1) as usize
    }
}

/// The rows of `of` at ascending positions `rows`.
fn rows_of(of: &Tensor, rows: &[i64]) -> Tensor {
    if rows.len() as i64 == of.size()[0] {
        return of.shallow_clone();
    }
    of.index_select(0, &Tensor::from_slice(rows).to_device(of.device()))
}

/// Pairs (fit, validate) of positions in `labels` on which candidates are compared.
fn tuning_parts(labels: &[i64], classes: usize, options: &LinearOptions) -> Vec<Parts> {
    let all: Vec<usize> = if labels.len() > options.tune_images {
        let share = options.tune_images as f64 / labels.len() as f64;
        splits::balanced_subset(labels, classes, share, options.seed, u64::MAX - 1)
    } else {
        (0..labels.len()).collect()
    };
    let chosen: Vec<i64> = all.iter().map(|&i| labels[i]).collect();
    let parts = if chosen.len() < options.folds_below {
        splits::folds(&chosen, classes, FOLDS, options.seed)
    } else {
        vec![splits::hold_out(&chosen, classes, HOLD_OUT, options.seed)]
    };
    let positions = |part: Vec<usize>| part.into_iter().map(|i| all[i] as i64).collect();
    parts.into_iter().map(|(fit, validate)| (positions(fit), positions(validate))).collect()
}

/// Small problems run on one thread while this lives: they gain nothing from more, and on a busy machine each of their
/// thousands of tiny products would wait for a thread that is not scheduled (measured with seven other jobs on two
/// cores: 47 s in place of 0.3 s).
struct OneThread(Option<i32>);

impl OneThread {
    /// Multiplications of one product below which one thread is as fast as two.
    const SMALL: i64 = 1 << 23;

    /// Where so many multiplications make one pass over the images.
    fn for_small(multiplications: i64) -> Self {
        if multiplications >= Self::SMALL {
            return Self(None);
        }
        let before = tch::get_num_threads();
        tch::set_num_threads(1);
        Self(Some(before))
    }
}

impl Drop for OneThread {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            tch::set_num_threads(before);
        }
    }
}

/// Whether a fit ended at the minimum or was stopped on the way, in words for the results.
pub fn ending(stop: Stop) -> &'static str {
    match stop {
        Stop::Converged => "converged",
        Stop::Iterations => "iteration limit",
        Stop::Precision => "precision limit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three overlapping clusters in 4 dimensions, one of which never changes.
    fn clusters(n: i64, seed: u64) -> (Tensor, Tensor) {
        tch::set_num_threads(1);
        let labels = Tensor::arange(n, (Kind::Int64, tch::Device::Cpu)).remainder(3);
        let centres =
            Tensor::from_slice(&[1.0f32, 0.0, 0.0, 7.0, 0.0, 1.0, 0.0, 7.0, 0.0, 0.0, 1.0, 7.0]).view([3, 4]);
        let noise = crate::test_normals(seed, &[n, 4]) * Tensor::from_slice(&[0.7f32, 0.7, 0.7, 0.0]);
        (centres.index_select(0, &labels) + noise, labels)
    }

    #[test]
    fn a_constant_dimension_is_left_at_zero() {
        let (x, y) = clusters(200, 3);
        let fit = fit_with(&x, &y, 3, 1e-3, &Lbfgs::default());
        assert_eq!(fit.minimum.stop, Stop::Converged);
        assert_eq!(fit.classifier.weight.get(3).abs().max().double_value(&[]), 0.0);
        let shifted = &x + Tensor::from_slice(&[0.0f32, 0.0, 0.0, 5.0]);
        assert_eq!(fit.classifier.decision(&x), fit.classifier.decision(&shifted));
    }

    #[test]
    fn separable_data_with_next_to_no_penalty_still_ends() {
        let (x, y) = clusters(60, 4);
        let x = x + y.unsqueeze(1).to_kind(Kind::Float) * 50.0;
        for lambda in [1e-12, 1e-8] {
            let fit = fit_with(&x, &y, 3, lambda, &Lbfgs::default());
            assert_eq!(
                fit.minimum.stop,
                Stop::Converged,
                "{:?}",
                (fit.minimum.iterations, fit.minimum.gradient)
            );
            assert_eq!(fit.classifier.accuracy(&x, &y), 1.0);
        }
    }

    #[test]
    fn lambda_is_chosen_from_the_sweep_and_never_saw_a_test_image() {
        let (x, y) = clusters(1500, 5);
        let options = LinearOptions::default();
        let fit = super::fit(&x, &y, 3, &options);
        assert_eq!(fit.sweep.len(), 8);
        let best = fit.sweep.iter().map(|(_, accuracy)| *accuracy).fold(0.0, f64::max);
        let first = fit.sweep.iter().find(|(_, accuracy)| *accuracy == best).unwrap();
        assert_eq!(fit.lambda, first.0, "the largest of the best: {:?}", fit.sweep);
        let parts = tuning_parts(&Vec::<i64>::try_from(&y).unwrap(), 3, &options);
        assert_eq!((parts.len(), parts[0].0.len(), parts[0].1.len()), (1, 1200, 300));
        let few = tuning_parts(&[0, 1, 2].repeat(100), 3, &options);
        assert_eq!((few.len(), few[0].1.len()), (5, 60));
        let many = tuning_parts(&[0, 1].repeat(10_000), 2, &options);
        assert_eq!((many[0].0.len(), many[0].1.len()), (8000, 2000));
    }

    #[test]
    fn a_class_without_examples_is_never_predicted() {
        let (x, y) = clusters(90, 6);
        let fit = super::fit(&x, &y, 4, &LinearOptions::default());
        assert_eq!(fit.classifier.predict(&x).eq(3).any().int64_value(&[]), 0);
    }

    #[test]
    fn log_spacing_of_the_transfer_protocol() {
        let values = log_spaced(1e-6, 1e5, 45);
        assert_eq!(values.len(), 45);
        assert!((values[4] - 10f64.powf(-6.0 + 1.0)).abs() < 1e-12);
        assert!((values[44] - 1e5).abs() < 1e-6);
    }
}
