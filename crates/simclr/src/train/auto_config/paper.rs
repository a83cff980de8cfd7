//! Settings that the paper recommends for small images, small batches and short runs, in place of those for ImageNet that are the defaults.

use crate::{
    RunConfig,
    config::{LINEAR_SCALING_BATCH, SMALL_IMAGE, Written},
    losses::LossKind,
    optim::{OptimKind, Scaling},
    task::MethodKind,
};

/// Sets the keys that are not `written`; returns a line for each choice.
pub(super) fn settings(config: &mut RunConfig, written: &Written) -> Vec<String> {
    if config.task.objective != MethodKind::Contrastive {
        return Vec::new();
    }
    [for_small_images(config, written), for_small_batches(config, written)].into_iter().flatten().collect()
}

/// Appendix B.9: half the colour distortion, no blur, temperature 0.5.
fn for_small_images(config: &mut RunConfig, written: &Written) -> Option<String> {
    if config.train.image_size > SMALL_IMAGE {
        return None;
    }
    let (augment, loss) = (&mut config.augment, &mut config.loss);
    let mut chosen = Vec::new();
    if !written.has("augment.color") {
        augment.color = 0.5;
        chosen.push("augment.color = 0.5");
    }
    if !written.has("augment.blur") {
        augment.blur = 0.0;
        chosen.push("augment.blur = 0");
    }
    if !written.has("loss.temperature") && loss.kind != LossKind::Margin {
        loss.temperature = 0.5;
        chosen.push("loss.temperature = 0.5");
    }
    (!chosen.is_empty())
        .then(|| format!("{}: for images of {SMALL_IMAGE} px or less (paper B.9)", chosen.join(", ")))
}

/// Appendix B.1, and the official README: 0.075 * sqrt(B), which is 0.3 * B / 256 at a batch of 4096.
fn for_small_batches(config: &mut RunConfig, written: &Written) -> Option<String> {
    let is_free = ["optim.kind", "optim.scaling", "optim.lr"].iter().all(|key| !written.has(key));
    if !is_free || config.optim.kind != OptimKind::Lars || config.train.batch >= LINEAR_SCALING_BATCH {
        return None;
    }
    (config.optim.scaling, config.optim.lr) = (Scaling::Sqrt, 0.075);
    Some(format!(
        "optim.scaling = sqrt, optim.lr = 0.075: for batches below {LINEAR_SCALING_BATCH} images (paper B.1)"
    ))
}

/// Section 2.2 has 10 epochs of warm-up in 100. Returns a line if the run has fewer than 100 and the key is not `written`.
pub(super) fn short_warm_up(config: &mut RunConfig, written: &Written) -> Option<String> {
    if config.train.epochs >= 100.0 || written.has("optim.warmup_epochs") {
        return None;
    }
    let epochs = (config.train.epochs * 10.0).round() / 100.0;
    config.optim.warmup_epochs = epochs;
    Some(format!("optim.warmup_epochs = {epochs}: a tenth of the run (paper: 10 of 100 epochs)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(overrides: &[&str]) -> (RunConfig, Vec<String>) {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let (mut config, written) = RunConfig::load_written(None, &overrides).unwrap();
        let lines = settings(&mut config, &written);
        config.validate().unwrap();
        (config, lines)
    }

    #[test]
    fn small_images_and_batches_have_the_settings_of_the_paper() {
        let (config, lines) = chosen(&["train.image_size=32", "train.batch=256"]);
        assert_eq!((config.augment.color, config.augment.blur, config.loss.temperature), (0.5, 0.0, 0.5));
        assert_eq!((config.optim.scaling, config.optim.lr), (Scaling::Sqrt, 0.075));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(config.cautions().is_empty(), "{:?}", config.cautions());
        let (config, lines) = chosen(&["train.image_size=33", "train.batch=512"]);
        let defaults = RunConfig::default();
        assert_eq!(
            (config.augment, config.loss, config.optim),
            (defaults.augment, defaults.loss, defaults.optim)
        );
        assert!(lines.is_empty(), "{lines:?}");
    }

    #[test]
    fn written_keys_are_kept() {
        let small = ["train.image_size=32", "train.batch=64"];
        let (config, lines) = chosen(&[&small[..], &["augment.color=1", "optim.lr=0.2"]].concat());
        assert_eq!((config.augment.color, config.augment.blur), (1.0, 0.0));
        assert_eq!((config.optim.scaling, config.optim.lr), (Scaling::Linear, 0.2));
        assert_eq!(
            lines,
            ["augment.blur = 0, loss.temperature = 0.5: for images of 32 px or less (paper B.9)"]
        );
        for other in ["task.objective=moco", "task.objective=supervised"] {
            assert!(chosen(&[&small[..], &[other]].concat()).1.is_empty(), "{other}");
        }
    }

    #[test]
    fn warm_up_is_a_tenth_of_a_short_run() {
        let warm_up = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            let (mut config, written) = RunConfig::load_written(None, &overrides).unwrap();
            let line = short_warm_up(&mut config, &written);
            (config.optim.warmup_epochs, line.is_some())
        };
        assert_eq!(warm_up(&["train.epochs=100"]), (10.0, false));
        assert_eq!(warm_up(&["train.epochs=30"]), (3.0, true));
        assert_eq!(warm_up(&["train.epochs=4", "optim.warmup_epochs=1"]), (1.0, false));
    }
}
