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

/// Keys that [`take_over`] has set.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    /// Key, value, and whether the value is another one than before.
    keys: Vec<(String, Value, bool)>,
    /// Source of `encoder.input_mean` and `encoder.input_std`.
    statistics: &'static str,
}

impl TakenOver {
    /// Whether `key` is one of them.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(taken, ..)| taken == key)
    }

    /// Such as `encoder.name = "resnet18", ...`; none if nothing was set.
    pub(super) fn describe(&self) -> Option<String> {
        let changed = || self.keys.iter().filter(|(.., changed)| *changed);
        let texts: Vec<String> = changed().map(|(key, value, _)| format!("{key} = {value}")).collect();
        let statistics = if changed().any(|(key, ..)| key.starts_with("encoder.input_")) {
            format!("; input statistics: {}", self.statistics)
        } else {
            String::new()
        };
        (!texts.is_empty()).then(|| texts.join(", ") + &statistics)
    }
}

/// Sets keys of `config` that are not `written` to those of the network at `task.init_from`, for images of `channels` channels. The
/// size of images is one of them for a run, an export and a vision transformer.
///
/// # Errors
/// See [`source`]; keys that contradict those that are written.
pub(super) fn take_over(
    config: &mut RunConfig,
    written: &Written,
    channels: usize,
) -> Result<TakenOver, TrainError> {
    let Some(path) = config.task.init_from.clone() else { return Ok(TakenOver::default()) };
    if config.encoder.file.is_some() {
        return Ok(TakenOver::default());
    }
    let source = source(&path)?;
    let (keys, statistics) = source.keys(channels);
    let mut table = json!(config);
    let mut taken = Vec::new();
    for (key, value) in keys.into_iter().filter(|(key, _)| !written.has(key)) {
        let (section, name) = key.split_once('.').unwrap_or_default();
        let place = &mut table[section][name];
        let changed = *place != value;
        *place = value.clone();
        taken.push((key, value, changed));
    }
    *config = serde_json::from_value(table)
        .map_err(|error| ConfigError::Parse { path, message: error.to_string() })?;
    config.validate()?;
    Ok(TakenOver { keys: taken, statistics })
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
