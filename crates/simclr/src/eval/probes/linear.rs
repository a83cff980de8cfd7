//! Linear classifier on features `[n, F]`: multinomial logistic regression on standardised features, its regularisation
//! chosen inside the training part.
//!
//! Objective, for W `[F, K]` and b `[K]`:
//! `J(W, b) = (1/n) sum_i -log softmax(x_i W + b)[y_i] + (lambda/2) |W|^2`; b is not penalised. scikit-learn's
//! `LogisticRegression` minimises the same with `C = 1 / (n lambda)`. J is convex, so the solver does not matter.
//! [`Penalty::Sum`](crate::eval::options::Penalty) replaces lambda by lambda/n, so that `C = 1 / lambda`.

use tch::{Device, Kind, Tensor};

use super::{
    lbfgs::Minimum,
    logistic::{self, Problems, Sample},
    standardise::Standardisation,
};
use crate::{
    eval::{
        data::splits,
        options::{HOLD_OUT, Lbfgs, LinearOptions},
    },
    knn,
};

/// Folds for small label sets.
const FOLDS: usize = 5;

/// W `[F, K]` and b `[K]` over standardised features.
#[derive(Debug)]
pub struct LinearClassifier {
    standard: Standardisation,
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

    /// W `[K, F]` and b `[K]` over raw features, `f64`.
    pub fn on_raw_features(&self) -> (Tensor, Tensor) {
        let (weight, bias) = self.standard.fold(&self.weight, &self.bias);
        (weight.tr(), bias)
    }

    /// Predicted labels `[n]`.
    pub fn predict(&self, features: &Tensor) -> Tensor {
        self.decision(features).argmax(1, false)
    }

    /// Fraction of correct predictions, in `[0, 1]`.
    pub fn accuracy(&self, features: &Tensor, labels: &Tensor) -> f64 {
        knn::accuracy(&self.predict(features), labels)
    }
}

/// A fitted classifier.
#[derive(Debug)]
pub struct LinearFit {
    /// The classifier.
    pub classifier: LinearClassifier,
    /// Regularisation used.
    pub lambda: f64,
    /// (lambda, score on held-out training images), from large to small; empty for a given lambda. NaN without such images.
    pub sweep: Vec<(f64, f64)>,
    /// End of the solver: objective, gradient, iterations.
    pub minimum: Minimum,
}

impl LinearFit {
    /// Whether no candidate has a score, so that lambda is the largest one.
    pub(crate) fn is_unscored(&self) -> bool {
        !self.sweep.is_empty() && self.sweep.iter().all(|(_, score)| !score.is_finite())
    }
}

/// Fits on all of `features` `[n, F]` and `labels` `[n]` (i64 in `0..classes`), lambda chosen inside them.
///
/// From 1000 labels on by a stratified hold-out of 20 %, below, or if that holds nothing out, by 5 stratified folds. The candidate
/// with the highest held-out accuracy is used, of equal ones the largest lambda; the largest one if nothing can be held out.
///
/// # Panics
/// If there are no candidates, no images, or labels out of range.
pub fn fit(features: &Tensor, labels: &Tensor, classes: i64, options: &LinearOptions) -> LinearFit {
    let all = (0..features.size()[0]).collect();
    fit_subsets((features, labels, classes), &[all], options).remove(0)
}

/// The same on each of `subsets` (ascending positions of images), solved together.
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
    let accuracy =
        |decision: &Tensor, rows: &[i64]| knn::accuracy(&decision.argmax(1, false), &rows_of(labels, rows));
    Fitting { features, labels, classes, options, score: &accuracy }.run(&tasks)
}

/// Positions of images to fit on, and held-out positions; ascending.
pub type Parts = (Vec<i64>, Vec<i64>);
/// Score of a decision `[m, K]` for the images at these positions.
pub type Score<'a> = dyn Fn(&Tensor, &[i64]) -> f64 + 'a;

/// As [`fit`], lambda chosen by the mean of `score` over `parts`.
///
/// # Panics
/// As [`fit`].
pub fn fit_by(
    (features, labels, classes): (&Tensor, &Tensor, i64),
    parts: &[Parts],
    score: &Score<'_>,
    options: &LinearOptions,
) -> LinearFit {
    let task = Task { rows: (0..features.size()[0]).collect(), parts: parts.to_vec() };
    Fitting { features, labels, classes, options, score }.run(&[task]).remove(0)
}

