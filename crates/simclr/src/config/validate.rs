//! Range checks of a configuration.

use std::fmt::Display;

use super::{RunConfig, limits};
use crate::{
    ConfigError,
    encoder::{BatchNormScope, ResnetD},
    head::HeadKind,
    losses::{LossConfig, Reduction},
    optim::{OptimConfig, ScheduleKind},
    task::MethodKind,
};

/// Expected batch norm of MoCo with shuffling BN.
pub(super) const SHUFFLED: &str =
    "chunk-shuffled or global with moco.shuffle = true, or moco.shuffle = false";

impl RunConfig {
    /// # Errors
    /// [`ConfigError::Value`] for the first key out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { data, encoder, head, optim, train, .. } = self;
        limits::check(self)?;
        share("data.max_bad_share", data.max_bad_share)?;
        check(data.prefetch >= 1, "data.prefetch", data.prefetch, "at least 1")?;
        data.range.validate()?;
        self.augment.validate()?;
        self.transform.validate()?;
        let width = encoder.width;
        check(width.is_finite() && width >= 1.0 / 16.0, "encoder.width", width, "at least 1/16")?;
        let ratio = encoder.sk_ratio;
        check((0.0..=1.0).contains(&ratio), "encoder.sk_ratio", ratio, "0 (no selective kernels) to 1")?;
        let has_blocks = encoder.is_resnet() || ratio == 0.0 && encoder.effective_resnet_d() == ResnetD::Off;
        let name = encoder.name.as_str();
        check(has_blocks, "encoder.name", name, "a ResNet with encoder.sk_ratio or encoder.resnet_d")?;
        let side = train.image_size as i64;
        let is_divided = encoder.patch >= 1 && (!encoder.is_vit() || side % encoder.patch == 0);
        check(
            is_divided,
            "encoder.patch",
            encoder.patch,
            &format!("a divisor of train.image_size = {side}"),
        )?;
        let has_hidden_layer = head.kind != HeadKind::Nonlinear || head.layers >= 2;
        check(has_hidden_layer, "head.layers", head.layers, "at least 2 layers in a nonlinear head")?;
        check(head.out >= 1, "head.out", head.out, "at least 1")?;
        check(head.hidden >= 0, "head.hidden", head.hidden, "0 (the width of h) or a width")?;
        self.loss.validate()?;
        self.validate_task()?;
        self.validate_distillation()?;
        self.validate_moco()?;
        self.validate_groups()?;
        self.validate_chunks()?;
        not_negative("optim.lr", optim.lr)?;
        not_negative("optim.weight_decay", optim.weight_decay)?;
        not_negative("optim.warmup_epochs", optim.warmup_epochs)?;
        positive("optim.lars_trust_coefficient", optim.lars_trust_coefficient)?;
        self.validate_milestones()?;
        if let Some(eps) = optim.eps {
            positive("optim.eps", eps)?;
        }
        for (key, value) in
            [("optim.momentum", optim.momentum), ("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)]
        {
            check((0.0..1.0).contains(&value), key, value, "at least 0 and below 1")?;
        }
        let decay_share = optim.decay_share;
        let is_share = decay_share > 0.0 && decay_share <= 1.0;
        check(is_share, "optim.decay_share", decay_share, "a share above 0, at most 1")?;
        positive("train.epochs", train.epochs)?;
        not_negative("train.minutes", train.minutes)?;
        check(
            train.batch >= 2,
            "train.batch",
            train.batch,
            "at least 2 images, so that there are negatives",
        )?;
        let momentum = train.batch_norm_momentum;
        check(
            momentum > 0.0 && momentum <= 1.0,
            "train.batch_norm_momentum",
            momentum,
            "a weight above 0, at most 1",
        )?;
        check(
            (8..=2048).contains(&train.image_size),
            "train.image_size",
            train.image_size,
            "8 to 2048 pixels",
        )?;
        self.validate_view_sizes()?;
        not_negative("train.memory_gib", train.memory_gib)?;
        not_negative("train.checkpoint_minutes", train.checkpoint_minutes)?;
        check(train.keep_checkpoints >= 1, "train.keep_checkpoints", train.keep_checkpoints, "at least 1")?;
        check(train.health_every >= 1, "train.health_every", train.health_every, "at least 1 step")?;
        not_negative("train.knn_every", train.knn_every)?;
        let timeout = self.dist.heartbeat_timeout_s;
        // Heartbeats come every second and may be late on a busy machine.
        let is_valid = timeout >= 3.0 && timeout.is_finite();
        check(is_valid, "dist.heartbeat_timeout_s", timeout, "at least 3 seconds")?;
        positive("dist.straggler_timeout_min", self.dist.straggler_timeout_min)
    }

    fn validate_view_sizes(&self) -> Result<(), ConfigError> {
        let (view_sizes, encoder) = (&self.train.view_sizes, &self.encoder);
        let value = format!("{view_sizes:?}");
        let rises = view_sizes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let valid = |&(share, size): &(f64, usize)| (0.0..1.0).contains(&share) && (8..=2048).contains(&size);
        let expected = "pairs of a share of the steps, at least 0, below 1 and rising, and 8 to 2048 pixels";
        check(rises && view_sizes.iter().all(valid), "train.view_sizes", &value, expected)?;
        let resizable = encoder.file.is_none() && !encoder.is_vit();
        let expected = "none with a vision transformer or encoder.file: their image size is fixed";
        check(view_sizes.is_empty() || resizable, "train.view_sizes", &value, expected)
    }

    fn validate_task(&self) -> Result<(), ConfigError> {
        let Self { task, head, .. } = self;
        let supervised = !task.objective.is_contrastive();
        let expected = "false, unless task.objective is \"supervised\"";
        check(supervised || !task.frozen, "task.frozen", task.frozen, expected)?;
        let layers = if head.kind == HeadKind::Nonlinear && supervised { head.layers } else { 1 };
        let expected = "no table: supervised training has one view per image";
        let is_valid = !supervised || self.augment.second_view.is_none();
        check(is_valid, "augment.second_view", "[augment.second_view]", expected)?;
        let expected =
            format!("at most {}: layers below the last one of a nonlinear head, with labels", layers - 1);
        check(task.head_layers < layers, "task.head_layers", task.head_layers, &expected)
    }

    fn validate_distillation(&self) -> Result<(), ConfigError> {
        let Self { distill, task, .. } = self;
        positive("distill.temperature", distill.temperature)?;
        share("distill.label_weight", distill.label_weight)?;
        let distils = task.objective == MethodKind::Distillation;
        let expected = "the run folder of a classifier, for task.objective = \"distillation\"";
        check(!distils || distill.teacher.is_some(), "distill.teacher", "\"\"", expected)
    }

    fn validate_milestones(&self) -> Result<(), ConfigError> {
        let OptimConfig { milestones, milestone_factor, schedule, .. } = &self.optim;
        positive("optim.milestone_factor", *milestone_factor)?;
        let rising = milestones.windows(2).all(|pair| pair[0] < pair[1]);
        let are_epochs = milestones.iter().all(|epoch| epoch.is_finite() && *epoch > 0.0);
        let value = format!("{milestones:?}");
        check(rising && are_epochs, "optim.milestones", &value, "epochs above 0 in rising order")?;
        let expected = "at least one epoch with optim.schedule = \"steps\", none with others";
        check(
            milestones.is_empty() != (*schedule == ScheduleKind::Steps),
            "optim.milestones",
            &value,
            expected,
        )
    }

    fn validate_moco(&self) -> Result<(), ConfigError> {
        let Self { task, moco, loss, train, .. } = self;
        let momentum = moco.momentum;
        check((0.0..=1.0).contains(&momentum), "moco.momentum", momentum, "a weight between 0 and 1")?;
        let hidden = moco.predictor_hidden;
        check((1..=65_536).contains(&hidden), "moco.predictor_hidden", hidden, "1 to 65536 units")?;
        if !task.objective.has_momentum_encoder() {
            return Ok(());
        }
        let is_moco = task.objective == MethodKind::Moco;
        let expected = "false: the losses of simclr-momentum and moco-v3 have both directions already";
        check(is_moco || !moco.symmetric, "moco.symmetric", moco.symmetric, expected)?;
        let keys = train.batch * if is_moco && !moco.symmetric { 1 } else { 2 };
        let expected = format!("at least {keys}: the keys of one step");
        let fits = moco.queue >= keys || !task.objective.has_queue();
        check(fits, "moco.queue", moco.queue, &expected)?;
        check(loss.normalize, "loss.normalize", false, "true: keys in the queue have unit length")?;
        let (temperature, reduction) = (loss.temperature, loss.reduction);
        let is_plain = *loss == LossConfig { temperature, reduction, ..LossConfig::default() };
        let expected = "no key but temperature and reduction, with a momentum encoder: the loss is InfoNCE";
        check(is_plain, "[loss]", "a variant of NT-Xent or another loss", expected)?;
        let expected = "paper: the loss of MoCo is a mean over queries";
        let is_paper = task.objective == MethodKind::SimclrMomentum || loss.reduction == Reduction::Paper;
        check(is_paper, "loss.reduction", "official", expected)?;
        let leaks =
            is_moco && moco.shuffle && train.is_chunked() && train.batch_norm == BatchNormScope::Chunk;
        check(!leaks, "train.batch_norm", "chunk", SHUFFLED)
    }

    fn validate_groups(&self) -> Result<(), ConfigError> {
        let Self { train, encoder, .. } = self;
        let groups = train.batch_norm_groups;
        let most = (train.batch / 2).max(1);
        let expected = format!("1 to {most}: groups of at least 2 images");
        check((1..=most).contains(&groups), "train.batch_norm_groups", groups, &expected)?;
        let expected = "1 with chunks, which are groups (train.batch_norm = \"chunk\")";
        check(groups == 1 || !train.is_chunked(), "train.batch_norm_groups", groups, expected)?;
        let expected = "1 with a TorchScript module (encoder.file), which has its own batch norm";
        check(groups == 1 || encoder.file.is_none(), "train.batch_norm_groups", groups, expected)
    }

    fn validate_chunks(&self) -> Result<(), ConfigError> {
        let Self { train, task, .. } = self;
        let chunk = train.chunk;
        let norm = train.batch_norm;
        check(chunk != 1, "train.chunk", chunk, "0 (the whole batch), or at least 2 images")?;
        let shuffled = norm == BatchNormScope::ChunkShuffled;
        let has_pairs = task.objective.is_contrastive();
        let expected = "global or chunk: supervised training has one view per image";
        check(!shuffled || has_pairs, "train.batch_norm", norm.as_str(), expected)?;
        let is_script = self.encoder.file.is_some() && train.is_chunked();
        let expected = "chunk or chunk-shuffled: the batch norm of a TorchScript module (encoder.file) covers one chunk only";
        check(!is_script || norm != BatchNormScope::Global, "train.batch_norm", norm.as_str(), expected)?;
        let expected = "0 with task.frozen, which has no backward pass through the encoder";
        check(!(task.frozen && train.is_chunked()), "train.chunk", chunk, expected)
    }
}

fn check(valid: bool, key: &str, value: impl Display, expected: &str) -> Result<(), ConfigError> {
    if valid {
        return Ok(());
    }
    Err(ConfigError::Value { key: key.into(), value: value.to_string(), expected: expected.into() })
}

fn positive(key: &str, value: f64) -> Result<(), ConfigError> {
    check(value.is_finite() && value > 0.0, key, value, "a number above 0")
}

fn not_negative(key: &str, value: f64) -> Result<(), ConfigError> {
    check(value.is_finite() && value >= 0.0, key, value, "a number of at least 0")
}

fn share(key: &str, value: f64) -> Result<(), ConfigError> {
    check((0.0..=1.0).contains(&value), key, value, "a share between 0 and 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(overrides: &[&str]) -> Option<String> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        RunConfig::load(None, &overrides).err().map(|error| error.to_string())
    }

    #[test]
    fn keys_of_momentum_methods_have_bounds() {
        let moco = "task.objective=moco";
        let memory = "task.objective=simclr-momentum";
        let v3 = "task.objective=moco-v3";
        for (set, expected) in [
            (&[moco, "moco.queue=255"][..], "moco.queue = 255: expected at least 256"),
            (&[moco, "moco.queue=511", "moco.symmetric=true"], "moco.queue = 511: expected at least 512"),
            (&[memory, "moco.queue=511"], "moco.queue = 511: expected at least 512"),
            (&["moco.momentum=1.1"], "moco.momentum = 1.1"),
            (&[moco, "moco.momentum=nan"], "moco.momentum = NaN"),
            (&[memory, "moco.symmetric=true"], "moco.symmetric = true: expected false"),
            (&[v3, "moco.symmetric=true"], "moco.symmetric = true: expected false"),
            (&[v3, "moco.predictor_hidden=0"], "moco.predictor_hidden = 0: expected 1 to 65536"),
            (&[v3, "loss.decoupled=true"], "[loss] = a variant of NT-Xent"),
            (&[v3, "loss.reduction=official"], "loss.reduction = official"),
            (&[moco, "loss.normalize=false"], "loss.normalize = false"),
            (&[memory, "loss.decoupled=true"], "[loss] = a variant of NT-Xent"),
            (&[moco, "loss.kind=margin"], "[loss] = a variant of NT-Xent"),
            (&[moco, "loss.reduction=official"], "loss.reduction = official"),
            (&[moco, "train.chunk=64", "train.batch_norm=chunk"], "moco.shuffle = false"),
            (&["train.batch_norm_groups=0"], "train.batch_norm_groups = 0: expected 1 to 128"),
            (&["train.batch_norm_groups=129"], "train.batch_norm_groups = 129"),
            (
                &["train.batch_norm_groups=2", "train.chunk=64"],
                "train.batch_norm_groups = 2: expected 1 with chunks",
            ),
            (
                &["train.view_sizes=[[0.5,24],[0.5,32]]"],
                "train.view_sizes = [(0.5, 24), (0.5, 32)]: expected pairs",
            ),
            (&["train.view_sizes=[[1.0,24]]"], "train.view_sizes"),
            (&["train.view_sizes=[[0.0,4]]"], "train.view_sizes"),
            (&["train.view_sizes=[[0.0,16]]", "encoder.name=vit-tiny"], "none with a vision transformer"),
            (&["train.minutes=-1"], "train.minutes = -1"),
            (&["optim.decay_share=0"], "optim.decay_share = 0"),
            (&["optim.schedule=steps"], "optim.milestones = []"),
            (&["optim.milestones=[3.0]"], "optim.milestones = [3.0]"),
            (&["optim.schedule=steps", "optim.milestones=[3.0,2.0]"], "rising order"),
            (
                &["optim.schedule=steps", "optim.milestones=[1.0]", "optim.milestone_factor=0"],
                "optim.milestone_factor",
            ),
        ] {
            let found = error(set).unwrap_or_else(|| panic!("{set:?} is accepted"));
            assert!(found.contains(expected), "{set:?}: {found}");
        }
        for set in [
            &[moco, "moco.queue=256"][..],
            &[memory, "loss.reduction=official"],
            &[moco, "moco.symmetric=true", "moco.queue=512", "train.batch_norm_groups=128"],
            &[moco, "train.chunk=64", "train.batch_norm=chunk", "moco.shuffle=false"],
            &[moco, "train.chunk=64", "train.batch_norm=chunk-shuffled"],
            &["optim.schedule=steps", "optim.milestones=[120.0,160.0]"],
            &["train.view_sizes=[[0.0,24],[0.75,32]]", "train.minutes=10"],
        ] {
            assert_eq!(error(set), None, "{set:?}");
        }
    }
}
