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
    calm_openmp();
    let outcome = match Arguments::parse().command {
        Command::Pretrain(arguments) => commands::pretrain::run(arguments),
        Command::Evaluate(arguments) => commands::evaluate::run(&arguments),
        Command::Compare(arguments) => commands::compare::run(&arguments),
        Command::Embed(arguments) => commands::embed::run(&arguments),
        Command::Export(arguments) => commands::export::run(&arguments),
        Command::Views(arguments) => commands::views::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Pack(arguments) => commands::pack::run(&arguments),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

/// libtorch's OpenMP threads spin while they wait, which starves the loader's threads and anything else on the machine:
/// on two busy cores a step took fifteen times as long. OpenMP reads its settings before `main`, so they are set for a
/// second start of this program, unless the user has set them.
#[cfg(unix)]
fn calm_openmp() {
    use std::os::unix::process::CommandExt;
    const SETTING: &str = "GOMP_SPINCOUNT";
    if std::env::var_os(SETTING).is_some() || std::env::var_os("OMP_WAIT_POLICY").is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` comes back only when it failed; the run is then slower, not wrong.
        let _ =
            std::process::Command::new(program).args(std::env::args_os().skip(1)).env(SETTING, "2000").exec();
    }
}

#[cfg(not(unix))]
fn calm_openmp() {}
