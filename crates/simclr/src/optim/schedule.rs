//! Learning rate over steps: linear warm-up, then half a cosine (google-research/simclr `model_util.py`), a line,
//! constant, constant and then a line, or in steps.

use serde::{Deserialize, Serialize};

use super::{OptimConfig, Scaling, ScheduleKind};

/// Learning rate of every step, from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Peak.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Step at which cosine and line reach 0.
    pub total_steps: u64,
    /// Shape.
    pub kind: ScheduleKind,
    /// First steps with a rate multiplied by `factor` once more.
    #[serde(default)]
    pub milestones: Vec<u64>,
    /// See `milestones`.
    #[serde(default)]
    pub factor: f64,
    /// Share of the steps after warm-up during which `stable-decay` falls.
    #[serde(default)]
    pub decay_share: f64,
}

impl Schedule {
    /// Scales the base rate for a batch of `batch` images.
    pub fn new(config: &OptimConfig, batch: usize, warmup_steps: u64, total_steps: u64) -> Self {
        Self {
            peak: config.scaling.apply(config.lr, batch),
            warmup_steps,
            total_steps,
            kind: config.schedule,
            milestones: Vec::new(),
            factor: config.milestone_factor,
            decay_share: config.decay_share,
        }
    }

    /// Sets the milestones of `config`, of which `to_step` is the step of an epoch.
    #[must_use]
    pub fn with_milestones(mut self, config: &OptimConfig, to_step: impl Fn(f64) -> u64) -> Self {
        self.milestones = config.milestones.iter().map(|&epoch| to_step(epoch)).collect();
        self
    }

    /// Learning rate at `step`; with warm-up, 0 at step 0, as in the official code.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let steps_after_warmup = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let share = ((step - self.warmup_steps) as f64 / steps_after_warmup as f64).min(1.0);
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Steps => {
                let passed = self.milestones.iter().filter(|&&milestone| milestone <= step).count();
                self.factor.powi(passed as i32)
            }
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
            ScheduleKind::Linear => 1.0 - share,
            ScheduleKind::StableDecay => ((1.0 - share) / self.decay_share).min(1.0),
        };
        self.peak * factor
    }
}

impl Scaling {
    /// The peak rate of a batch of `batch` images (not views).
    pub fn apply(self, lr: f64, batch: usize) -> f64 {
        let batch = batch as f64;
        match self {
            Self::Linear => lr * batch / 256.0,
            Self::Sqrt => lr * batch.sqrt(),
            Self::SqrtOf256 => lr * (batch / 256.0).sqrt(),
            Self::None => lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(peak: f64, warmup_steps: u64, total_steps: u64) -> Schedule {
        let config = OptimConfig { lr: peak, scaling: Scaling::None, ..OptimConfig::default() };
        Schedule::new(&config, 256, warmup_steps, total_steps)
    }

    /// MoCo: .03, times 0.1 at epochs 120 and 160 of 200, here with 10 steps an epoch.
    #[test]
    fn milestones_multiply_the_rate() {
        let config = OptimConfig {
            lr: 0.03,
            schedule: ScheduleKind::Steps,
            milestones: vec![120.0, 160.0],
            ..OptimConfig::default()
        };
        let schedule =
            Schedule::new(&config, 256, 0, 2000).with_milestones(&config, |epoch| (10.0 * epoch) as u64);
        for (step, lr) in
            [(0, 0.03), (1199, 0.03), (1200, 0.003), (1599, 0.003), (1600, 0.0003), (1999, 0.0003)]
        {
            assert!((schedule.at(step) / lr - 1.0).abs() < 1e-12, "{step}: {}", schedule.at(step));
        }
    }

    #[test]
    fn lines_fall_to_zero() {
        let of = |kind, step| {
            let config = OptimConfig {
                lr: 1.0,
                scaling: Scaling::None,
                schedule: kind,
                decay_share: 0.25,
                ..OptimConfig::default()
            };
            Schedule::new(&config, 256, 10, 110).at(step)
        };
        for (step, linear, stable) in
            [(5, 0.5, 0.5), (10, 1.0, 1.0), (60, 0.5, 1.0), (85, 0.25, 1.0), (100, 0.1, 0.4), (110, 0.0, 0.0)]
        {
            assert!((of(ScheduleKind::Linear, step) - linear).abs() < 1e-12, "linear at {step}");
            assert!((of(ScheduleKind::StableDecay, step) - stable).abs() < 1e-12, "stable-decay at {step}");
        }
    }

    /// Spec 6.3, CIFAR: B = 512, 1000 epochs of 50,000 images, base 1.0.
    #[test]
    fn official_checkpoints_of_the_cosine() {
        let schedule = cosine(2.0, 976, 97_657);
        let expected = [
            (0, 0.0),
            (1, 0.002_049_18),
            (488, 1.0),
            (976, 2.0),
            (10_000, 1.957_315_36),
            (50_000, 0.977_791_89),
        ];
        for (step, lr) in expected {
            assert!(
                (schedule.at(step) - lr).abs() < 1e-8,
                "lr({step}) = {}, expected {lr}",
                schedule.at(step)
            );
        }
        assert_eq!(schedule.at(97_657), 0.0);
    }

    #[test]
    fn linear_and_sqrt_scaling_meet_at_4096() {
        assert!((Scaling::Linear.apply(0.3, 4096) - 4.8).abs() < 1e-12);
        assert!((Scaling::Sqrt.apply(0.075, 4096) - 4.8).abs() < 1e-12);
        assert!((Scaling::Sqrt.apply(0.075, 256) - 1.2).abs() < 1e-12);
        assert_eq!(Scaling::SqrtOf256.apply(1e-3, 256), 1e-3);
        assert_eq!(Scaling::None.apply(0.1, 4096), 0.1);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        let schedule = cosine(0.5, 0, 10);
        assert_eq!(schedule.at(0), 0.5);
        assert!((1..=10).all(|step| schedule.at(step) < schedule.at(step - 1)));
        let constant = Schedule { kind: ScheduleKind::Constant, ..schedule };
        assert!((0..10).all(|step| constant.at(step) == 0.5));
    }
}
