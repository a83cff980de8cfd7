//! State of a run in a checkpoint: weights, buffers, optimizer, step. The order of images and all random numbers are functions of
//! seed and step.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

use crate::{
    CheckpointError, Plan, RunConfig, checkpoint::Checkpoint, device::Precision, dist::ProcessGroup,
    methods::Method, model::Model, optim::Optimizer, params::load_weights, views::AugmentDevice,
};

/// Section `state` of a checkpoint: its step, and the properties of data and machine that later steps depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    #[serde(default)]
    seed: u64,
    /// Classes in the order of the classifier's outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// Channels C of an image; 0 in checkpoints of earlier versions.
    #[serde(default)]
    pub channels: usize,
    #[serde(default)]
    images: usize,
    #[serde(default)]
    data_fingerprint: String,
    #[serde(default)]
    precision: Option<Precision>,
    /// Augmentation was on the CPU before there was a choice.
    #[serde(default = "cpu", alias = "views_on")]
    augment_device: AugmentDevice,
    #[serde(default)]
    torch_threads: usize,
    /// Not recorded before there were several processes.
    #[serde(default = "one")]
    ranks: usize,
}

fn cpu() -> AugmentDevice {
    AugmentDevice::Cpu
}

fn one() -> usize {
    1
}

impl RunState {
    /// The state that `checkpoint` holds.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] without a step.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        checkpoint.section("state")
    }

    fn after(step: u64, plan: &Plan) -> Self {
        Self {
            step,
            seed: plan.config.train.seed,
            class_names: plan.class_names.clone(),
            channels: plan.channels,
            images: plan.images,
            data_fingerprint: plan.data_fingerprint.clone(),
            precision: Some(plan.precision),
            augment_device: plan.augment_device,
            torch_threads: plan.torch_threads,
            ranks: plan.ranks,
        }
    }
}

/// The state after `step` steps.
pub fn capture(plan: &Plan, method: &dyn Method, optimizer: &Optimizer, step: u64) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    let params = method.params().named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(params.chain(method.state()).chain(optimizer.state()));
    checkpoint.sections.insert("state".into(), json!(RunState::after(step, plan)));
    checkpoint.sections.insert("config".into(), json!(plan.config));
    checkpoint.sections.insert("versions".into(), json!({ "simclr": env!("CARGO_PKG_VERSION") }));
    checkpoint
}

