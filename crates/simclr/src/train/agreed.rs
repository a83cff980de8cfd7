//! One outcome for all ranks of a run.

use crate::{
    TrainError,
    ranks::{Disagreed, Ranks},
};

/// Success where all ranks have it, else the error of the lowest rank that has one: as it is there, and as
/// [`TrainError::Elsewhere`] on the others.
pub fn agreed<T>(ranks: &Ranks, own: Result<T, TrainError>) -> Result<T, TrainError> {
    agreed_telling(ranks, own, |_| String::new()).map(|(value, _)| value)
}

/// [`agreed`], with what each rank tells the others.
pub fn agreed_telling<T>(
    ranks: &Ranks,
    own: Result<T, TrainError>,
    tell: impl FnOnce(&T) -> String,
) -> Result<(T, Vec<String>), TrainError> {
    ranks.agree(own, tell).map_err(|disagreed| match disagreed {
        Disagreed::Here(error) => error,
        Disagreed::Elsewhere { rank, message } => TrainError::Elsewhere { rank, message },
    })
}

/// An outcome in the middle of a step, where the others wait and cannot be asked: a failure ends the run for all at once.
pub fn or_end_all<T>(ranks: &Ranks, own: Result<T, TrainError>) -> Result<T, TrainError> {
    own.inspect_err(|error| ranks.give_up(&error.to_string()))
}
