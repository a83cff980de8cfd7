//! Written keys that the other keys leave without effect, such as `moco.queue` in a run of SimCLR.

use simclr_data::augment::AugmentConfig;

use super::{RunConfig, Written};
use crate::{
    encoder::EncoderName,
    head::HeadKind,
    losses::LossKind,
    optim::{OptimKind, ScheduleKind},
    task::MethodKind,
};

/// Keys that act under one condition only. Combinations that validation refuses are not listed.
struct Rule {
    keys: &'static [&'static str],
    acts: fn(&RunConfig) -> bool,
    /// The condition, in keys.
    needs: &'static str,
}

const RULES: [Rule; 29] = [
    Rule {
        keys: &["moco.momentum", "moco.momentum_schedule"],
        acts: |config| config.task.objective.has_momentum_encoder(),
        needs: "task.objective = \"moco\", \"moco-v3\" or \"simclr-momentum\"",
    },
    Rule {
        keys: &["moco.queue"],
        acts: |config| config.task.objective.has_queue(),
        needs: "task.objective = \"moco\" or \"simclr-momentum\"",
    },
    Rule {
        keys: &["moco.symmetric", "moco.shuffle"],
        acts: |config| config.task.objective == MethodKind::Moco,
        needs: "task.objective = \"moco\"",
    },
    Rule {
        keys: &["moco.predictor_hidden"],
        acts: |config| config.task.objective == MethodKind::MocoV3,
        needs: "task.objective = \"moco-v3\"",
    },
    Rule {
        keys: &["distill.teacher", "distill.temperature", "distill.label_weight"],
        acts: |config| config.task.objective == MethodKind::Distillation,
        needs: "task.objective = \"distillation\"",
    },
    Rule {
        keys: &["distill.labelled"],
        acts: |config| config.task.objective == MethodKind::Distillation && config.distill.label_weight > 0.0,
        needs: "task.objective = \"distillation\" with distill.label_weight above 0",
    },
    Rule {
        keys: &["loss.kind", "loss.reduction", "loss.negatives", "loss.decoupled", "loss.normalize"],
        acts: |config| config.task.objective.is_contrastive(),
        needs: "a contrastive task.objective",
    },
    Rule {
        keys: &["loss.temperature"],
        acts: |config| config.task.objective.is_contrastive() && config.loss.kind != LossKind::Margin,
        needs: "a contrastive task.objective, and loss.kind other than \"margin\"",
    },
    Rule {
        keys: &["head.out", "head.norm", "head.init"],
        acts: |config| config.head.kind != HeadKind::None,
        needs: "head.kind other than \"none\"",
    },
    Rule {
        keys: &["head.layers", "head.hidden"],
        acts: |config| config.head.kind == HeadKind::Nonlinear,
        needs: "head.kind = \"nonlinear\"",
    },
    Rule {
        keys: &["encoder.name", "encoder.width", "encoder.init"],
        acts: |config| config.encoder.file.is_none(),
        needs: "encoder.file unset",
    },
    Rule {
        keys: &["encoder.stem", "encoder.padding"],
        acts: |config| config.encoder.is_resnet(),
        needs: "a ResNet (encoder.name)",
    },
    Rule {
        keys: &["encoder.zero_gamma"],
        acts: |config| {
            let encoder = &config.encoder;
            encoder.is_resnet() || encoder.file.is_none() && encoder.name == EncoderName::ConvC7
        },
        needs: "a ResNet or conv-c7 (encoder.name)",
    },
    Rule {
        keys: &["encoder.shortcut"],
        acts: |config| {
            let basic_blocks = matches!(config.encoder.name, EncoderName::Resnet18 | EncoderName::Resnet34);
            config.encoder.file.is_none() && basic_blocks
        },
        needs: "encoder.name = \"resnet18\" or \"resnet34\"",
    },
    Rule {
        keys: &["encoder.patch", "encoder.positions", "encoder.freeze_patches"],
        acts: |config| config.encoder.is_vit(),
        needs: "a vision transformer (encoder.name)",
    },
    Rule {
        keys: &["optim.momentum", "optim.nesterov"],
        acts: |config| matches!(config.optim.kind, OptimKind::Lars | OptimKind::Sgd | OptimKind::Muon),
        needs: "optim.kind = \"lars\", \"sgd\" or \"muon\"",
    },
    Rule {
        keys: &["optim.lars_trust_coefficient", "optim.lars_norm"],
        acts: |config| config.optim.kind == OptimKind::Lars,
        needs: "optim.kind = \"lars\"",
    },
    Rule {
        keys: &["optim.lr_in_momentum"],
        acts: |config| matches!(config.optim.kind, OptimKind::Lars | OptimKind::Sgd),
        needs: "optim.kind = \"lars\" or \"sgd\"",
    },
    Rule {
        keys: &["optim.beta1", "optim.beta2", "optim.eps"],
        acts: |config| matches!(config.optim.kind, OptimKind::Adamw | OptimKind::Lamb | OptimKind::Muon),
        needs: "optim.kind = \"adamw\", \"lamb\" or \"muon\"",
    },
    Rule {
        keys: &["optim.lamb_bias_correction"],
        acts: |config| config.optim.kind == OptimKind::Lamb,
        needs: "optim.kind = \"lamb\"",
    },
    Rule {
        keys: &["optim.milestone_factor"],
        acts: |config| config.optim.schedule == ScheduleKind::Steps,
        needs: "optim.schedule = \"steps\"",
    },
    Rule {
        keys: &["optim.decay_share"],
        acts: |config| config.optim.schedule == ScheduleKind::StableDecay,
        needs: "optim.schedule = \"stable-decay\"",
    },
    Rule {
        keys: &["train.knn_images"],
        acts: |config| config.train.knn_every > 0.0,
        needs: "train.knn_every above 0",
    },
    Rule {
        keys: &["augment.crop_scale", "augment.crop_ratio", "augment.crop_sampler"],
        acts: |config| any_view(config, |view| view.crop),
        needs: "augment.crop = true",
    },
    Rule {
        keys: &["augment.jitter", "augment.jitter_strengths", "augment.brightness", "augment.color_model"],
        acts: |config| any_view(config, |view| view.color * view.jitter > 0.0),
        needs: "augment.color and augment.jitter above 0",
    },
    Rule {
        keys: &["augment.blur_sigma"],
        acts: |config| any_view(config, |view| view.blur > 0.0),
        needs: "augment.blur above 0",
    },
    Rule {
        keys: &["augment.motion_blur_length"],
        acts: |config| any_view(config, |view| view.motion_blur > 0.0),
        needs: "augment.motion_blur above 0",
    },
    Rule {
        keys: &["augment.solarize_threshold"],
        acts: |config| any_view(config, |view| view.solarize > 0.0),
        needs: "augment.solarize above 0",
    },
    Rule {
        keys: &["augment.noise_sigma"],
        acts: |config| any_view(config, |view| view.noise > 0.0),
        needs: "augment.noise above 0",
    },
];

