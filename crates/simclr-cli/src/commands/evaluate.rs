//! `simclr evaluate`.

use std::{path::Path, process::ExitCode};

use simclr::{
    EvalError, RunConfig,
    data::{RangeChoice, ValueRange},
    eval::{
        EvalConfig, evaluate,
        features::import::{check_imported, configure, configure_like, import, resolved},
        report::compare::Comparison,
    },
    train::RunFolder,
    weights::{IMAGENET_MEAN, IMAGENET_STD, file_of},
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
    let eval_config = EvalConfig { labels, ..eval_config };
    let results = evaluate(&folder, &data, &eval_config, &mut terminal, &stop)?;
    if arguments.against.is_empty() {
        drop(terminal);
        let text = if arguments.json { serde_json::json!(results).to_string() } else { results.table() };
        terminal::result(&text);
        return Ok(ExitCode::SUCCESS);
    }
    let (mut folders, mut all) = (vec![folder], vec![results]);
    for path in &arguments.against {
        let other = opponent(path, &folders[0], (&config, all[0].run.channels as usize))?;
        all.push(evaluate(&other, &data, &eval_config, &mut terminal, &stop)?);
        folders.push(other);
    }
    drop(terminal);
    let comparison = Comparison::read(&folders)?;
    let text = if arguments.json {
        serde_json::json!({ "runs": all, "significance": comparison.verdicts() }).to_string()
    } else {
        comparison.table()
    };
    terminal::result(&text);
    Ok(ExitCode::SUCCESS)
}

/// The run at `path`, or the weights at `path` as a run in the folder `against` of `run`, for images of `channels` channels.
fn opponent(
    path: &Path,
    run: &RunFolder,
    (config, channels): (&RunConfig, usize),
) -> Result<RunFolder, Failure> {
    if RunFolder::is_run(path) {
        return Ok(RunFolder::open(path)?);
    }
    // A folder of another program, or else a file or an official checkpoint.
    let file = file_of(path).unwrap_or_else(|_| path.to_owned());
    let config = configure_like(&file, config, channels)?;
    let folder = run.path().join("against").join(imported_name(&file));
    if RunFolder::is_run(&folder) {
        let folder = RunFolder::open(&folder)?;
        check_imported(&file, &config, &folder)?;
        return Ok(folder);
    }
    import_into(&file, &config, channels, &folder)
}

/// The last two components of `file`: many files have the same name, such as `model.safetensors`.
fn imported_name(file: &Path) -> String {
    let names: Vec<_> =
        file.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
    names.into_iter().rev().filter(|name| !name.contains(['/', '\\'])).collect::<Vec<_>>().join("-")
}

/// A new run folder with the weights at `file`.
fn import_into(
    file: &Path,
    config: &RunConfig,
    channels: usize,
    folder: &Path,
) -> Result<RunFolder, Failure> {
    let folder = RunFolder::create(folder)?;
    let outcome = import(file, config, channels as i64, &folder);
    if outcome.is_err() {
        folder.remove_if_unused();
    }
    outcome?;
    Ok(folder)
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
    import_into(weights, &config, channels, path)
}
