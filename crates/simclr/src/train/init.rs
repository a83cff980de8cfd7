//! Initial weights of a new run (`task.init_from`): a run, a checkpoint, an export, or a file of another program.

use std::path::Path;

use serde_json::{Value, json};

use super::{RunFolder, state};
use crate::{
    CheckpointError, ConfigError, RunConfig, TrainError,
    config::Written,
    model::Model,
    weights::{self, Source},
};

/// The weights at `path`; of a run folder those of its newest checkpoint.
///
/// # Errors
/// A run without checkpoint; a file that cannot be read.
fn source(path: &Path) -> Result<Source, TrainError> {
    if !RunFolder::is_run(path) {
        return Source::open(&weights::file_of(path)?);
    }
    let run = RunFolder::open(path)?;
    let (config, _) = RunConfig::load_run(&run.config_file(), &[])?;
    let (newest, _) = run.newest_checkpoint()?;
    let newest = newest.ok_or_else(|| CheckpointError::Missing { folder: path.to_owned() })?;
    Source::of_run(&newest.path, config)
}

/// Sets keys of `config` that are not `written` to those of the network at `task.init_from`, for images of `channels` channels, and
/// returns them. The size of images is taken over only where the weights depend on it.
///
/// # Errors
/// See [`source`]; keys that contradict those that are written.
pub(super) fn take_over(
    config: &mut RunConfig,
    written: &Written,
    channels: usize,
) -> Result<Vec<(String, Value)>, TrainError> {
    let Some(path) = config.task.init_from.clone() else { return Ok(Vec::new()) };
    if config.encoder.file.is_some() {
        return Ok(Vec::new());
    }
    let source = source(&path)?;
    let (keys, _) = source.keys(channels);
    let mut table = json!(config);
    let mut taken = Vec::new();
    for (key, value) in keys.into_iter().filter(|(key, _)| !written.has(key)) {
        let (section, name) = key.split_once('.').unwrap_or_default();
        let place = &mut table[section][name];
        if *place != value {
            *place = value.clone();
            taken.push((key, value));
        }
    }
    *config = serde_json::from_value(table)
        .map_err(|error| ConfigError::Parse { path, message: error.to_string() })?;
    config.validate()?;
    Ok(taken)
}

/// Loads `task.init_from` into `model` and describes what was loaded. A classifier takes a checkpoint of this program only, with all
/// the layers that it needs.
///
/// # Errors
/// See [`source`]; weights that do not fit.
pub(super) fn load(path: &Path, model: &Model, contrastive: bool) -> Result<String, TrainError> {
    let source = source(path)?;
    if source.is_checkpoint() && !contrastive {
        state::init_from(source.path(), model)?;
        return Ok(format!("{}: encoder and head", path.display()));
    }
    Ok(format!("{}: {}", path.display(), source.load_into(model)?))
}
