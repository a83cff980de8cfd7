//! `train.minutes`: as many steps as fit, from the measured duration of a step at every side of the views.

use std::{fmt::Write, time::Instant};

use serde::{Deserialize, Serialize};

use super::of_first_rank;
use crate::{
    Plan, RunConfig, TrainError,
    config::TrainConfig,
    dist::{GradientBuckets, ProcessGroup, all_ok},
    exec::{StepId, executor},
    train::{
        online_knn::OnlineKnn,
        setup::{self, OpenedData, Prepared, step_context},
    },
};

/// Steps that load libraries, select algorithms, capture the CUDA graph and fill the loader's queue.
const WARM_UP_STEPS: u64 = 8;
/// A side is measured for at least this long, and for at least [`MIN_STEPS`].
const MIN_SECONDS: f64 = 2.0;
const MIN_STEPS: u64 = 10;
/// Share of `train.minutes` for which all sides together are measured, within the bounds of [`MIN_SECONDS`] and [`MAX_SECONDS`] for
/// each: the speed of a shared machine varies within seconds (docs/convergence.md, "Ten minutes on two cores").
const MEASURED_SHARE: f64 = 0.01;
const MAX_SECONDS: f64 = 60.0;
/// Share of a measured step spent waiting for data, from which it is measured again on the same images.
const WAITING_SHARE: f64 = 0.05;
/// Share of the time that is left for checkpoints, for the start of the loader and for steps slower than the measured ones.
const RESERVE: f64 = 0.02;

/// Epochs that fit into `train.minutes`, and how they were found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affordable {
    pub(super) epochs: f64,
    pub(super) text: String,
}

/// Measures steps of a model of its own, and plans for what remains of `train.minutes` since the data were opened. A collective
/// operation; the result is that of rank 0.
///
/// # Errors
/// Those of a training step.
pub(super) fn affordable(
    group: &ProcessGroup,
    opened: &OpenedData,
    config: &RunConfig,
) -> Result<Affordable, TrainError> {
    let mut trial = all_ok(group, setup::prepare(group, opened, config))?;
    let minutes = config.train.minutes;
    let measured = by_side(group, &mut trial, seconds_per_side(minutes, shares(&config.train).len()))?;
    let knn = all_ok(group, online_knn_seconds(group, &trial))?;
    let knn = of_first_rank(group, &knn);
    // Behind all measurements, which take time of the run.
    let elapsed = of_first_rank(group, &opened.started.elapsed().as_secs_f64());
    let left = (60.0 * minutes * (1.0 - RESERVE) - elapsed).max(0.0);
    let (_, _, at_start) = measured[0];
    let [first, mean] = [at_start.first, mean(&measured)].map(|seconds| seconds + knn);
    let steps = affordable_steps(left, first, mean, trial.plan.steps_per_epoch as f64);
    let epochs = config.epochs_of(steps as u64, trial.plan.images);
    let each =
        measured.iter().map(|(_, size, seconds)| format!("{:.1} ms at {size} px", 1e3 * seconds.later));
    let each = each.collect::<Vec<_>>().join(", ");
    let mut text =
        format!("train.epochs = {epochs:.2}: what fits into {minutes} minutes with steps of {each}");
    if at_start.first > at_start.later {
        let first = 1e3 * at_start.first;
        let _ = write!(text, ", and of {first:.1} ms in the first epoch, which reads the images into memory");
    }
    if knn > 0.0 {
        let _ = write!(text, "; the online kNN takes {:.1} ms per step", 1e3 * knn);
    }
    Ok(Affordable { epochs, text })
}

/// Seconds per step of the online kNN, on rank 0; the other ranks wait for it.
fn online_knn_seconds(group: &ProcessGroup, trial: &Prepared) -> Result<f64, TrainError> {
    let knn = OnlineKnn::new(&trial.plan, &trial.dataset).filter(|_| group.is_first());
    knn.map_or(Ok(0.0), |knn| knn.seconds_per_step(trial.method.model(), &trial.dataset))
}

/// Mean seconds of a step over the run, with loader and communication. Collective.
///
/// # Errors
/// Those of a training step.
pub(super) fn mean_step_seconds(
    group: &ProcessGroup,
    opened: &OpenedData,
    config: &RunConfig,
) -> Result<f64, TrainError> {
    let mut trial = all_ok(group, setup::prepare(group, opened, config))?;
    Ok(mean(&by_side(group, &mut trial, MIN_SECONDS)?))
}

/// A side of the views: share of the steps, pixels, seconds.
type Side = (f64, usize, StepSeconds);

/// `seconds`: for how long to measure each side.
fn by_side(group: &ProcessGroup, trial: &mut Prepared, seconds: f64) -> Result<Vec<Side>, TrainError> {
    let sides = shares(&trial.plan.config.train).into_iter();
    sides.map(|(share, size)| Ok((share, size, step_seconds(group, trial, size, seconds)?))).collect()
}

fn mean(sides: &[Side]) -> f64 {
    sides.iter().map(|(share, _, seconds)| share * seconds.later).sum()
}

/// Number of steps in `left` seconds, if those of the first epoch take `first` seconds each and later ones `mean`.
fn affordable_steps(left: f64, first: f64, mean: f64, steps_per_epoch: f64) -> f64 {
    let after_first_epoch = left - first * steps_per_epoch;
    let steps =
        if after_first_epoch > 0.0 { steps_per_epoch + after_first_epoch / mean } else { left / first };
    steps.floor().max(1.0)
}

