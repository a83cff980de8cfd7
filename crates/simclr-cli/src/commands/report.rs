//! `simclr report`.

use std::process::ExitCode;

use serde_json::json;
use simclr::{
    ConfigError, RunConfig,
    data::{atomic_file, dataset::as_one_path, output},
    report::{PAGE, ReportOptions, report},
    train::{Observer, RunFolder},
};

use super::pretrain::watch_signals;
use crate::{args, failure::Failure, report::Terminal, terminal};

/// Writes the page.
pub fn run(arguments: &args::Report) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.set.data)?;
    let folder = RunFolder::open(&arguments.run)?;
    let _held = RunFolder::around(&arguments.out, Some(&folder))?;
    output::check(&arguments.out, PAGE, Some(&data))?;
    let (config, _) = RunConfig::load_run(&folder.config_file(), &[])?;
    let options = ReportOptions {
        explore: arguments.set.options(&data, &config, arguments.images),
        k: arguments.k,
        duplicates: arguments.duplicates,
        agreement: arguments.agreement,
        points: arguments.points,
        map: arguments.map,
    };
    options.validate().map_err(|error| match error {
        ConfigError::Value { key, value, expected } => {
            Failure::user(format!("--{key} {value}: expected {expected}"), None)
        }
        other => other.into(),
    })?;
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let found = report(&folder, &data, &options, &mut terminal, &stop)?;
    for bad in &found.bad {
        terminal.message(&format!("skipped: {}", bad.reason));
    }
    drop(terminal);
    atomic_file::write(&arguments.out, found.html.as_bytes())?;
    let [images, total] = found.images;
    if arguments.json {
        let facts = json!({
            "path": arguments.out.to_string_lossy(),
            "images": images,
            "images_of_set": total,
            "on_map": found.on_map,
            "near_duplicates": found.duplicates,
            "possible_label_errors": found.suspects,
            "bytes": found.html.len(),
            "skipped": found.bad.iter().map(|bad| &bad.reason).collect::<Vec<_>>(),
        });
        terminal::result(&facts.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let suspects = found
        .suspects
        .map_or_else(|| "no labels".to_owned(), |suspects| format!("{suspects} possible label errors"));
    terminal::result(&format!(
        "{}  {images} of {total} images, {} on the map, {} near-duplicates, {suspects}, {:.1} MB",
        arguments.out.display(),
        found.on_map,
        found.duplicates,
        found.html.len() as f64 / 1e6
    ));
    Ok(ExitCode::SUCCESS)
}
