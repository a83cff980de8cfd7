//! The process: argv to a command to an exit code. Results go to stdout, progress and messages to stderr.

mod args;
mod commands;
mod failure;
mod report;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};

fn main() -> ExitCode {
    failure::install_panic_hook();
    let outcome = match Arguments::parse().command {
        Command::Pretrain(arguments) => commands::pretrain::run(arguments),
        Command::Evaluate(arguments) => commands::evaluate::run(&arguments),
        Command::Embed(arguments) => commands::embed::run(&arguments),
        Command::Export(arguments) => commands::export::run(&arguments),
        Command::Views(arguments) => commands::views::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}