/// Fits on all of `features` with a given `lambda`.
pub fn fit_with(features: &Tensor, labels: &Tensor, classes: i64, lambda: f64, solver: &Lbfgs) -> LinearFit {
    let _guard = tch::no_grad_guard();
    let _threads = OneThread::for_small(features.numel() as i64 * classes);
    let options = LinearOptions { solver: solver.clone(), ..LinearOptions::default() };
    let task = Task { rows: (0..features.size()[0]).collect(), parts: Vec::new() };
    let fitting = Fitting { features, labels, classes, options: &options, score: &|_, _| 0.0 };
    fitting.refit(&[task], &[lambda]).remove(0)
}

/// Ascending positions of the images of one classifier, and the parts that its lambda is chosen on.
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
    score: &'a Score<'a>,
}

/// Classifiers solved together.
struct Batch<'a> {
    rows: Vec<&'a [i64]>,
    standards: Vec<Standardisation>,
    problems: Problems,
}

/// Approximate memory in bytes of the classifiers solved together.
const BATCH_BYTES: i64 = 1 << 30;

impl Fitting<'_> {
    fn run(&self, tasks: &[Task]) -> Vec<LinearFit> {
        let _guard = tch::no_grad_guard();
        let rows = tasks.iter().map(|task| task.rows.len() as i64).sum::<i64>();
        let _threads = OneThread::for_small(rows * self.features.size()[1] * self.classes);
        let sweeps = self.sweeps(tasks);
        // Scores that differ by rounding only count as equal.
        let better = |best: (f64, f64), next: &(f64, f64)| if next.1 > best.1 + 1e-12 { *next } else { best };
        // No NaN is better than the start: without scores the largest lambda stays.
        let best = |sweep: &Vec<(f64, f64)>| sweep.iter().fold((sweep[0].0, f64::NEG_INFINITY), better).0;
        let lambdas: Vec<f64> = sweeps.iter().map(best).collect();
        let sets = self.sets_per_batch(tasks.iter().map(|task| task.rows.len()));
        let groups = tasks.chunks(sets).zip(lambdas.chunks(sets));
        let fits = groups.flat_map(|(tasks, lambdas)| self.refit(tasks, lambdas));
        fits.zip(sweeps).map(|(fit, sweep)| LinearFit { sweep, ..fit }).collect()
    }

    /// The classifier of each of `tasks` with its own of `lambdas`.
    fn refit(&self, tasks: &[Task], lambdas: &[f64]) -> Vec<LinearFit> {
        let solver = &self.options.solver;
        let batch = self.batch(tasks.iter().map(|task| &task.rows[..]).collect(), solver);
        let minima = self.minima(&batch, batch.problems.origin(), lambdas, solver);
        let Batch { standards, problems, .. } = batch;
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

    /// For each task the score of every candidate, from the largest lambda to the smallest.
    fn sweeps(&self, tasks: &[Task]) -> Vec<Vec<(f64, f64)>> {
        let mut lambdas = self.options.lambdas.clone();
        lambdas.sort_by(|a, b| b.total_cmp(a));
        assert!(!lambdas.is_empty(), "a sweep needs at least one candidate");
        let parts: Vec<(usize, &Parts)> = tasks
            .iter()
            .enumerate()
            .flat_map(|(task, of)| of.parts.iter().map(move |part| (task, part)))
            .collect();
        let before = |task: &Task| if task.parts.is_empty() { f64::NAN } else { 0.0 };
        let mut figures: Vec<_> = tasks.iter().map(|task| vec![before(task); lambdas.len()]).collect();
        let sets = self.sets_per_batch(parts.iter().map(|(_, (fit, _))| fit.len()));
        for group in parts.chunks(sets) {
            let of: Vec<&Parts> = group.iter().map(|(_, part)| *part).collect();
            for ((task, (_, held)), found) in group.iter().zip(self.sweep(&of, &lambdas)) {
                let total: usize = tasks[*task].parts.iter().map(|(_, held)| held.len()).sum();
                let share = held.len() as f64 / total as f64;
                // Parts of different batches may have ended at different candidates.
                figures[*task].truncate(found.len());
                figures[*task].iter_mut().zip(found).for_each(|(figure, found)| *figure += share * found);
            }
        }
        figures.into_iter().map(|figures| lambdas.iter().copied().zip(figures).collect()).collect()
    }

    /// For each of `parts` the scores of `lambdas`, from the largest down until `patience` ends the sweep.
    fn sweep(&self, parts: &[&Parts], lambdas: &[f64]) -> Vec<Vec<f64>> {
        let solver = &self.options.tuning_solver;
        let batch = self.batch(parts.iter().map(|(fit, _)| &fit[..]).collect(), solver);
        let problems = &batch.problems;
        let held = |(set, (_, held)): (usize, &&Parts)| {
            problems.project(set, batch.standards[set].apply(&rows_of(self.features, held)))
        };
        let held: Vec<Tensor> = parts.iter().enumerate().map(held).collect();
        let mut figures = vec![Vec::new(); parts.len()];
        let mut start = problems.origin();
        for &lambda in lambdas {
            let minima = self.minima(&batch, start, &vec![lambda; parts.len()], solver);
            for (set, minimum) in minima.iter().enumerate() {
                let (weight, bias) = problems.split(&minimum.x);
                figures[set].push((self.score)(&(held[set].matmul(&weight) + bias), &parts[set].1));
            }
            // Warm start of the next smaller penalty.
            let points: Vec<Tensor> = minima.iter().map(|minimum| Tensor::from_slice(&minimum.x)).collect();
            start = Tensor::stack(&points, 0).to_device(self.features.device());
            let declines = |(figures, part): (&Vec<f64>, &&Parts)| self.declines(figures, part.1.len());
            if figures.iter().zip(parts).all(declines) {
                break;
            }
        }
        figures
    }

    /// Whether the last `patience` of `figures`, fractions of `held` images, are clearly below the best one.
    fn declines(&self, figures: &[f64], held: usize) -> bool {
        let Some(patience) = self.options.patience else { return false };
        let best = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let error = (best * (1.0 - best) / held as f64).max(0.0).sqrt();
        figures.len() > patience && figures.iter().rev().take(patience).all(|figure| *figure < best - error)
    }

    fn standard(&self, features: &Tensor) -> Standardisation {
        let of = if self.options.standardise { Standardisation::of } else { Standardisation::common };
        of(features)
    }

    /// The classifiers on each of `rows`.
    fn batch<'r>(&self, rows: Vec<&'r [i64]>, solver: &Lbfgs) -> Batch<'r> {
        let features: Vec<Tensor> = rows.iter().map(|rows| rows_of(self.features, rows)).collect();
        let standards: Vec<Standardisation> = features.iter().map(|x| self.standard(x)).collect();
        let samples = features.into_iter().zip(&standards).zip(&rows);
        let samples: Vec<Sample<'_>> = samples
            .map(|((features, standard), rows)| {
                let labels = rows_of(self.labels, rows);
                Sample { features, standard, labels }
            })
            .collect();
        let problems = Problems::new(&samples, self.classes, solver.tolerance);
        Batch { rows, standards, problems }
    }

    /// The minima of `batch`, one for each of `lambdas`.
    fn minima(&self, batch: &Batch<'_>, start: Tensor, lambdas: &[f64], solver: &Lbfgs) -> Vec<Minimum> {
        let penalties = batch.rows.iter().zip(&batch.standards).zip(lambdas);
        let penalties: Vec<f64> =
            penalties.map(|((rows, standard), lambda)| self.penalty(*lambda, rows, standard)).collect();
        batch.problems.solve(start, &penalties, solver)
    }

    /// The penalty on weights of scaled features, relative to a mean over `rows`, that corresponds to `lambda`.
    fn penalty(&self, lambda: f64, rows: &[i64], standard: &Standardisation) -> f64 {
        self.options.penalty.relative_to_mean(lambda, rows.len() as i64) * standard.penalty
    }

    /// Number of sets of images, with the given `rows`, that are solved together.
    fn sets_per_batch(&self, rows: impl Iterator<Item = usize>) -> usize {
        let (rows, width) = (rows.max().unwrap_or(0) as i64, self.features.size()[1]);
        let each = 16 * rows * width + logistic::bytes((rows, width), self.classes);
        (BATCH_BYTES / each.max(1)).max(1) as usize
    }
}

