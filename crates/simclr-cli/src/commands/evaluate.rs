//! `simclr evaluate`.

use std::{path::Path, process::ExitCode};

use simclr::{
    EvalError, RunConfig,
    data::{RangeChoice, ValueRange},
    eval::{
        EvalConfig, evaluate,
        features::import::{check_imported, configure, import, resolved},
    },
    train::RunFolder,
    weights::{IMAGENET_MEAN, IMAGENET_STD},
};

use super::{data_path, pretrain::watch_signals};
use crate::{
    args::{Evaluate, Normalize, of_flag},
    failure::Failure,
    report::Terminal,
    terminal,
};

/// Evaluates, writes `results.json`, prints the table.
pub fn run(arguments: &Evaluate) -> Result<ExitCode, Failure> {
    let (eval_overrides, run_overrides) = arguments.overrides();
    let eval_config = eval_config(arguments, &eval_overrides)?;
    let folder = match &arguments.weights {
        Some(weights) => imported(weights, &run_overrides, arguments)?,
        None if run_overrides.is_empty() => RunFolder::open(&arguments.run)?,
        None => {
            let hint = Some(
                "keys of the run can be set with --weights only; those of [eval] start with eval.".into(),
            );
            return Err(Failure::user(format!("--set {}", run_overrides[0]), hint));
        }
    };
    let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
    let data = data_path(&arguments.data)?.or(config.data.path.clone());
    let data = data.ok_or_else(|| Failure::user("the run names no images", Some("give --data".into())))?;
    let labels = arguments.labels_from.clone().unwrap_or_else(|| config.data.labels_of(&data));
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let results = evaluate(&folder, &data, &EvalConfig { labels, ..eval_config }, &mut terminal, &stop)?;
    drop(terminal);
    if arguments.json {
        let text = serde_json::to_string(&results).map_err(|error| Failure::user(error.to_string(), None))?;
        terminal::result(&text);
    } else {
        terminal::result(&results.table());
    }
    Ok(ExitCode::SUCCESS)
}

/// `--config`, overridden by `--set`, overridden by flags.
fn eval_config(arguments: &Evaluate, overrides: &[String]) -> Result<EvalConfig, Failure> {
    let mut config = EvalConfig::load(arguments.config.as_deref(), overrides)?;
    if !arguments.protocols.is_empty() {
        config.protocols.clone_from(&arguments.protocols);
    }
    if !arguments.transfer.is_empty() {
        config.transfer.clone_from(&arguments.transfer);
    }
    config.threads = arguments.compute.threads.unwrap_or(config.threads);
    config.batch = arguments.compute.batch.unwrap_or(config.batch);
    config.device = arguments.compute.device;
    config.fresh = arguments.fresh;
    config.validate()?;
    Ok(config)
}

/// A run folder with imported weights. An existing folder must hold the same weights with the same options.
fn imported(weights: &Path, overrides: &[String], arguments: &Evaluate) -> Result<RunFolder, Failure> {
    let path = &arguments.run;
    let (mut config, official) = configure(weights, overrides).map_err(|error| match error {
        EvalError::Config(error) => of_flag(error, &arguments.flags()),
        other => other.into(),
    })?;
    // The official code trains on images in [0, 1].
    let usual = if official.is_some() { Normalize::None } else { Normalize::Imagenet };
    if arguments.normalize.unwrap_or(usual) == Normalize::Imagenet && config.encoder.input_mean.is_empty() {
        config.encoder.input_mean = IMAGENET_MEAN.to_vec();
        config.encoder.input_std = IMAGENET_STD.to_vec();
    }
    if RunFolder::is_run(path) {
        let folder = RunFolder::open(path)?;
        check_imported(weights, &config, &folder)?;
        return Ok(folder);
    }
    let data = data_path(&arguments.data)?;
    let data = data.ok_or_else(|| Failure::user("no images are named", Some("give --data".into())))?;
    let is_open = config.data.range == RangeChoice::Auto;
    let (config, channels) = resolved(config, &data)?;
    let range = config.data.value_range();
    if is_open && range != ValueRange::Full {
        terminal::message(&format!("note: data.range = {range}, measured on a sample of the images"));
    }
    if let Some(description) = official {
        terminal::message(&format!("note: {description}"));
    }
    let folder = RunFolder::create(path)?;
    let outcome = import(weights, &config, channels as i64, &folder);
    if outcome.is_err() {
        folder.remove_if_unused();
    }
    outcome?;
    Ok(folder)
}
