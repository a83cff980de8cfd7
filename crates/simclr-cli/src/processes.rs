//! Commands with several processes: joining the process group, and ending it with one message.

use std::process::ExitCode;

use simclr::dist::{Launch, ProcessFailure, ProcessGroup, RankError};

use crate::{failure::Failure, terminal};

/// Exit code if a process is lost: a user error (machine or network).
const LOST: i32 = 2;

/// Runs `command` on every process that the launcher started; one of them prints a failure before any exits.
pub fn together(
    command: impl FnOnce(&ProcessGroup) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let group = ProcessGroup::join(Box::new(report_and_abort))?;
    let outcome = command(&group).map_err(|failure| failure.of_rank(group.rank()));
    let code = outcome.unwrap_or_else(Failure::report);
    group.finish();
    Ok(code)
}

/// Runs a command for one process; an error if the launcher started several.
pub fn alone(command: impl FnOnce() -> Result<ExitCode, Failure>) -> Result<ExitCode, Failure> {
    let count = Launch::of_environment()?.count();
    if count > 1 {
        let message = format!("{count} processes were started for a command that runs as one");
        let hint = "several processes are for `simclr pretrain` and `simclr doctor`";
        return Err(Failure::user(message, Some(hint.into())));
    }
    command()
}

/// Runs `decide` on rank 0 and broadcasts its value as the text `encode` makes of it.
pub fn broadcast_from_root<T>(
    group: &ProcessGroup,
    decide: impl FnOnce() -> Result<T, Failure>,
    encode: impl FnOnce(&T) -> String,
) -> Result<(Option<T>, String), Failure> {
    let own = if group.is_first() { decide().map(Some) } else { Ok(None) };
    let result = group.all_ok(own, |own| own.as_ref().map(encode).unwrap_or_default());
    let (own, mut texts) = result.map_err(|error| match error {
        RankError::Local(failure) => failure,
        RankError::Remote { message, .. } => Failure::elsewhere(message),
    })?;
    Ok((own, texts.swap_remove(0)))
}

fn report_and_abort(failure: &ProcessFailure<'_>) {
    terminal::error("error", &failure.message, Some(&failure.hint));
    failure.abort_all(LOST);
}