fn seconds_per_side(minutes: f64, sides: usize) -> f64 {
    (60.0 * minutes * MEASURED_SHARE / sides as f64).clamp(MIN_SECONDS, MAX_SECONDS)
}

/// Sides of the views with the share of the steps that have them.
fn shares(train: &TrainConfig) -> Vec<(f64, usize)> {
    let mut starts = train.view_sizes.clone();
    if starts.first().is_none_or(|&(share, _)| share > 0.0) {
        starts.insert(0, (0.0, train.image_size));
    }
    let ends = starts.iter().skip(1).map(|&(share, _)| share).chain([1.0]).collect::<Vec<_>>();
    starts.iter().zip(ends).map(|(&(start, size), end)| (end - start, size)).collect()
}

/// Seconds per step at one side of the views.
#[derive(Debug, Clone, Copy, PartialEq)]
struct StepSeconds {
    /// While images are read for the first time, from a disk or a network.
    first: f64,
    /// When the page cache holds them. Images that exceed the memory are slower: such a run takes longer than it was given.
    later: f64,
}

/// `seconds`: for how long to measure.
fn step_seconds(
    group: &ProcessGroup,
    trial: &mut Prepared,
    size: usize,
    seconds: f64,
) -> Result<StepSeconds, TrainError> {
    let first = measure(group, trial, size, Until { seconds, steps: u64::MAX })?;
    if first.waiting < WAITING_SHARE {
        return Ok(StepSeconds { first: first.seconds, later: first.seconds });
    }
    let later =
        measure(group, trial, size, Until { seconds, steps: first.steps })?.seconds.min(first.seconds);
    Ok(StepSeconds { first: first.seconds, later })
}

/// A measurement ends with the first of the two that is reached, and not before [`MIN_STEPS`].
#[derive(Clone, Copy)]
struct Until {
    seconds: f64,
    steps: u64,
}

#[derive(Serialize, Deserialize)]
struct Measured {
    steps: u64,
    /// Per step.
    seconds: f64,
    /// Share of the time spent waiting for data.
    waiting: f64,
}

/// Mean over consecutive steps at learning rate 0, with the loader working ahead as in a run.
fn measure(
    group: &ProcessGroup,
    trial: &mut Prepared,
    size: usize,
    until: Until,
) -> Result<Measured, TrainError> {
    let plan = Plan { view_sizes: vec![(0, size)], total_steps: u64::MAX, ..trial.plan.clone() };
    let device = trial.method.params().device();
    let _stream = setup::stream(group, &plan, device)?;
    let mut batches = all_ok(group, setup::batches(group, &plan, &trial.dataset, device, 0))?;
    let gradients = GradientBuckets::configured(&plan.config.dist, trial.method.params(), group);
    let passes = plan.is_chunked().then_some(plan.view_passes);
    let first = step_context(&plan, group, &*trial.method, &gradients);
    let mut executor = executor(&first, passes, plan.config.train.cuda_graph);
    let (mut start, mut waited) = (Instant::now(), 0.0);
    for step in 0.. {
        if step == WARM_UP_STEPS {
            (start, waited) = (Instant::now(), batches.waited());
        }
        let elapsed = start.elapsed().as_secs_f64();
        let steps = step.saturating_sub(WARM_UP_STEPS);
        // As a run does after each step, the ranks exchange a message.
        let done = steps >= MIN_STEPS && (elapsed >= until.seconds || steps >= until.steps);
        if of_first_rank(group, &done) {
            let waiting = (batches.waited() - waited) / elapsed;
            return Ok(of_first_rank(group, &Measured { steps, seconds: elapsed / steps as f64, waiting }));
        }
        trial.method.before_step(step);
        let context = step_context(&plan, group, &*trial.method, &gradients);
        executor.step(&context, &mut trial.optimizer, StepId { step, lr: 0.0 }, &mut batches)?;
    }
    unreachable!("the loop returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_epoch_counts_with_its_own_duration() {
        assert_eq!(affordable_steps(100.0, 0.5, 0.5, 20.0), 200.0);
        assert_eq!(affordable_steps(100.0, 2.0, 0.5, 20.0), 20.0 + 120.0);
        assert_eq!(affordable_steps(30.0, 2.0, 0.5, 20.0), 15.0);
        assert_eq!(affordable_steps(0.0, 2.0, 0.5, 20.0), 1.0);
    }

    #[test]
    fn a_hundredth_of_the_time_is_measured() {
        assert_eq!(seconds_per_side(0.1, 1), MIN_SECONDS);
        assert_eq!(seconds_per_side(10.0, 1), 6.0);
        assert_eq!(seconds_per_side(20.0, 2), 6.0);
        assert_eq!(seconds_per_side(6000.0, 1), MAX_SECONDS);
    }

    #[test]
    fn shares_cover_the_run() {
        let of = |view_sizes: &[(f64, usize)]| {
            shares(&TrainConfig { image_size: 32, view_sizes: view_sizes.to_vec(), ..TrainConfig::default() })
        };
        assert_eq!(of(&[]), [(1.0, 32)]);
        assert_eq!(of(&[(0.0, 24), (0.75, 32)]), [(0.75, 24), (0.25, 32)]);
        assert_eq!(of(&[(0.5, 24), (0.75, 16)]), [(0.5, 32), (0.25, 24), (0.25, 16)]);
    }
}
