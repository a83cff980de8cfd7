//! Everything that a resumed run needs: weights, batch-norm buffers, optimizer, step. Order of images and randomness
//! follow from (seed, step) alone.

use std::path::Path;

use serde_json::json;

use crate::{CheckpointError, RunConfig, checkpoint::Checkpoint, model::SimClr, optim::Optimizer};

/// A checkpoint of the run after `step` steps.
pub fn capture(config: &RunConfig, model: &SimClr, optimizer: &Optimizer, step: u64) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    let owned = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(owned.chain(optimizer.state()));
    checkpoint.sections.insert("state".into(), json!({ "step": step, "seed": config.train.seed }));
    checkpoint.sections.insert("config".into(), json!(config));
    checkpoint.sections.insert("versions".into(), json!({ "simclr": env!("CARGO_PKG_VERSION") }));
    checkpoint
}

/// Puts a checkpoint into model and optimizer, and returns the step to go on with.
///
/// # Errors
/// [`CheckpointError::Mismatch`] where it is of another run: other model, data order or optimizer.
pub fn restore(
    path: &Path,
    checkpoint: &Checkpoint,
    config: &RunConfig,
    model: &SimClr,
    optimizer: &mut Optimizer,
) -> Result<u64, CheckpointError> {
    refuse_other_run(path, checkpoint, config)?;
    let mut values = Vec::new();
    for (name, tensor) in model.params.named() {
        values.push((tensor.shallow_clone(), checkpoint.tensor(path, name, &tensor.size())?));
    }
    optimizer.load_state(&|name, shape| checkpoint.tensor(path, name, shape))?;
    // Only when everything is there and fits is anything overwritten.
    tch::no_grad(|| values.into_iter().for_each(|(mut tensor, value)| tensor.copy_(&value)));
    let step = checkpoint.sections.get("state").and_then(|state| state["step"].as_u64());
    step.ok_or_else(|| CheckpointError::Damaged { path: path.to_owned(), reason: "it names no step".into() })
}

/// Keys that may change between a run and its resumption: they do not touch what is computed.
const FREE: [&str; 10] = [
    "data.path",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
    "train.threads",
    "train.device",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.health_every",
    "train.knn_every",
];

fn refuse_other_run(path: &Path, checkpoint: &Checkpoint, config: &RunConfig) -> Result<(), CheckpointError> {
    let saved = checkpoint.sections.get("config").cloned().unwrap_or_default();
    let now = json!(config);
    let mut differences = Vec::new();
    for section in ["data", "augment", "encoder", "head", "loss", "optim", "train"] {
        let keys = now[section].as_object().into_iter().flat_map(|object| object.keys());
        for key in keys {
            let name = format!("{section}.{key}");
            if !FREE.contains(&name.as_str()) && saved[section][key] != now[section][key] {
                differences.push(format!("{name} was {}, is {}", saved[section][key], now[section][key]));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("it is of another run: {}", differences.join("; "));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}