/// `of` at the ascending positions `rows`.
fn rows_of(of: &Tensor, rows: &[i64]) -> Tensor {
    if rows.len() as i64 == of.size()[0] {
        return of.shallow_clone();
    }
    of.index_select(0, &Tensor::from_slice(rows).to_device(of.device()))
}

/// Pairs (fit, validate) of positions in `labels` that candidates are compared on.
fn tuning_parts(labels: &[i64], classes: usize, options: &LinearOptions) -> Vec<Parts> {
    let all: Vec<usize> = if labels.len() > options.tune_images {
        let share = options.tune_images as f64 / labels.len() as f64;
        splits::balanced_subset(labels, classes, share, options.seed, u64::MAX - 1)
    } else {
        (0..labels.len()).collect()
    };
    let chosen: Vec<i64> = all.iter().map(|&i| labels[i]).collect();
    // With at most two images of each class, a fifth of them rounds to none.
    let hold_out = (chosen.len() >= options.folds_below)
        .then(|| splits::hold_out(&chosen, classes, HOLD_OUT, options.seed))
        .filter(|(_, held)| !held.is_empty());
    let parts = hold_out
        .map_or_else(|| splits::folds(&chosen, classes, FOLDS, options.seed), |hold_out| vec![hold_out]);
    let positions = |part: Vec<usize>| part.into_iter().map(|i| all[i] as i64).collect();
    parts.into_iter().map(|(fit, validate)| (positions(fit), positions(validate))).collect()
}

