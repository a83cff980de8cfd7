//! The executable: arguments to a command to an exit code. Results go to stdout, progress and messages to stderr.

mod args;
mod commands;
mod failure;
mod json_log;
mod processes;
mod report;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};

/// Decoding and augmentation allocate per image: 4 to 5 % of the time of a 32 px JPEG (`bench/results/decode.txt`). libtorch keeps its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    failure::install_panic_hook();
    limit_busy_waiting();
    raise_file_limit();
    end_with_parent();
    let arguments = match Arguments::try_parse_from(args::several_settings(std::env::args_os())) {
        Ok(arguments) => arguments,
        Err(usage) => {
            let given: Vec<String> =
                std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
            return match args::replaced_flag(&usage, &given) {
                Some(failure) => failure.report(),
                None => ExitCode::from(terminal::usage(&usage)),
            };
        }
    };
    if arguments.trust_encoder_file {
        simclr::config::trust::trust_encoder_files();
    }
    let outcome = match arguments.command {
        Command::Pretrain(arguments) => {
            processes::together(|group| commands::pretrain::run(*arguments, group))
        }
        Command::Evaluate(arguments) => processes::alone(|| commands::evaluate::run(&arguments)),
        Command::Finetune(arguments) => processes::alone(|| commands::finetune::run(&arguments)),
        Command::Distill(arguments) => processes::alone(|| commands::distill::run(&arguments)),
        Command::SelfTrain(arguments) => processes::alone(|| commands::self_train::run(&arguments)),
        Command::Study(arguments) => processes::alone(|| commands::study::run(&arguments)),
        Command::Classify(arguments) => processes::alone(|| commands::classify::run(&arguments)),
        Command::Predict(arguments) => processes::alone(|| commands::classify::predict(&arguments)),
        Command::Compare(arguments) => processes::alone(|| commands::compare::run(&arguments)),
        Command::Config(arguments) => processes::alone(|| commands::config::run(&arguments)),
        Command::Embed(arguments) => processes::alone(|| commands::embed::run(&arguments)),
        Command::Report(arguments) => processes::alone(|| commands::report::run(&arguments)),
        Command::Neighbours(arguments) => processes::alone(|| commands::neighbours::run(&arguments)),
        Command::Export(arguments) => processes::alone(|| commands::export::run(&arguments)),
        Command::Views(arguments) => processes::alone(|| commands::views::run(&arguments)),
        Command::Doctor(arguments) => processes::together(|group| commands::doctor::run(&arguments, group)),
        Command::Launch(arguments) => commands::launch::run(&arguments),
        Command::Inspect(arguments) => processes::alone(|| commands::inspect::run(&arguments)),
        Command::Completions(arguments) => Ok(commands::shell::completions(&arguments)),
        Command::Man(arguments) => processes::alone(|| commands::shell::man(&arguments)),
        Command::Pack(arguments) => processes::alone(|| commands::pack::run(&arguments)),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

/// Limits busy waiting, which slows down other threads: that of libtorch's OpenMP threads (a step took fifteen times as long on
/// two busy cores) and of Open MPI processes. Both libraries read their environment before `main`, so the program is executed
/// again, unless the user has set the variables.
#[cfg(unix)]
fn limit_busy_waiting() {
    use std::os::unix::process::CommandExt;
    let unset = |name: &str| std::env::var_os(name).is_none();
    let mut settings = Vec::new();
    if unset("GOMP_SPINCOUNT") && unset("OMP_WAIT_POLICY") {
        settings.push(("GOMP_SPINCOUNT", "2000"));
    }
    let by_mpi = matches!(simclr::dist::Launch::of_environment(), Ok(simclr::dist::Launch::Mpi { .. }));
    if by_mpi && unset("OMPI_MCA_mpi_yield_when_idle") {
        settings.push(("OMPI_MCA_mpi_yield_when_idle", "1"));
    }
    if settings.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` returns only on failure, which makes the run slower, but not wrong.
        let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(settings).exec();
    }
}

#[cfg(not(unix))]
fn limit_busy_waiting() {}

/// Shards and parquet files of a set stay open. The usual soft limit of 1,024 files is for programs that wait with select(2).
#[cfg(unix)]
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With the old limit, sets of fewer files can be read.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(not(unix))]
fn raise_file_limit() {}

/// SIGTERM when the parent process ends, if SIMCLR_PARENT is its number: so that no run outlives a killed Python. Children of this
/// process have another parent and ignore the variable. (PR_SET_PDEATHSIG signals once for each thread of the parent, and a second
/// signal ends a run without a checkpoint.)
#[cfg(unix)]
fn end_with_parent() {
    use rustix::process::{Pid, Signal, getpid, getppid, kill_process};
    let given = std::env::var("SIMCLR_PARENT").ok().and_then(|text| Pid::from_raw(text.parse().ok()?));
    if given.is_none() || given != getppid() {
        return;
    }
    let watch = move || {
        while getppid() == given {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        // Fails for processes of others only.
        let _ = kill_process(getpid(), Signal::TERM);
    };
    // Without a thread the run goes on, as it does without the variable.
    let _ = std::thread::Builder::new().name("parent".into()).spawn(watch);
}

#[cfg(not(unix))]
fn end_with_parent() {}
