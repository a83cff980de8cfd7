//! A warning where training does not leave chance: the loss over many steps, against the loss of equal similarities.

use std::collections::VecDeque;

use crate::{Plan, encoder::BatchNormScope, health::Regime};

/// Steps before the first warning: recipes that work are below chance long before.
const FIRST_STEP: u64 = 300;
/// Steps whose mean loss is compared, so that a single batch decides nothing.
const WINDOW: usize = 100;
/// Watches the loss of a run; warns once for each regime.
#[derive(Debug, Default)]
pub struct ChanceMonitor {
    losses: VecDeque<f64>,
    warned: Option<Regime>,
}

impl ChanceMonitor {
    /// Takes the loss of `step` (from 0) and its value at chance. Returns a warning with likely causes, where one is due.
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
        if regime == Regime::Learning || self.warned == Some(regime) {
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

/// Likely causes in this configuration, the specific ones first.
fn causes(plan: &Plan, regime: Regime, step: u64) -> Vec<String> {
    let (config, schedule) = (&plan.config, &plan.schedule);
    let contrastive = config.task.objective.is_contrastive();
    let temperature = config.loss.temperature;
    let rate = format!("learning rate {:.3e} too high", schedule.peak);
    let found = [
        (
            contrastive && config.head.starts_in_plateau(),
            "head.init = official without batch norm behind every dense layer starts in a plateau (auto does not)".into(),
        ),
        (
            contrastive && !(0.01..=1.0).contains(&temperature),
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
        (regime == Regime::AtChance, "images that are all alike, or views that share nothing (`simclr views`)".into()),
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
    fn one_warning_at_step_300_where_the_loss_stays_at_chance() {
        let found = warnings(&plan(&["head.norm=none", "head.init=official"]), std::iter::repeat_n(6.0, 900));
        let [(299, text)] = &found[..] else { panic!("{found:?}") };
        assert!(text.contains("at chance: 6.000, chance 6.000, step 300"), "{text}");
        assert!(text.contains("head.init = official"), "{text}");
    }

    #[test]
    fn no_warning_where_the_loss_falls_or_one_batch_is_high() {
        let falling = (0..900).map(|step| if step % 50 == 0 { 6.5 } else { 6.0 - f64::from(step) * 1e-3 });
        assert_eq!(warnings(&plan(&[]), falling), []);
    }

    #[test]
    fn divergence_after_a_plateau_is_a_second_warning() {
        let losses = (0..900).map(|step| if step < 500 { 6.0 } else { 50.0 });
        let found = warnings(&plan(&["loss.temperature=1e-6"]), losses);
        let [(299, first), (_, second)] = &found[..] else { panic!("{found:?}") };
        assert!(first.contains("at chance") && second.contains("far above chance"), "{found:?}");
        assert!(second.contains("loss.temperature = 0.000001"), "{second}");
    }
}