fn any_view(config: &RunConfig, acts: fn(&AugmentConfig) -> bool) -> bool {
    config.augment.of_views().iter().any(acts)
}

impl Written {
    /// A line for each written key that has another value than its default and does not act in `config`.
    pub fn without_effect(&self, config: &RunConfig) -> Vec<String> {
        let all_keys = |config: &RunConfig| Self::new(config.to_table(), Vec::new());
        let (default, config_table) = (all_keys(&RunConfig::default()), all_keys(config));
        let idle = RULES.iter().filter(|rule| !(rule.acts)(config));
        let keys = idle.flat_map(|rule| rule.keys.iter().map(|&key| (key, rule.needs)));
        let line = |(key, needs): (&str, &str)| {
            let value = self.value(key).filter(|_| config_table.value(key) != default.value(key))?;
            Some(format!("{key} = {value} has no effect: it needs {needs}"))
        };
        keys.filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::recipes;

    fn lines(overrides: &[&str]) -> Vec<String> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        let (config, written) = RunConfig::load_written(None, &overrides).unwrap();
        written.without_effect(&config)
    }

    /// Settings, other settings with which they have no effect, and others with which they do.
    const CASES: [(&[&str], &[&str], &[&str]); 28] = [
        (&["moco.momentum=0.9", "moco.momentum_schedule=cosine"], &[], &["task.objective=moco-v3"]),
        (&["moco.queue=4096"], &["task.objective=moco-v3"], &["task.objective=simclr-momentum"]),
        (&["moco.symmetric=true", "moco.shuffle=false"], &[], &["task.objective=moco"]),
        (&["moco.predictor_hidden=64"], &["task.objective=moco"], &["task.objective=moco-v3"]),
        (
            &[
                "distill.teacher=t",
                "distill.temperature=0.1",
                "distill.label_weight=0.5",
                "distill.labelled=l",
            ],
            &[],
            &["task.objective=distillation"],
        ),
        (
            &[
                "loss.kind=nt-logistic",
                "loss.reduction=official",
                "loss.negatives=other-view",
                "loss.normalize=false",
            ],
            &["task.objective=supervised"],
            &[],
        ),
        (&["loss.decoupled=true"], &["task.objective=supervised"], &[]),
        (&["loss.temperature=0.2"], &["loss.kind=margin"], &["loss.kind=nt-logistic"]),
        (
            &["head.out=64", "head.norm=hidden", "head.init=linear"],
            &["head.kind=none"],
            &["head.kind=linear"],
        ),
        (&["head.layers=3", "head.hidden=64"], &["head.kind=linear"], &[]),
        (&["encoder.name=resnet18", "encoder.width=2", "encoder.init=he"], &["encoder.file=m.pt"], &[]),
        (
            &["encoder.stem=cifar", "encoder.padding=same"],
            &["encoder.name=conv-c7"],
            &["encoder.name=resnet50"],
        ),
        (&["encoder.zero_gamma=false"], &["encoder.name=conv-c4"], &["encoder.name=conv-c7"]),
        (&["encoder.shortcut=projection"], &["encoder.name=resnet50"], &["encoder.name=resnet18"]),
        (
            &["encoder.patch=32", "encoder.positions=fixed", "encoder.freeze_patches=true"],
            &["encoder.name=resnet50"],
            &["encoder.name=vit-small"],
        ),
        (&["optim.momentum=0.8", "optim.nesterov=true"], &["optim.kind=adamw"], &["optim.kind=muon"]),
        (&["optim.lars_trust_coefficient=0.1", "optim.lars_norm=separate"], &["optim.kind=sgd"], &[]),
        (&["optim.lr_in_momentum=false"], &["optim.kind=muon"], &["optim.kind=sgd"]),
        (
            &["optim.beta1=0.5", "optim.beta2=0.9", "optim.eps=1e-5", "optim.lamb_bias_correction=false"],
            &["optim.kind=sgd"],
            &["optim.kind=lamb"],
        ),
        (&["optim.milestone_factor=0.5"], &[], &["optim.schedule=steps", "optim.milestones=[2]"]),
        (&["optim.decay_share=0.5"], &[], &["optim.schedule=stable-decay"]),
        (&["train.knn_images=64"], &["train.knn_every=0"], &[]),
        (
            &["augment.crop_scale=[0.5,1]", "augment.crop_ratio=[1,1]", "augment.crop_sampler=tensorflow"],
            &["augment.crop=false"],
            &["augment.crop=false", "augment.second_view.crop=true"],
        ),
        (
            &[
                "augment.jitter=0.5",
                "augment.jitter_strengths=[0.1,0.1,0.1,0.1]",
                "augment.brightness=additive",
                "augment.color_model=torchvision",
            ],
            &["augment.color=0"],
            &["augment.color=0", "augment.second_view.color=1"],
        ),
        (&["augment.blur_sigma=[1,2]"], &["augment.blur=0"], &["augment.blur=0.1"]),
        (&["augment.motion_blur_length=[4,5]"], &[], &["augment.motion_blur=0.1"]),
        (&["augment.solarize_threshold=0.1"], &[], &["augment.solarize=0.1"]),
        (&["augment.noise_sigma=0.2"], &[], &["augment.noise=0.1"]),
    ];

