//! Runs the jobs of a plan and collects their figures. Several processes may work on one folder: a run that another one trains is left
//! to it, and its figures are awaited.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{
    arm::Arm,
    design::Study,
    plan::{FIRST_SEED, Job, seed_of},
    probes,
    table::{DIVERGED, Figures, Table},
    train::Trainer,
    workspace::Workspace,
};
use crate::{EvalError, TrainError, train::Observer};

/// Pause before runs of other processes are looked at again.
const PAUSE: Duration = Duration::from_millis(300);

/// Runs `jobs` until all of their figures are stored.
///
/// # Errors
/// [`EvalError::Stopped`] by `stop`, with all finished work kept; otherwise the error of a run or measurement.
pub fn conduct(
    workspace: &Workspace,
    jobs: &[Job],
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(), EvalError> {
    let mut left: Vec<(usize, &Job)> = jobs.iter().enumerate().collect();
    while !left.is_empty() {
        let before = left.len();
        let mut elsewhere = Vec::new();
        for (number, job) in left {
            if stop.load(Ordering::Relaxed) {
                return Err(EvalError::Stopped);
            }
            if !job.is_done {
                let (study, arm, seed) = (job.study, &job.arm.name, job.seed);
                observer.message(&format!("job {}/{}: {study}, {arm}, seed {seed}", number + 1, jobs.len()));
            }
            match figures(workspace, &job.arm, job.seed, observer, stop) {
                Err(error) if is_in_use(&error) => elsewhere.push((number, job)),
                other => drop(other?),
            }
        }
        left = elsewhere;
        if left.len() == before {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn is_in_use(error: &EvalError) -> bool {
    matches!(error, EvalError::Training(error) if matches!(**error, TrainError::InUse { .. }))
}

/// The figures of an arm with one seed, computed unless they are stored.
fn figures(
    workspace: &Workspace,
    arm: &Arm,
    seed: u64,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Figures, EvalError> {
    let mut all = Figures::default();
    for probe in &arm.probes {
        let seed = seed_of(probe, seed);
        let file = workspace.figures_file(&arm.run, seed, Some(probe))?;
        if let Some(stored) = workspace.stored(&file) {
            all.extend(stored);
            continue;
        }
        let note = Trainer { workspace, observer, stop }.train(&arm.run, seed)?;
        let found = if note.values.contains_key(DIVERGED) {
            workspace.diverged(&arm.run)
        } else {
            probes::measure(workspace, (&arm.run, seed), probe, &note, observer)?
        };
        workspace.store(&file, &found)?;
        all.extend(found);
    }
    Ok(all)
}

/// The table of `study` with `seeds` seeds, of stored figures; arms without them have none.
///
/// # Errors
/// An invalid configuration.
pub fn collect(workspace: &Workspace, study: &Study, seeds: u64) -> Result<Table, EvalError> {
    let mut table = Table::default();
    for arm in study.rows(&workspace.scale) {
        let mut by_seed = Vec::new();
        for seed in FIRST_SEED..FIRST_SEED + seeds {
            let mut all = Figures::default();
            for probe in &arm.probes {
                let file = workspace.figures_file(&arm.run, seed_of(probe, seed), Some(probe))?;
                all.extend(workspace.stored(&file).unwrap_or_default());
            }
            by_seed.push(all);
        }
        table.arms.push((arm.name, by_seed));
    }
    Ok(table)
}
