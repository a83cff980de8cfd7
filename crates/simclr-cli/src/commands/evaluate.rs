//! `simclr evaluate`.

use std::process::ExitCode;

use simclr::{
    RunConfig,
    eval::protocol::{EvalOptions, evaluate},
    train::RunFolder,
};

use crate::{args::Evaluate, failure::Failure, report::Stages};

/// Evaluates, writes `results.json`, prints the table.
pub fn run(arguments: &Evaluate) -> Result<ExitCode, Failure> {
    let folder = RunFolder::open(&arguments.run)?;
    let config = RunConfig::load(Some(&folder.config_file()), &[])?;
    let data = arguments.data.clone().or(config.data.path);
    let data = data.ok_or_else(|| Failure::user("the run names no images", Some("give --data".into())))?;
    let default = EvalOptions::default();
    let options = EvalOptions {
        knn_k: arguments.k.unwrap_or(default.knn_k),
        knn_temperature: arguments.temperature.or(default.knn_temperature),
        draws: arguments.draws.unwrap_or(default.draws),
        seed: arguments.seed.unwrap_or(default.seed),
        ..default
    };
    let mut stages = Stages::new();
    let results = evaluate(&folder, &data, &options, &mut |stage, _, _| stages.show(stage))?;
    if arguments.json {
        let text = serde_json::to_string(&results).map_err(|error| Failure::user(error.to_string(), None))?;
        super::print(&text);
    } else {
        super::print(&results.table());
    }
    Ok(ExitCode::SUCCESS)
}
