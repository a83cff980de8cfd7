//! `simclr compare`.

use std::process::ExitCode;

use serde_json::json;
use simclr::{
    eval::report::{compare::Comparison, curves::Curves},
    train::RunFolder,
};

use crate::{
    args::{Compare, CompareBy},
    failure::Failure,
    terminal,
};

/// Prints the table and writes the plot.
pub fn run(arguments: &Compare) -> Result<ExitCode, Failure> {
    let folders = arguments.runs.iter().map(|run| RunFolder::open(run)).collect::<Result<Vec<_>, _>>()?;
    let (table, facts) = match (arguments.by, &arguments.data) {
        (CompareBy::Seconds, _) => {
            let curves = Curves::read(&folders)?;
            curves.plot(&arguments.out)?;
            (curves.table(), json!(curves))
        }
        (CompareBy::Labels, data) => {
            let comparison = match data {
                Some(data) => Comparison::read_on(&folders, data)?,
                None => Comparison::read(&folders)?,
            };
            comparison.plot(&arguments.out)?;
            (comparison.table(), comparison.facts())
        }
    };
    let text = format!("{table}plot {}", arguments.out.display());
    terminal::result(&if arguments.json { facts.to_string() } else { text });
    Ok(ExitCode::SUCCESS)
}
