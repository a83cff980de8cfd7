//! A peer's weights to a run folder, so that they are judged, embedded, fine-tuned and exported by the same ruler as a run
//! trained here: safetensors under torchvision's names (timm's are the same for these ResNets).

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::features::load_weights;
use crate::{
    EvalError, ModelError, RunConfig, checkpoint::Checkpoint, device::Precision, model::SimClr,
    train::RunFolder,
};

/// What other programs put before the names of an encoder's parameters.
const PREFIXES: [&str; 7] =
    ["", "module.", "backbone.", "encoder.", "model.", "module.backbone.", "module.encoder."];

/// What torchvision's and timm's ImageNet weights take from each channel of `[0, 1]`, and divide by.
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// See [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Writes a finished run of no steps with the encoder of `file` into `folder`. `config` names the architecture, the image
/// size and the input statistics. What the file holds beside the encoder (a classifier, counters) is left out.
///
/// # Errors
/// A file that is no safetensors, or lacks a tensor of the architecture, or has one of another shape.
pub fn import(file: &Path, config: &RunConfig, channels: i64, folder: &RunFolder) -> Result<(), EvalError> {
    let refused = |reason: String| ModelError::File { path: file.to_owned(), reason };
    let stored = Tensor::read_safetensors(file)
        .map_err(|error| refused(format!("not a safetensors file: {error}")))?;
    let shape = (channels, config.train.image_size as i64);
    let model =
        SimClr::new(&config.encoder, &config.head, shape, config.train.seed, Device::Cpu, Precision::F32)?;
    let wanted =
        || model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)));
    let find = |name: &str| stored.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor);
    let held =
        |prefix: &&str| wanted().filter(|(name, _)| find(&format!("{prefix}{name}")).is_some()).count();
    let prefix = PREFIXES.into_iter().rev().max_by_key(|prefix| held(prefix)).unwrap_or_default();
    load_weights(wanted(), &file.display().to_string(), |name| {
        Some(find(&format!("{prefix}{name}"))?.to_kind(Kind::Float))
    })?;
    let mut checkpoint = Checkpoint::default();
    let owned = model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(owned);
    let source = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    checkpoint.sections.insert("state".into(), json!({ "step": 0, "imported_from": source }));
    checkpoint.save(&folder.checkpoint_file(0))?;
    let plan = json!({ "channels": channels, "total_steps": 0, "imported_from": source });
    let write = |name: &str, text: &str| {
        crate::checkpoint::write_atomically(&folder.path().join(name), text.as_bytes())
    };
    write("plan.json", &format!("{plan:#}\n"))?;
    // Last, as it makes the folder a run.
    write("config.toml", &config.to_toml())?;
    Ok(())
}
