//! `simclr compare`.

use std::process::ExitCode;

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
    if arguments.by == CompareBy::Seconds {
        let curves = Curves::read(&folders)?;
        curves.plot(&arguments.out)?;
        terminal::result(&format!("{}plot {}", curves.table(), arguments.out.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let comparison = match &arguments.data {
        Some(data) => Comparison::read_on(&folders, data)?,
        None => Comparison::read(&folders)?,
    };
    comparison.plot(&arguments.out)?;
    terminal::result(&format!("{}plot {}", comparison.table(), arguments.out.display()));
    Ok(ExitCode::SUCCESS)
}