    #[test]
    fn keys_are_listed_while_they_have_no_effect() {
        let mut listed = Vec::new();
        for (settings, without, with) in CASES {
            let lines = lines(&[settings, without].concat());
            assert_eq!(lines.len(), settings.len(), "{settings:?} {lines:?}");
            for setting in settings {
                let key = setting.split('=').next().unwrap();
                assert!(lines.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key} {lines:?}");
                listed.push(key);
            }
            assert_eq!(self::lines(&[settings, with].concat()), Vec::<String>::new(), "{settings:?}");
        }
        listed.sort_unstable();
        let mut all: Vec<&str> = RULES.iter().flat_map(|rule| rule.keys).copied().collect();
        all.sort_unstable();
        assert_eq!(listed, all);
    }

    #[test]
    fn a_line_states_value_and_condition() {
        let expected =
            "moco.queue = 4096 has no effect: it needs task.objective = \"moco\" or \"simclr-momentum\"";
        assert_eq!(lines(&["moco.queue=4096", "moco.symmetric=false"]), [expected]);
    }

    #[test]
    fn every_key_of_a_recipe_has_an_effect() {
        for (name, _) in recipes::RECIPES {
            let (config, written) =
                RunConfig::load_written(Some(&recipes::path(name).unwrap()), &[]).unwrap();
            assert_eq!(written.without_effect(&config), Vec::<String>::new(), "{name}");
        }
    }
}
