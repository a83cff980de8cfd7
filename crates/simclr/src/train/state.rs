//! State of a run in a checkpoint: weights, buffers, optimizer, step. The order of images and all random numbers are functions of
//! seed and step.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;

use crate::{
    CheckpointError, Plan, RunConfig, checkpoint::Checkpoint, dist::ProcessGroup, methods::Method,
    model::Model, optim::Optimizer, views::AugmentDevice,
};

/// The state after `step` steps.
pub fn capture(plan: &Plan, method: &dyn Method, optimizer: &Optimizer, step: u64) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    let params = method.params().named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(params.chain(method.state()).chain(optimizer.state()));
    let mut state = facts(plan);
    state["step"] = step.into();
    checkpoint.sections.insert("state".into(), state);
    checkpoint.sections.insert("config".into(), json!(plan.config));
    checkpoint.sections.insert("versions".into(), json!({ "simclr": env!("CARGO_PKG_VERSION") }));
    checkpoint
}

/// Properties of data and machine that later steps depend on.
fn facts(plan: &Plan) -> Value {
    json!({
        "seed": plan.config.train.seed,
        "images": plan.images,
        "data_fingerprint": plan.data_fingerprint,
        "precision": plan.precision,
        "augment_device": plan.augment_device,
        "torch_threads": plan.torch_threads,
        "ranks": plan.ranks,
    })
}

/// Augmentation device of a run; the CPU for checkpoints from before there was a choice, `None` without a state.
pub fn augment_device_of(checkpoint: &Checkpoint) -> Option<AugmentDevice> {
    let state = checkpoint.sections.get("state")?;
    Some(serde_json::from_value(augment_device(state)).unwrap_or(AugmentDevice::Cpu))
}

/// The value of `augment_device` or of its former name, `views_on`.
fn augment_device(state: &Value) -> Value {
    let value = |key: &str| state.get(key).cloned();
    value("augment_device").or_else(|| value("views_on")).unwrap_or_else(|| json!(AugmentDevice::Cpu))
}

/// A NaN or infinite value of a tensor of `checkpoint`.
pub fn first_non_finite(checkpoint: &Checkpoint) -> Option<f64> {
    let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    let tensor = checkpoint.tensors.values().find(|tensor| !finite(tensor))?;
    Some(tensor.masked_select(&tensor.isfinite().logical_not()).double_value(&[0]))
}

/// The start of a run, from scratch (default) or from a checkpoint.
#[derive(Debug, Default)]
pub struct Resumed {
    /// First step to run.
    pub step: u64,
    /// Notes for the user: that the run was resumed, and changes that prevent bit-identical results.
    pub notes: Vec<String>,
}

/// Restores method and optimizer from the checkpoint at `path`.
///
/// # Errors
/// [`CheckpointError::Mismatch`] if configuration, images, parameters or optimizer are those of another run;
/// [`CheckpointError::Damaged`] without a step.
pub fn restore(
    path: &Path,
    checkpoint: &Checkpoint,
    plan: &Plan,
    method: &mut dyn Method,
    optimizer: &mut Optimizer,
) -> Result<Resumed, CheckpointError> {
    let state = checkpoint.sections.get("state").cloned().unwrap_or_default();
    refuse_other_run(path, checkpoint, &plan.config)?;
    refuse_other_images(path, &state, &facts(plan))?;
    let mut values = Vec::new();
    for (name, tensor) in method.params().named() {
        values.push((tensor.shallow_clone(), checkpoint.tensor(path, name, &tensor.size())?));
    }
    optimizer.load_state(&|name, shape| checkpoint.tensor(path, name, shape))?;
    method.load_state(&|name, shape| checkpoint.tensor(path, name, shape))?;
    // Parameters are overwritten after all tensors have been found.
    tch::no_grad(|| values.into_iter().for_each(|(mut tensor, value)| tensor.copy_(&value)));
    let step = state["step"].as_u64().ok_or_else(|| CheckpointError::Damaged {
        path: path.to_owned(),
        reason: "no `step` in its state".into(),
    })?;
    let mut notes = vec![format!("resumed after step {step} of {}", plan.total_steps)];
    notes.extend(machine_changes(&state, &facts(plan)));
    Ok(Resumed { step, notes })
}

/// Broadcasts rank 0's weights, buffers, method and optimizer state and step.
pub fn broadcast(
    group: &ProcessGroup,
    method: &mut dyn Method,
    optimizer: &mut Optimizer,
    resumed: Resumed,
) -> Resumed {
    let step = group.broadcast_text(&resumed.step.to_string());
    for (_, tensor) in method.params().named() {
        group.broadcast(tensor);
    }
    let state: BTreeMap<String, Tensor> = optimizer.state().into_iter().chain(method.state()).collect();
    for tensor in state.values() {
        group.broadcast(tensor);
    }
    let own = |name: &str, _: &[i64]| Ok(state[name].shallow_clone());
    optimizer.load_state(&own).expect("own names and shapes");
    method.load_state(&own).expect("own names and shapes");
    Resumed { step: step.parse().expect("rank 0 wrote a number"), notes: resumed.notes }
}

