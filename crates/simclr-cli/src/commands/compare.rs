//! `simclr compare`.

use std::process::ExitCode;

use simclr::{eval::report::compare::Comparison, train::RunFolder};

use crate::{args::Compare, failure::Failure, terminal};

/// Prints the table and writes the plot.
pub fn run(arguments: &Compare) -> Result<ExitCode, Failure> {
    let folders = arguments.runs.iter().map(|run| RunFolder::open(run)).collect::<Result<Vec<_>, _>>()?;
    let comparison = match &arguments.data {
        Some(data) => Comparison::read_on(&folders, data)?,
        None => Comparison::read(&folders)?,
    };
    comparison.plot(&arguments.out)?;
    terminal::result(&format!("{}plot {}", comparison.table(), arguments.out.display()));
    Ok(ExitCode::SUCCESS)
}
