//! Failures of commands: message, hint and exit code.

use std::process::ExitCode;

use simclr::{
    ConfigError, DistError, EvalError, TrainError,
    data::{DataError, guard::is_guarded},
    error::Blame,
};

use crate::terminal;

/// Exit code of errors that the user can fix, also used by clap.
const USER: u8 = 2;
/// Exit code of internal errors.
const INTERNAL: u8 = 1;

/// An error of a command, with hint and exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
    /// Reported by another process.
    quiet: bool,
}

impl Failure {
    /// An error that the user can fix.
    pub fn user(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, code: USER, quiet: false }
    }

    /// The failure of another process, which reports it.
    pub fn elsewhere(message: String) -> Self {
        Self { quiet: true, ..Self::user(message, None) }
    }

    /// Adds the rank to the message, except for rank 0.
    pub fn of_rank(self, rank: usize) -> Self {
        let message = if rank == 0 { self.message } else { format!("rank {rank}: {}", self.message) };
        Self { message, ..self }
    }

    /// Prints message and hint; returns the exit code.
    pub fn report(self) -> ExitCode {
        if !self.quiet {
            terminal::error("error", &self.message, self.hint.as_deref());
        }
        ExitCode::from(self.code)
    }
}

fn code(blame: Blame) -> u8 {
    match blame {
        Blame::User => USER,
        Blame::Us => INTERNAL,
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        let quiet = matches!(error, TrainError::RemoteRank { .. });
        Self { message: error.to_string(), hint: error.hint(), code: code(error.blame()), quiet }
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        // As after any other signal: 128 + SIGINT.
        let code = if matches!(error, EvalError::Stopped) { 130 } else { code(error.blame()) };
        Self { message: error.to_string(), hint: error.hint(), code, quiet: false }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::user(error.to_string(), error.hint())
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::user(error.to_string(), error.hint())
    }
}

impl From<DistError> for Failure {
    fn from(error: DistError) -> Self {
        Self::user(error.to_string(), error.hint())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::user(error.to_string(), None)
    }
}

/// Parts of libtorch's messages and of C++'s for an allocation that failed.
const OUT_OF_MEMORY: [&str; 4] =
    ["not enough memory", "can't allocate memory", "std::bad_alloc", "CUDA out of memory"];

/// Reports panics as bugs, but for failed allocations, in one line with the location, and exits with the internal code.
#[expect(clippy::exit, reason = "no command is left to return to")]
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if is_guarded() {
            return;
        }
        let text = panic.payload_as_str().unwrap_or("no message");
        if OUT_OF_MEMORY.iter().any(|part| text.contains(part)) {
            let hint = "choose a smaller --batch, --chunk, --image-size or --encoder; a run goes on from its last checkpoint with --resume";
            terminal::error("error", "out of memory", Some(hint));
            std::process::exit(i32::from(USER));
        }
        let location = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        let hint = "this is a bug; the last checkpoint is intact, and --resume continues from it";
        terminal::error("internal error", &format!("{text}{}", location.unwrap_or_default()), Some(hint));
        std::process::exit(i32::from(INTERNAL));
    }));
}
