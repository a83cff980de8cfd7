//! Every range of a configuration, each refused with its key, its value and what is accepted.

use std::fmt::Display;

use super::RunConfig;
use crate::{ConfigError, encoder::BatchNormScope, head::HeadKind};

impl RunConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// The key, its value and what is accepted.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (data, encoder, head, optim, train) =
            (&self.data, &self.encoder, &self.head, &self.optim, &self.train);
        share("data.max_bad_share", data.max_bad_share)?;
        check(data.prefetch >= 1, "data.prefetch", data.prefetch, "at least 1")?;
        data.range.validate()?;
        self.augment.validate()?;
        self.transform.validate()?;
        let width = encoder.width;
        check(width.is_finite() && width >= 1.0 / 16.0, "encoder.width", width, "at least 1/16")?;
        let deep = head.kind != HeadKind::Nonlinear || head.layers >= 2;
        check(deep, "head.layers", head.layers, "at least 2 layers in a nonlinear head")?;
        check(head.out >= 1, "head.out", head.out, "at least 1")?;
        check(head.hidden >= 0, "head.hidden", head.hidden, "0 (the width of h) or a width")?;
        positive("loss.temperature", self.loss.temperature)?;
        self.validate_task()?;
        self.validate_chunks()?;
        not_negative("optim.lr", optim.lr)?;
        not_negative("optim.weight_decay", optim.weight_decay)?;
        not_negative("optim.warmup_epochs", optim.warmup_epochs)?;
        positive("optim.trust", optim.trust)?;
        optim.eps.map_or(Ok(()), |eps| positive("optim.eps", eps))?;
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
        let weight = momentum > 0.0 && momentum <= 1.0;
        check(weight, "train.batch_norm_momentum", momentum, "a weight above 0, at most 1")?;
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
        // A sign of life comes every second, and a busy machine may be late with it.
        check(
            timeout >= 3.0 && timeout.is_finite(),
            "dist.heartbeat_timeout_s",
            timeout,
            "at least 3 seconds",
        )?;
        positive("dist.straggler_timeout_min", self.dist.straggler_timeout_min)
    }
}

impl RunConfig {
    fn validate_task(&self) -> Result<(), ConfigError> {
        let (task, head) = (&self.task, &self.head);
        let supervised = !task.objective.is_contrastive();
        let why = "false, unless task.objective is \"supervised\"";
        check(supervised || !task.frozen, "task.frozen", task.frozen, why)?;
        let layers = if head.kind == HeadKind::Nonlinear && supervised { head.layers } else { 1 };
        let most =
            format!("at most {}: layers below the last one of a nonlinear head, with labels", layers - 1);
        check(task.head_layers < layers, "task.head_layers", task.head_layers, &most)
    }
}

impl RunConfig {
    fn validate_chunks(&self) -> Result<(), ConfigError> {
        let (train, task) = (&self.train, &self.task);
        let (chunk, over) = (train.chunk, train.batch_norm);
        check(chunk != 1, "train.chunk", chunk, "0 (the whole batch), or at least 2 images")?;
        let shuffled = over == BatchNormScope::ChunkShuffled;
        let pairs = task.objective.is_contrastive();
        let why = "global or chunk: with labels there is one view of each image";
        check(!shuffled || pairs, "train.batch_norm", over.as_str(), why)?;
        let foreign = self.encoder.file.is_some() && train.is_chunked();
        let why = "chunk or chunk-shuffled: the batch norm inside a TorchScript module (encoder.file) sees its own chunk only";
        check(!foreign || over != BatchNormScope::Global, "train.batch_norm", over.as_str(), why)?;
        let why = "0 with task.frozen, which needs no memory for a backward pass through the encoder";
        check(!(task.frozen && train.is_chunked()), "train.chunk", chunk, why)
    }
}

fn check(fine: bool, key: &str, value: impl Display, expected: &str) -> Result<(), ConfigError> {
    if fine {
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
