//! The jobs of a study: networks that are trained, and what is measured on them, with their estimated cost.

use std::collections::HashSet;

use super::{
    arm::{Arm, Probe},
    cost::Cost,
    design::Study,
    train::SECONDS,
    workspace::Workspace,
};
use crate::EvalError;

/// First seed; the recipe of configs/cifar10_conv_c3.toml was found on seed 0.
pub const FIRST_SEED: u64 = 1;

/// An arm with one seed.
#[derive(Debug, Clone)]
pub struct Job {
    /// Name of the study.
    pub study: &'static str,
    /// The arm.
    pub arm: Arm,
    /// Of weights, order, augmentation and choice of labels.
    pub seed: u64,
    /// Estimated cost of what is not finished and not part of an earlier job.
    pub seconds: f64,
    /// Whether all of its figures are stored.
    pub is_done: bool,
}

/// All jobs of some studies.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of execution.
    pub jobs: Vec<Job>,
    /// Seeds of every arm.
    pub seeds: u64,
    /// Work before this plan: recorded seconds of finished runs of it.
    pub spent: f64,
}

impl Plan {
    /// The jobs of `studies` with `seeds` seeds; runs that several arms share are counted once.
    ///
    /// # Errors
    /// An invalid configuration, an encoder that cannot be built.
    pub fn of(workspace: &Workspace, studies: &[&Study], seeds: u64) -> Result<Self, EvalError> {
        let mut counting =
            Counting { workspace, cost: Cost::new(workspace), counted: HashSet::new(), spent: 0.0 };
        let mut jobs = Vec::new();
        for study in studies {
            for arm in study.rows(&workspace.scale) {
                for seed in FIRST_SEED..FIRST_SEED + seeds {
                    let (seconds, is_done) = counting.count(&arm, seed)?;
                    jobs.push(Job { study: study.name, arm: arm.clone(), seed, seconds, is_done });
                }
            }
        }
        Ok(Self { jobs, seeds, spent: counting.spent })
    }

    /// Estimated hours of what is left.
    pub fn hours(&self) -> f64 {
        self.jobs.iter().map(|job| job.seconds).sum::<f64>() / 3600.0
    }

    /// A line for each study, or for each arm of a single one, and the total.
    pub fn text(&self) -> String {
        let mut names: Vec<&str> = self.jobs.iter().map(|job| job.study).collect();
        names.dedup();
        let single = names.len() == 1;
        let title = |job: &Job| if single { job.arm.name.clone() } else { job.study.to_owned() };
        let mut groups: Vec<(String, Vec<&Job>)> = Vec::new();
        for job in &self.jobs {
            match groups.last_mut() {
                Some((name, jobs)) if *name == title(job) => jobs.push(job),
                _ => groups.push((title(job), vec![job])),
            }
        }
        let mut text: String = groups.iter().map(|(name, jobs)| line(name, jobs)).collect();
        text.push_str(&line("total", &self.jobs.iter().collect::<Vec<_>>()));
        if self.spent > 0.0 {
            text.push_str(&format!("finished runs took {:.2} h\n", self.spent / 3600.0));
        }
        text
    }
}

fn line(name: &str, jobs: &[&Job]) -> String {
    let done = jobs.iter().filter(|job| job.is_done).count();
    let hours = jobs.iter().map(|job| job.seconds).sum::<f64>() / 3600.0;
    format!("{name:<42} {:>4} jobs, {done:>4} done, {hours:>7.3} h\n", jobs.len())
}

struct Counting<'a> {
    workspace: &'a Workspace,
    cost: Cost<'a>,
    /// Files of the work that earlier jobs do.
    counted: HashSet<std::path::PathBuf>,
    spent: f64,
}

impl Counting<'_> {
    /// Seconds of the work that is left, and whether none is.
    fn count(&mut self, arm: &Arm, seed: u64) -> Result<(f64, bool), EvalError> {
        let (mut seconds, mut done) = (0.0, true);
        let mut run = Some(&arm.run);
        while let Some(next) = run.filter(|run| run.trains()) {
            let file = self.workspace.figures_file(next, seed, None)?;
            let stored = self.workspace.stored(&file);
            done &= stored.is_some();
            if self.counted.insert(file) {
                match stored {
                    Some(note) => self.spent += note.values.get(SECONDS).copied().unwrap_or(0.0),
                    None => seconds += self.cost.training(next, seed)?,
                }
            }
            run = next.source();
        }
        for probe in &arm.probes {
            let seed = seed_of(probe, seed);
            let file = self.workspace.figures_file(&arm.run, seed, Some(probe))?;
            let is_stored = file.exists();
            done &= is_stored;
            if self.counted.insert(file) && !is_stored {
                seconds += self.cost.measuring(&arm.run, probe, seed)?;
            }
        }
        Ok((seconds, done))
    }
}

/// Raw pixels depend on no seed.
pub(super) fn seed_of(probe: &Probe, seed: u64) -> u64 {
    if *probe == Probe::Pixels { FIRST_SEED } else { seed }
}
