//! Everything that a resumed run needs: weights, batch-norm buffers, optimizer, step. Order of images and randomness
//! follow from (seed, step) alone.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;

use crate::{
    CheckpointError, Plan, RunConfig, checkpoint::Checkpoint, dist::ProcessGroup, methods::Method,
    model::Model, optim::Optimizer, views::AugmentDevice,
};

/// A checkpoint of the run after `step` steps.
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

/// What the steps to come depend on besides the configuration.
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

/// Augmentation device of the run of a checkpoint; the CPU in checkpoints from before there was a choice.
pub fn augment_device_of(checkpoint: &Checkpoint) -> Option<AugmentDevice> {
    let state = checkpoint.sections.get("state")?;
    Some(serde_json::from_value(augment_device(state)).unwrap_or(AugmentDevice::Cpu))
}

/// Under its present or its former key.
fn augment_device(state: &Value) -> Value {
    let value = |key: &str| state.get(key).cloned();
    value("augment_device").or_else(|| value("views_on")).unwrap_or_else(|| json!(AugmentDevice::Cpu))
}

/// The first non-finite value of a checkpoint.
pub fn first_non_finite(checkpoint: &Checkpoint) -> Option<f64> {
    let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    let broken = checkpoint.tensors.values().find(|tensor| !finite(tensor))?;
    Some(broken.masked_select(&broken.isfinite().logical_not()).double_value(&[0]))
}

/// Where a resumed run goes on.
#[derive(Debug, Default)]
pub struct Resumed {
    /// The next step.
    pub step: u64,
    /// That it goes on, and why the rest will not be bit for bit what it would have been, where that is so.
    pub notes: Vec<String>,
}

/// Puts a checkpoint into model and optimizer.
///
/// # Errors
/// [`CheckpointError::Mismatch`] where it is of another run: other model, images, data order or optimizer.
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
    // Only when everything is there and fits is anything overwritten.
    tch::no_grad(|| values.into_iter().for_each(|(mut tensor, value)| tensor.copy_(&value)));
    let no_step = || CheckpointError::Damaged { path: path.to_owned(), reason: "it names no step".into() };
    let step = state["step"].as_u64().ok_or_else(no_step)?;
    let mut notes = vec![format!("resumed after step {step} of {}", plan.total_steps)];
    notes.extend(changed(&state, &facts(plan)));
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
    method.params().named().for_each(|(_, tensor)| group.broadcast(tensor));
    let state: BTreeMap<String, Tensor> = optimizer.state().into_iter().chain(method.state()).collect();
    state.values().for_each(|tensor| group.broadcast(tensor));
    let own = |name: &str, _: &[i64]| Ok(state[name].shallow_clone());
    optimizer.load_state(&own).expect("its own names and shapes");
    method.load_state(&own).expect("its own names and shapes");
    Resumed { step: step.parse().expect("rank 0 wrote a number"), notes: resumed.notes }
}

/// Puts the weights of the checkpoint at `path` into `model`: the encoder, the layers of the head that the model has, and
/// the classifier where both have one.
///
/// # Errors
/// [`CheckpointError::Mismatch`] where it is of another encoder or head.
pub fn init_from(path: &Path, model: &Model) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::load(path)?;
    let classifier = |name: &str| name.starts_with("classifier.");
    let taken = |name: &str| !classifier(name) || checkpoint.tensors.contains_key(name);
    let mut values = Vec::new();
    for (name, tensor) in model.params.named().filter(|(name, _)| taken(name)) {
        values.push((tensor.shallow_clone(), checkpoint.tensor(path, name, &tensor.size())?));
    }
    tch::no_grad(|| values.into_iter().for_each(|(mut tensor, value)| tensor.copy_(&value)));
    Ok(())
}

/// What may change with the machine, and changes the last bits of sums.
fn changed(was: &Value, is: &Value) -> Vec<String> {
    let names = [
        ("precision", "compute precision"),
        ("augment_device", "augmentation device"),
        ("torch_threads", "libtorch's threads"),
        ("ranks", "processes"),
    ];
    // Older checkpoints have neither key: one process, augmentation on the CPU.
    let value = |state: &Value, key: &str| match state[key].is_null() {
        _ if key == "augment_device" => augment_device(state),
        true => json!(1),
        false => state[key].clone(),
    };
    let other = names.iter().filter(|(key, _)| value(was, key) != value(is, key));
    let sentence = |(key, name): &(&str, &str)| {
        let (was, is) = (value(was, key), value(is, key));
        format!("{name} changed from {was} to {is}: not bit for bit what an uninterrupted run gives")
    };
    other.map(sentence).collect()
}

/// The order of images is one of their indices: with other images it would silently be another run.
fn refuse_other_images(path: &Path, was: &Value, is: &Value) -> Result<(), CheckpointError> {
    if was["data_fingerprint"] == is["data_fingerprint"] {
        return Ok(());
    }
    let images =
        |state: &Value| format!("{} images with fingerprint {}", state["images"], state["data_fingerprint"]);
    let reason = format!("it was trained on other images: {}, the data now has {}", images(was), images(is));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}

/// Keys that may change between a run and its resumption: they do not touch what is computed.
const FREE: [&str; 14] = [
    "data.path",
    // The fingerprint of the images holds their labels.
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
    // Through the configuration's own type, which knows the former names of keys.
    let saved = RunConfig::deserialize(&saved).map_or(saved, |config| json!(config));
    // What a checkpoint from before a key existed does not say was what is now the default.
    let (now, default) = (json!(config), json!(RunConfig::default()));
    let mut differences = Vec::new();
    for section in ["data", "augment", "encoder", "head", "loss", "task", "optim", "train"] {
        let keys = now[section].as_object().into_iter().flat_map(|object| object.keys());
        for key in keys {
            let name = format!("{section}.{key}");
            let was = saved[section].get(key).unwrap_or(&default[section][key]);
            if !FREE.contains(&name.as_str()) && *was != now[section][key] {
                differences.push(format!("{name} was {was}, is {}", now[section][key]));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("it is of another run: {}", differences.join("; "));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_warns_on_machine_change_and_fills_missing_keys() {
        let state = |views: &str| json!({ "precision": "f32", "augment_device": views, "torch_threads": 2, "ranks": 1 });
        let old = json!({ "precision": "f32", "torch_threads": 2 });
        assert_eq!(changed(&old, &state("cpu")), Vec::<String>::new());
        assert_eq!(changed(&state("device"), &state("device")), Vec::<String>::new());
        let [warning] = &changed(&old, &state("device"))[..] else { panic!("one warning") };
        assert!(warning.starts_with("augmentation device changed from \"cpu\" to \"device\""), "{warning}");
        let former = json!({ "precision": "f32", "views_on": "device", "torch_threads": 2, "ranks": 1 });
        assert_eq!(changed(&former, &state("device")), Vec::<String>::new());
    }
}
