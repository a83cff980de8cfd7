//! Range checks of a configuration.

use std::fmt::Display;

use super::RunConfig;
use crate::{
    ConfigError,
    encoder::{BatchNormScope, ResnetD},
    head::HeadKind,
};

impl RunConfig {
    /// # Errors
    /// [`ConfigError::Value`] for the first key out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { data, encoder, head, optim, train, .. } = self;
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
        let has_hidden_layer = head.kind != HeadKind::Nonlinear || head.layers >= 2;
        check(has_hidden_layer, "head.layers", head.layers, "at least 2 layers in a nonlinear head")?;
        check(head.out >= 1, "head.out", head.out, "at least 1")?;
        check(head.hidden >= 0, "head.hidden", head.hidden, "0 (the width of h) or a width")?;
        positive("loss.temperature", self.loss.temperature)?;
        self.validate_task()?;
        self.validate_chunks()?;
        not_negative("optim.lr", optim.lr)?;
        not_negative("optim.weight_decay", optim.weight_decay)?;
        not_negative("optim.warmup_epochs", optim.warmup_epochs)?;
        positive("optim.trust", optim.trust)?;
        if let Some(eps) = optim.eps {
            positive("optim.eps", eps)?;
        }
        for (key, value) in
            [("optim.momentum", optim.momentum), ("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)]
        {
            check((0.0..1.0).contains(&value), key, value, "at least 0 and below 1")?;
        }
        positive("train.epochs", train.epochs)?;
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

    fn validate_task(&self) -> Result<(), ConfigError> {
        let Self { task, head, .. } = self;
        let supervised = !task.objective.is_contrastive();
        let expected = "false, unless task.objective is \"supervised\"";
        check(supervised || !task.frozen, "task.frozen", task.frozen, expected)?;
        let layers = if head.kind == HeadKind::Nonlinear && supervised { head.layers } else { 1 };
        let expected =
            format!("at most {}: layers below the last one of a nonlinear head, with labels", layers - 1);
        check(task.head_layers < layers, "task.head_layers", task.head_layers, &expected)
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
