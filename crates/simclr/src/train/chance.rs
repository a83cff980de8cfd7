//! Warns if the mean loss over many steps stays at its value at chance (equal similarities) or rises far above it.

use std::collections::VecDeque;

use crate::{Plan, encoder::BatchNormScope, health::Regime, losses::LossKind};

/// Steps before the first warning; working configurations are below chance long before.
const FIRST_STEP: u64 = 300;
/// Steps over which the loss is averaged.
const WINDOW: usize = 100;
/// Watches the loss of a run; warns once per regime.
#[derive(Debug, Default)]
pub(super) struct ChanceMonitor {
    losses: VecDeque<f64>,
    warned: Option<Regime>,
}

impl ChanceMonitor {
    /// Records the loss of `step` (from 0) and its value at chance. Returns a warning with likely causes.
    pub fn observe(&mut self, step: u64, loss: f64, chance: f64, plan: &Plan) -> Option<String> {
        self.losses.push_back(loss);
        if self.losses.len() > WINDOW {
            self.losses.pop_front();
        }
        if step + 1 < FIRST_STEP || self.losses.len() < WINDOW {
            return None;
        }
        let mean = self.losses.iter().sum::<f64>() / WINDOW as f64;
        let regime = Regime::of(mean, chance);
        if regime == Regime::Learning || self.warned == Some(regime) || !decides(plan) {
            return None;
        }
        self.warned = Some(regime);
        let place = match regime {
            Regime::Diverged => "far above chance",
            _ => "at chance",
        };
        let causes = causes(plan, regime, step).join("; ");
        Some(format!(
            "warning: the mean loss of the last {WINDOW} steps is {place}: {mean:.3}, chance {chance:.3}, step {}; likely \
             causes: {causes}",
            step + 1
        ))
    }
}

/// Whether the loss of this configuration can be compared with its value at chance.
fn decides(plan: &Plan) -> bool {
    let config = &plan.config;
    !config.task.objective.is_contrastive() || config.loss.chance_decides()
}

/// Likely causes in this configuration, specific ones first.
fn causes(plan: &Plan, regime: Regime, step: u64) -> Vec<String> {
    let config = &plan.config;
    let schedule = &plan.schedule;
    let contrastive = config.task.objective.is_contrastive();
    let temperature = config.loss.temperature;
    let rate = format!("learning rate {:.3e} too high", schedule.peak);
    let found = [
        (
            contrastive && config.head.starts_in_plateau(),
            "head.init = official without batch norm behind every dense layer starts in a plateau (auto does not)".into(),
        ),
        (
            contrastive && config.loss.kind != LossKind::Margin && !(0.01..=1.0).contains(&temperature),
            format!("loss.temperature = {temperature}: published values lie between 0.05 and 1"),
        ),
        (
            regime == Regime::AtChance && step < schedule.warmup_steps,
            format!("warm-up lasts until step {}", schedule.warmup_steps),
        ),
        (
            contrastive && plan.is_chunked() && config.train.batch_norm == BatchNormScope::Chunk,
            "batch norm over chunks in which both views of an image share statistics".into(),
        ),
        (true, if regime == Regime::Diverged { rate } else { format!("{rate}, or too low") }),
        (regime == Regime::AtChance, "images that are all alike, or views that have nothing in common (see `simclr views`)".into()),
    ];
    found.into_iter().filter(|(applies, _)| *applies).map(|(_, cause)| cause).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(overrides: &[&str]) -> Plan {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let config = crate::RunConfig::load(None, &overrides).unwrap();
        Plan::for_tests(config)
    }

    fn warnings(plan: &Plan, losses: impl Iterator<Item = f64>) -> Vec<(u64, String)> {
        let mut monitor = ChanceMonitor::default();
        let step = |(step, loss)| Some((step, monitor.observe(step, loss, 6.0, plan)?));
        (0..).zip(losses).filter_map(step).collect()
    }

    #[test]
    fn a_loss_at_chance_warns_once_at_step_300() {
        let found = warnings(&plan(&["head.norm=none", "head.init=official"]), std::iter::repeat_n(6.0, 900));
        let [(299, text)] = &found[..] else { panic!("{found:?}") };
        assert!(text.contains("at chance: 6.000, chance 6.000, step 300"), "{text}");
        assert!(text.contains("head.init = official"), "{text}");
    }

    #[test]
    fn a_falling_loss_or_one_high_batch_does_not_warn() {
        let falling = (0..900).map(|step| if step % 50 == 0 { 6.5 } else { 6.0 - f64::from(step) * 1e-3 });
        assert_eq!(warnings(&plan(&[]), falling), []);
    }

    /// A loss of equal similarities that depends on them is no threshold.
    #[test]
    fn nt_logistic_is_not_compared_with_chance() {
        let losses = || std::iter::repeat_n(6.0, 900);
        assert_eq!(warnings(&plan(&["loss.kind=nt-logistic"]), losses()), []);
        assert_eq!(warnings(&plan(&["loss.kind=margin"]), losses()).len(), 1);
    }

    #[test]
    fn divergence_after_a_plateau_warns_again() {
        let losses = (0..900).map(|step| if step < 500 { 6.0 } else { 50.0 });
        let found = warnings(&plan(&["loss.temperature=1e-6"]), losses);
        let [(299, first), (_, second)] = &found[..] else { panic!("{found:?}") };
        assert!(first.contains("at chance") && second.contains("far above chance"), "{found:?}");
        assert!(second.contains("loss.temperature = 0.000001"), "{second}");
    }
}
