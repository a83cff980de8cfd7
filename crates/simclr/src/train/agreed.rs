//! One outcome for all ranks of a run.

use crate::{
    TrainError,
    dist::{ProcessGroup, RankError},
};

/// Success where all ranks have it, else the error of the lowest rank that has one: as it is there, and as
/// [`TrainError::RemoteRank`] on the others.
pub fn all_ok<T>(group: &ProcessGroup, own: Result<T, TrainError>) -> Result<T, TrainError> {
    all_ok_with(group, own, |_| String::new()).map(|(value, _)| value)
}

/// [`agreed`], with what each rank tells the others.
pub fn all_ok_with<T>(
    group: &ProcessGroup,
    own: Result<T, TrainError>,
    tell: impl FnOnce(&T) -> String,
) -> Result<(T, Vec<String>), TrainError> {
    group.all_ok(own, tell).map_err(|disagreed| match disagreed {
        RankError::Local(error) => error,
        RankError::Remote { rank, message } => TrainError::RemoteRank { rank, message },
    })
}

/// An outcome in the middle of a step, where the others wait and cannot be asked: a failure ends the run for all at once.
pub fn abort_group_on_error<T>(group: &ProcessGroup, own: Result<T, TrainError>) -> Result<T, TrainError> {
    own.inspect_err(|error| group.abort(&error.to_string()))
}
