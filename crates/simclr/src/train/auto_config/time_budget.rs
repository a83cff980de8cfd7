//! `train.minutes`: as many steps as fit, from the measured duration of a step at every side of the views.

use std::time::Instant;

use crate::{
    Plan, TrainError,
    config::TrainConfig,
    dist::{GradientBuckets, ProcessGroup},
    exec::{StepId, executor},
    train::setup::{self, Prepared, step_context},
};

/// Steps that load libraries, select algorithms, capture the CUDA graph and fill the loader's queue.
const WARM_UP_STEPS: u64 = 8;
/// A side is measured for at least this long, and for at least [`MIN_STEPS`].
const MIN_SECONDS: f64 = 2.0;
const MIN_STEPS: u64 = 10;
/// Share of the time that is left for checkpoints and for the start of the loader.
const RESERVE: f64 = 0.01;

/// Epochs that fit into `train.minutes`, and how they were found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affordable {
    pub(super) epochs: f64,
    pub(super) text: String,
}

/// Measures steps of `trial`, which changes its weights, and plans for what remains of `train.minutes` since `started`.
///
/// # Errors
/// Those of a training step.
pub(super) fn affordable(trial: &mut Prepared, started: Instant) -> Result<Affordable, TrainError> {
    let shares = shares(&trial.plan.config.train);
    let mut measured = Vec::new();
    for &(share, size) in &shares {
        measured.push((share, size, seconds_per_step(trial, size)?));
    }
    let mean: f64 = measured.iter().map(|(share, _, seconds)| share * seconds).sum();
    let minutes = trial.plan.config.train.minutes;
    let left = (60.0 * minutes * (1.0 - RESERVE) - started.elapsed().as_secs_f64()).max(0.0);
    let steps = (left / mean).floor().max(1.0);
    let each = measured.iter().map(|(_, size, seconds)| format!("{:.1} ms at {size} px", 1e3 * seconds));
    let each = each.collect::<Vec<_>>().join(", ");
    let epochs = steps / trial.plan.steps_per_epoch as f64;
    let text = format!("train.epochs = {epochs:.2}: what fits into {minutes} minutes with steps of {each}");
    Ok(Affordable { epochs, text })
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

/// Mean over consecutive steps at learning rate 0, with the loader working ahead as in a run.
fn seconds_per_step(trial: &mut Prepared, size: usize) -> Result<f64, TrainError> {
    let group = ProcessGroup::alone();
    let plan = Plan { view_sizes: vec![(0, size)], total_steps: u64::MAX, ..trial.plan.clone() };
    let device = trial.method.params().device();
    let _stream = setup::stream(&plan, device)?;
    let mut batches = setup::batches(&group, &plan, &trial.dataset, device, 0)?;
    let gradients = GradientBuckets::new(trial.method.params(), &group);
    let passes = plan.is_chunked().then_some(plan.view_passes);
    let first = step_context(&plan, &group, &*trial.method, &gradients);
    let mut executor = executor(&first, passes, plan.config.train.cuda_graph);
    let mut start = Instant::now();
    for step in 0.. {
        if step == WARM_UP_STEPS {
            start = Instant::now();
        }
        let elapsed = start.elapsed().as_secs_f64();
        let steps = step.saturating_sub(WARM_UP_STEPS);
        if steps >= MIN_STEPS && elapsed >= MIN_SECONDS {
            return Ok(elapsed / steps as f64);
        }
        trial.method.before_step(step);
        let context = step_context(&plan, &group, &*trial.method, &gradients);
        executor.step(&context, &mut trial.optimizer, StepId { step, lr: 0.0 }, &mut batches)?;
    }
    unreachable!("the loop returns")
}

#[cfg(test)]
mod tests {
    use super::*;

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