/// Guard that runs small problems on one thread: they gain nothing from more, and on a busy machine each of their thousands of
/// tiny products would wait for a thread that is not scheduled (with seven other jobs on two cores: 47 s instead of 0.3 s).
struct OneThread(Option<i32>);

impl OneThread {
    /// Multiplications below which one thread is as fast as two.
    const SMALL: i64 = 1 << 23;

    /// `multiplications` per pass over the images.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::probes::{lbfgs::Stop, logistic::tests::clusters};

    #[test]
    fn constant_dimensions_get_no_weight() {
        let (x, y) = clusters(200, 3);
        let fit = fit_with(&x, &y, 3, 1e-3, &Lbfgs::default());
        assert_eq!(fit.minimum.stop, Stop::Converged);
        assert_eq!(fit.classifier.weight.get(3).abs().max().double_value(&[]), 0.0);
        let shifted = &x + Tensor::from_slice(&[0.0f32, 0.0, 0.0, 5.0]);
        assert_eq!(fit.classifier.decision(&x), fit.classifier.decision(&shifted));
    }

    #[test]
    fn separable_data_with_a_tiny_penalty_converges() {
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
    fn lambda_is_chosen_on_held_out_training_images() {
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

    /// A fifth of two images per class rounds to none.
    #[test]
    fn folds_replace_a_hold_out_of_nothing() {
        let pairs: Vec<i64> = (0..1000).map(|at| at / 2).collect();
        let parts = tuning_parts(&pairs, 500, &LinearOptions::default());
        assert_eq!((parts.len(), parts[0].1.len()), (FOLDS, 200));
        let options = LinearOptions { folds_below: 0, ..LinearOptions::default() };
        let (x, y) = clusters(6, 7);
        let fit = super::fit(&x, &y, 3, &options);
        assert!(fit.lambda.is_finite() && fit.sweep.iter().all(|(_, score)| score.is_finite()), "{fit:?}");
        assert!(!fit.is_unscored());
    }

    #[test]
    fn without_a_score_the_largest_lambda_is_used() {
        let (x, y) = clusters(60, 8);
        let options = LinearOptions::default();
        let rows = (0..60).collect::<Vec<i64>>();
        let empty = fit_by((&x, &y, 3), &[(rows, Vec::new())], &|_, _| f64::NAN, &options);
        let one = super::fit(&x.narrow(0, 0, 1), &y.narrow(0, 0, 1), 3, &options);
        for fit in [empty, one] {
            assert!(fit.is_unscored(), "{:?}", fit.sweep);
            assert!((fit.lambda / 100.0 - 1.0).abs() < 1e-12, "{}", fit.lambda);
        }
    }

    #[test]
    fn classes_without_examples_are_never_predicted() {
        let (x, y) = clusters(90, 6);
        let fit = super::fit(&x, &y, 4, &LinearOptions::default());
        assert_eq!(fit.classifier.predict(&x).eq(3).any().int64_value(&[]), 0);
    }
}