/// Whether the run of `checkpoint` augments on the CPU.
pub fn augments_on_cpu(checkpoint: &Checkpoint) -> bool {
    RunState::of(checkpoint).is_ok_and(|state| state.augment_device == AugmentDevice::Cpu)
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

/// Restores method and optimizer from `checkpoint`.
///
/// # Errors
/// [`CheckpointError::Mismatch`] if configuration, images, parameters or optimizer are those of another run;
/// [`CheckpointError::Damaged`] without a step.
pub fn restore(
    checkpoint: &Checkpoint,
    plan: &Plan,
    method: &mut dyn Method,
    optimizer: &mut Optimizer,
) -> Result<Resumed, CheckpointError> {
    let state = RunState::of(checkpoint)?;
    let now = RunState::after(state.step, plan);
    refuse_other_run(checkpoint, &plan.config)?;
    refuse_other_images(&checkpoint.path, &state, &now)?;
    let stored = |name: &str, shape: &[i64]| checkpoint.tensor(name, shape);
    optimizer.load_state(&stored)?;
    method.load_state(&stored)?;
    load_weights(method.params().named(), stored)?;
    let finished = if state.step < plan.total_steps { "" } else { ": the run is finished" };
    let mut notes = vec![format!("resumed after step {} of {}{finished}", state.step, plan.total_steps)];
    notes.extend(machine_changes(&state, &now));
    Ok(Resumed { step: state.step, notes })
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

/// Initialises `model` from the checkpoint at `path`: the encoder, the head layers that the model has, and the classifier or the
/// predictor if both have one.
///
/// # Errors
/// [`CheckpointError::Mismatch`] for another encoder or head; a checkpoint that cannot be read.
pub fn init_from(path: &Path, model: &Model) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::load(path)?;
    let may_be_fresh = |name: &str| ["classifier.", "predictor."].iter().any(|start| name.starts_with(start));
    let is_stored = |name: &str| !may_be_fresh(name) || checkpoint.tensors.contains_key(name);
    let targets = model.params.named().filter(|(name, _)| is_stored(name));
    load_weights(targets, |name, shape| checkpoint.tensor(name, shape))
}

/// Warnings about properties of the machine that have changed and that affect rounding.
fn machine_changes(was: &RunState, is: &RunState) -> Vec<String> {
    let values = [
        ("compute precision", json!([was.precision, is.precision])),
        ("augmentation device", json!([was.augment_device, is.augment_device])),
        ("libtorch's threads", json!([was.torch_threads, is.torch_threads])),
        ("processes", json!([was.ranks, is.ranks])),
    ];
    let changed = values.iter().filter(|(_, values)| values[0] != values[1]);
    let warning = |(name, values): &(&str, Value)| {
        let (was, is) = (&values[0], &values[1]);
        format!("{name} changed from {was} to {is}: results are not bit-identical to an uninterrupted run")
    };
    changed.map(warning).collect()
}

/// The order of images is stored as indices, so resuming on other images would silently be another run.
fn refuse_other_images(path: &Path, was: &RunState, is: &RunState) -> Result<(), CheckpointError> {
    if was.data_fingerprint == is.data_fingerprint {
        return Ok(());
    }
    let images =
        |state: &RunState| format!("{} images with fingerprint \"{}\"", state.images, state.data_fingerprint);
    let reason =
        format!("the run was trained on other images: {}, the data now has {}", images(was), images(is));
    Err(CheckpointError::Mismatch { path: path.to_owned(), reason })
}

/// Keys that may change when a run is resumed, because results do not depend on them.
const RESUMABLE_CHANGES: [&str; 15] = [
    "data.path",
    // Labels are part of the fingerprint of the images.
    "data.labels",
    "distill.labelled",
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

/// Sections with keys that are fixed for a run, apart from [`RESUMABLE_CHANGES`].
const FIXED_SECTIONS: [&str; 10] =
    ["data", "augment", "encoder", "head", "loss", "task", "distill", "moco", "optim", "train"];

/// Whether `key`, such as `train.threads`, may change when a run is resumed.
pub fn may_change(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or_default();
    RESUMABLE_CHANGES.contains(&key) || !FIXED_SECTIONS.contains(&section)
}

fn refuse_other_run(checkpoint: &Checkpoint, config: &RunConfig) -> Result<(), CheckpointError> {
    let saved = checkpoint.sections.get("config").cloned().unwrap_or_default();
    // Through `RunConfig`, which accepts former names of keys.
    let saved = RunConfig::deserialize(&saved).map_or(saved, |config| json!(config));
    let now = json!(config);
    // Keys that did not exist yet behaved like their defaults.
    let default = json!(RunConfig::default());
    let mut differences = Vec::new();
    for section in FIXED_SECTIONS {
        let keys = now[section].as_object().into_iter().flat_map(|object| object.keys());
        for key in keys {
            let name = format!("{section}.{key}");
            let was = saved[section].get(key).unwrap_or(&default[section][key]);
            if !may_change(&name) && *was != now[section][key] {
                differences.push(format!("{name} was {was}, is {}", now[section][key]));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let reason = format!("belongs to another run: {}", differences.join("; "));
    Err(CheckpointError::Mismatch { path: checkpoint.path.clone(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_warns_on_machine_change_and_fills_missing_keys() {
        let parse = |state: Value| serde_json::from_value::<RunState>(state).unwrap();
        let state = |key: &str, device: &str| {
            parse(json!({ "step": 1, "precision": "f32", key: device, "torch_threads": 2, "ranks": 1 }))
        };
        let [cpu, device] = ["cpu", "device"].map(|device| state("augment_device", device));
        let old = parse(json!({ "step": 1, "precision": "f32", "torch_threads": 2 }));
        assert_eq!(machine_changes(&old, &cpu), Vec::<String>::new());
        assert_eq!(machine_changes(&device, &device), Vec::<String>::new());
        let [warning] = &machine_changes(&old, &device)[..] else { panic!("one warning") };
        assert!(warning.starts_with("augmentation device changed from \"cpu\" to \"device\""), "{warning}");
        assert_eq!(machine_changes(&state("views_on", "device"), &device), Vec::<String>::new());
        assert!(serde_json::from_value::<RunState>(json!({ "seed": 1 })).is_err(), "no step");
    }
}
