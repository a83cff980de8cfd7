//! How a command fails: one message, a way out where there is one, and the exit code.

use std::process::ExitCode;

use simclr::{ConfigError, EvalError, TrainError, data::DataError, error::Blame};

/// Exit code where the user can mend it (clap uses the same for wrong usage).
const USER: u8 = 2;
/// Exit code where we must.
const INTERNAL: u8 = 1;

/// A message for people.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// Something that the user can mend.
    pub fn user(message: impl Into<String>, hint: Option<String>) -> Self {
        Self { message: message.into(), hint, code: USER }
    }

    /// Prints it.
    #[expect(clippy::print_stderr, reason = "this is where errors are shown")]
    pub fn report(self) -> ExitCode {
        eprintln!("error: {}", self.message);
        if let Some(hint) = self.hint {
            eprintln!("\nhint: {hint}");
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

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        Self { message: error.to_string(), hint: error.hint(), code: code(error.blame()) }
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        // As after any other signal: 128 + SIGINT.
        let code = if matches!(error, EvalError::Stopped) { 130 } else { code(error.blame()) };
        Self { message: error.to_string(), hint: error.hint(), code }
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

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::user(error.to_string(), None)
    }
}

/// A panic is a bug: say so in one line, with the place, and leave with the internal code.
#[expect(
    clippy::print_stderr,
    clippy::exit,
    reason = "this is where errors are shown, and no command is left to return to"
)]
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        eprintln!("internal error: {text}{}", place.unwrap_or_default());
        eprintln!("\nhint: this is a bug; the last checkpoint is whole, and --resume goes on from it");
        std::process::exit(i32::from(INTERNAL));
    }));
}