/// Initialises `model` from the checkpoint at `path`: the encoder, the head layers that the model has, and the classifier if both
/// have one.
///
/// # Errors
/// [`CheckpointError::Mismatch`] for another encoder or head; a checkpoint that cannot be read.
pub fn init_from(path: &Path, model: &Model) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::load(path)?;
    let is_stored = |name: &str| !name.starts_with("classifier.") || checkpoint.tensors.contains_key(name);
    let mut values = Vec::new();
    for (name, tensor) in model.params.named().filter(|(name, _)| is_stored(name)) {
        values.push((tensor.shallow_clone(), checkpoint.tensor(path, name, &tensor.size())?));
    }
    tch::no_grad(|| values.into_iter().for_each(|(mut tensor, value)| tensor.copy_(&value)));
    Ok(())
}

/// Warnings about properties of the machine that have changed and that affect rounding.
fn machine_changes(was: &Value, is: &Value) -> Vec<String> {
    let names = [
        ("precision", "compute precision"),
        ("augment_device", "augmentation device"),
        ("torch_threads", "libtorch's threads"),
        ("ranks", "processes"),
    ];
    // Missing in older checkpoints: one process, augmentation on the CPU.
    let value = |state: &Value, key: &str| match state[key].is_null() {
        _ if key == "augment_device" => augment_device(state),
        true => json!(1),
        false => state[key].clone(),
    };
    let warning = |(key, name): &(&str, &str)| {
        let was = value(was, key);
        let is = value(is, key);
        (was != is).then(|| {
            format!(
                "{name} changed from {was} to {is}: results are not bit-identical to an uninterrupted run"
            )
        })
    };
    names.iter().filter_map(warning).collect()
}

/// The order of images is stored as indices, so resuming on other images would silently be another run.
fn refuse_other_images(path: &Path, was: &Value, is: &Value) -> Result<(), CheckpointError> {
    if was["data_fingerprint"] == is["data_fingerprint"] {
        return Ok(());
    }
    let images =
        |state: &Value| format!("{} images with fingerprint {}", state["images"], state["data_fingerprint"]);
    let reason =
        format!("the run was trained on other images: {}, the data now has {}", images(was), images(is));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}

/// Keys that may change when a run is resumed, because results do not depend on them.
const RESUMABLE_CHANGES: [&str; 14] = [
    "data.path",
    // Labels are part of the fingerprint of the images.
    "data.labels",
    "task.subset",
    "task.init_from",
    "data.threads",
    "data.prefetch",
    "data.max_bad_share",
    "train.threads",
    "train.device",
    "train.memory_gib",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.health_every",
    "train.knn_every",
];

fn refuse_other_run(path: &Path, checkpoint: &Checkpoint, config: &RunConfig) -> Result<(), CheckpointError> {
    let saved = checkpoint.sections.get("config").cloned().unwrap_or_default();
    // Through `RunConfig`, which accepts former names of keys.
    let saved = RunConfig::deserialize(&saved).map_or(saved, |config| json!(config));
    let now = json!(config);
    // Keys that did not exist yet behaved like their defaults.
    let default = json!(RunConfig::default());
    let mut differences = Vec::new();
    for section in ["data", "augment", "encoder", "head", "loss", "task", "moco", "optim", "train"] {
        let keys = now[section].as_object().into_iter().flat_map(|object| object.keys());
        for key in keys {
            let name = format!("{section}.{key}");
            let was = saved[section].get(key).unwrap_or(&default[section][key]);
            if !RESUMABLE_CHANGES.contains(&name.as_str()) && *was != now[section][key] {
                differences.push(format!("{name} was {was}, is {}", now[section][key]));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("belongs to another run: {}", differences.join("; "));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_warns_on_machine_change_and_fills_missing_keys() {
        let state = |views: &str| json!({ "precision": "f32", "augment_device": views, "torch_threads": 2, "ranks": 1 });
        let old = json!({ "precision": "f32", "torch_threads": 2 });
        assert_eq!(machine_changes(&old, &state("cpu")), Vec::<String>::new());
        assert_eq!(machine_changes(&state("device"), &state("device")), Vec::<String>::new());
        let [warning] = &machine_changes(&old, &state("device"))[..] else { panic!("one warning") };
        assert!(warning.starts_with("augmentation device changed from \"cpu\" to \"device\""), "{warning}");
        let former = json!({ "precision": "f32", "views_on": "device", "torch_threads": 2, "ranks": 1 });
        assert_eq!(machine_changes(&former, &state("device")), Vec::<String>::new());
    }
}
