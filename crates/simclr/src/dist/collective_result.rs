//! Results that all ranks of a run share, so that no rank skips a collective that the others wait in.

use super::{ProcessGroup, RankError};
use crate::TrainError;

/// Ok if every rank is Ok; otherwise the error of the lowest failing rank, as [`TrainError::RemoteRank`] on all others.
pub fn all_ok<T>(group: &ProcessGroup, own: Result<T, TrainError>) -> Result<T, TrainError> {
    all_ok_with(group, own, |_| String::new()).map(|(value, _)| value)
}

/// [`all_ok`] with a text of every rank, by rank.
pub fn all_ok_with<T>(
    group: &ProcessGroup,
    own: Result<T, TrainError>,
    text: impl FnOnce(&T) -> String,
) -> Result<(T, Vec<String>), TrainError> {
    group.all_ok(own, text).map_err(|error| match error {
        RankError::Local(error) => error,
        RankError::Remote { rank, message } => TrainError::RemoteRank { rank, message },
    })
}

/// A result in the middle of a step, where the other ranks wait in a collective: an error aborts the job.
pub fn abort_group_on_error<T>(group: &ProcessGroup, own: Result<T, TrainError>) -> Result<T, TrainError> {
    own.inspect_err(|error| group.abort(&error.to_string()))
}
