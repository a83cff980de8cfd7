//! Several processes of one command: joining them, and ending together with one message.

use std::process::ExitCode;

use simclr::dist::{Launch, ProcessFailure, ProcessGroup, RankError};

use crate::{failure::Failure, terminal};

/// Exit code where a process is lost: its machine or network, which the user can mend.
const LOST: i32 = 2;

/// Runs `command` on every process that the launcher started; prints its failure, once, before any of them leaves.
pub fn together(
    command: impl FnOnce(&ProcessGroup) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let group = ProcessGroup::join(Box::new(lost))?;
    let outcome = command(&group).map_err(|failure| failure.of_rank(group.rank()));
    let code = outcome.unwrap_or_else(Failure::report);
    group.finish();
    Ok(code)
}

/// Refuses to run a command several times over that is made for one process.
pub fn alone(command: impl FnOnce() -> Result<ExitCode, Failure>) -> Result<ExitCode, Failure> {
    match Launch::of_environment() {
        Launch::Mpi { count } | Launch::Unconnected { count } if count > 1 => {
            let message = format!("{count} processes were started for a command that runs as one");
            Err(Failure::user(
                message,
                Some("mpirun and srun -n are for `simclr pretrain` and `simclr doctor`".into()),
            ))
        }
        _ => command(),
    }
}

/// What rank 0 has to say decides for all: its value is turned into a text by `tell`, which every process gets.
pub fn broadcast_from_root<T>(
    group: &ProcessGroup,
    decide: impl FnOnce() -> Result<T, Failure>,
    tell: impl FnOnce(&T) -> String,
) -> Result<(Option<T>, String), Failure> {
    let own = if group.is_first() { decide().map(Some) } else { Ok(None) };
    let agreed = group.all_ok(own, |own| own.as_ref().map(tell).unwrap_or_default());
    let (own, mut told) = agreed.map_err(|disagreed| match disagreed {
        RankError::Local(failure) => failure,
        RankError::Remote { message, .. } => Failure::elsewhere(message),
    })?;
    Ok((own, told.swap_remove(0)))
}

fn lost(lost: &ProcessFailure<'_>) {
    terminal::error("error", &lost.message, Some(&lost.hint));
    lost.abort_all(LOST);
}
