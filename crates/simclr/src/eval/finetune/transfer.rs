//! Fine-tuning on other data sets (paper B.8.2; spec 8.5): the whole network from the run's weights, and beside it from fresh
//! ones, with learning rate and weight decay chosen by the set's metric on its validation part (or a fifth of the training
//! images), trained again on both, tested once.

use serde::Serialize;
use serde_json::json;
use simclr_data::{
    Dataset,
    dataset::{Channels, Labels},
};
use tch::{Kind, Tensor};

use crate::eval::data::image_labels::Members;
use crate::eval::data::labelled_set::Sets;
use crate::eval::features::frozen_encoder::FrozenEncoder;
use crate::eval::finetune::grid::{Candidate, Grid, number};
use crate::eval::finetune::presets;
use crate::eval::finetune::runner::{Exam, Lesson, RunPurpose, Source, Trainer};
use crate::eval::probes::linear::log_spaced;
use crate::eval::probes::transfer::{HOLD_OUT, TransferSet};
use crate::eval::report::results::{Metric, TransferRow, Tuned};
use crate::eval::report::results_cache::Figure;
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// How transfer sets are fine-tuned on; the paper's values by default.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TransferFinetune {
    /// Images per step, at most all of the set.
    pub batch: usize,
    /// From the run's weights.
    pub tuned: Search,
    /// From fresh weights.
    pub fresh: Search,
}

/// What is tried from one start: every rate with every decay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// Steps of each training.
    pub steps: u64,
    /// Learning rates, as they are: not scaled with the batch.
    pub rates: Vec<f64>,
    /// Weight decays, each of which is divided by the learning rate before it is used.
    pub decays: Vec<f64>,
}

impl Default for TransferFinetune {
    fn default() -> Self {
        // "no weight decay" is one of the candidates from the run's weights only.
        let none_or = |decays: Vec<f64>| [vec![0.0], decays].concat();
        Self {
            batch: 256,
            tuned: Search {
                steps: 20_000,
                rates: log_spaced(1e-4, 1e-1, 7),
                decays: none_or(log_spaced(1e-6, 1e-3, 7)),
            },
            fresh: Search {
                steps: 40_000,
                rates: log_spaced(1e-3, 1.0, 7),
                decays: log_spaced(1e-5, 10f64.powf(-1.5), 8),
            },
        }
    }
}

impl TransferFinetune {
    /// # Errors
    /// A value that cannot be run.
    pub fn check(&self) -> Result<(), EvalError> {
        let above = |values: &[f64], low: f64| {
            !values.is_empty() && values.iter().all(|value| value.is_finite() && *value >= low)
        };
        let searches = [&self.tuned, &self.fresh];
        let fine = self.batch >= 2
            && searches.iter().all(|search| {
                search.steps >= 1 && above(&search.rates, f64::MIN_POSITIVE) && above(&search.decays, 0.0)
            });
        let wrong = "fine-tuning on transfer sets: expected a batch of at least 2, at least one step, learning rates above 0 \
                     and weight decays of at least 0";
        if fine { Ok(()) } else { Err(EvalError::Refused(wrong.into())) }
    }

    /// Models trained for each set.
    pub(crate) fn trainings(&self) -> usize {
        self.tuned.trainings() + self.fresh.trainings()
    }
}

impl Search {
    /// Every rate with every decay, which is divided by the rate.
    fn candidates(&self) -> Vec<Candidate> {
        let divided = |Candidate { rate, decay }| Candidate { rate, decay: decay / rate };
        self.pairs().candidates.into_iter().map(divided).collect()
    }

    fn pairs(&self) -> Grid {
        Grid::product(&self.rates, &self.decays)
    }

    /// One for each candidate, where there is a choice, and one on all images.
    fn trainings(&self) -> usize {
        self.pairs().size(0) + 1
    }

    /// For the results.
    fn words(&self, batch: usize) -> String {
        let list = |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", ");
        format!(
            "{} steps of {batch} images, sgd with nesterov momentum 0.9, cosine, batch-norm decay max(1 - 10/s, 0.9) with s \
             steps an epoch, random crops and flips; learning rates {} with weight decays {} over the rate, chosen by the \
             set's metric",
            self.steps,
            list(&self.rates),
            list(&self.decays)
        )
    }
}

/// Names of the two protocols.
const FROM_RUN: &str = "transfer, fine-tuned";
const FROM_FRESH: &str = "transfer, fresh weights";

/// The protocol on one set.
pub(crate) struct Tuning<'a, 'b> {
    pub(crate) trainer: &'a mut Trainer<'b>,
    pub(crate) options: &'a TransferFinetune,
}

impl Tuning<'_, '_> {
    /// The two protocols in words, by name; none where there is no set to tune on.
    pub(crate) fn words(&self) -> Vec<(String, String)> {
        let TransferFinetune { batch, tuned, fresh } = self.options;
        let both = [(FROM_RUN, tuned), (FROM_FRESH, fresh)];
        let words = both.map(|(name, search)| (name.to_owned(), search.words(*batch)));
        if self.trainer.options.transfer.is_empty() { Vec::new() } else { words.to_vec() }
    }

    /// Puts both figures into the row of `set`.
    pub(crate) fn fill(&mut self, set: &TransferSet, row: &mut TransferRow) -> Result<(), EvalError> {
        let trainer = &mut self.trainer;
        let images = Images::open(set, trainer.run, trainer.frozen, trainer.options.seed, trainer.observer)?;
        let options = self.options;
        row.finetuned = Some(self.tuned(set, &images, &options.tuned, true)?);
        row.fresh = Some(self.tuned(set, &images, &options.fresh, false)?);
        Ok(())
    }

    fn tuned(
        &mut self,
        set: &TransferSet,
        images: &Images,
        search: &Search,
        from_run: bool,
    ) -> Result<Tuned, EvalError> {
        let frozen = self.trainer.frozen;
        let start = frozen.origin().checkpoint.clone().filter(|_| from_run);
        let place = format!("{}, {}", set.place(), if from_run { "fine-tuned" } else { "fresh weights" });
        let recipe = |count: usize| {
            presets::transfer(frozen.config(), start.clone(), (search.steps, self.options.batch), count)
        };
        let (fit, all) = (images.of(&images.fit), images.of(&images.all()));
        let candidates = search.candidates();
        let chosen = match &candidates[..] {
            [only] => *only,
            _ => {
                let held = images.of(&images.members.first_of(&images.held));
                let figure = |logits: &Tensor, read: &[usize]| {
                    figure(&images.members, &images.indices, images.shape(), logits, read)
                };
                let exam =
                    Exam { set: images.train(), images: &held, of: json!(set.metric), figure: &figure };
                let lesson = Lesson { source: images.source(set), images: &fit };
                self.trainer.choose(&place, &candidates, &recipe(fit.len()), lesson, &exam)?
            }
        };
        let config = chosen.put(&recipe(all.len()));
        let lesson = Lesson { source: images.source(set), images: &all };
        let found = self.test(&place, &config, lesson, images)?;
        Ok(Tuned {
            figure: found.value,
            learning_rate: chosen.rate,
            weight_decay: chosen.decay,
            steps: search.steps,
            batch: config.train.batch,
            images: all.len(),
            predictions: found.file,
        })
    }

    fn test(
        &mut self,
        place: &str,
        config: &crate::RunConfig,
        lesson: Lesson<'_>,
        images: &Images,
    ) -> Result<Figure, EvalError> {
        let (sets, metric) = (&images.sets, images.metric);
        let members = Members::of(sets.test_set(), &sets.test_labels, &sets.test_indices, metric);
        let once: Vec<usize> = members.once().into_iter().map(|row| sets.test_indices[row]).collect();
        let marks = |logits: &Tensor, read: &[usize]| {
            figure(&members, &sets.test_indices, images.shape(), logits, read)
        };
        let of = json!([sets.identities(), metric]);
        let exam = Exam { set: sets.test_set(), images: &once, of, figure: &marks };
        self.trainer.figure(place, config, lesson, &exam, RunPurpose::Reported)
    }
}

/// The images of one set. `rows` below are rows of `members`, of which row i is image `indices[i]` of the training images.
struct Images {
    sets: Sets,
    /// Training and validation part as one, where there is a validation part.
    joined: Option<Dataset>,
    indices: Vec<usize>,
    members: Members,
    /// Rows to train on while candidates are compared.
    fit: Vec<usize>,
    /// Rows to compare them by.
    held: Vec<usize>,
    metric: Metric,
}

impl Images {
    fn open(
        set: &TransferSet,
        run: &RunFolder,
        frozen: &FrozenEncoder,
        seed: u64,
        observer: &mut dyn Observer,
    ) -> Result<Self, EvalError> {
        let (path, metric, how) = (&set.path, set.metric, frozen.decoding());
        let mut sets = Sets::open((path, &Labels::Auto), &how, seed)?;
        sets.identify(run, observer)?;
        let mut members = Members::of(&sets.train, &sets.train_labels, &sets.train_indices, metric);
        let (mut indices, classes) = (sets.train_indices.clone(), sets.train.classes().len());
        let Some((validation, labels)) = sets.validation(path, run, observer)? else {
            let (fit, held) = members.hold_out(classes, HOLD_OUT, seed);
            if held.is_empty() {
                let reason =
                    "too few images to hold some out for choosing learning rate and weight decay".into();
                return Err(EvalError::Labels { path: path.clone(), reason });
            }
            return Ok(Self { sets, joined: None, indices, members, fit, held, metric });
        };
        let rows = members.len();
        let all: Vec<usize> = (0..validation.len()).collect();
        members.append(Members::of(&validation, &labels, &all, metric));
        indices.extend(all.iter().map(|index| sets.train.len() + index));
        let joined = Dataset::open_with_validation(path, Channels::Count(how.channels))?.decoded_by(how.jpeg);
        let mut joined = joined.scaled_to(&how.range)?;
        joined.set_identity(format!("{}+{}", sets.train.identity(), validation.identity()));
        let (fit, held) = ((0..rows).collect(), (rows..members.len()).collect());
        Ok(Self { sets, joined: Some(joined), indices, members, fit, held, metric })
    }

    /// What `indices` are of.
    fn train(&self) -> &Dataset {
        self.joined.as_ref().unwrap_or(&self.sets.train)
    }

    fn source<'a>(&'a self, from: &'a TransferSet) -> Source<'a> {
        let (set, validation) = (self.train(), self.joined.is_some());
        Source { data: &from.path, labels: &Labels::Auto, set, validation }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.members.len()).collect()
    }

    /// The images of `rows`.
    fn of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.indices[row]).collect()
    }

    fn shape(&self) -> (usize, Metric) {
        (self.sets.train.classes().len(), self.metric)
    }
}

/// The metric of `logits`, whose rows are of the images `read`; row i of `members` is image `indices[i]`, ascending.
fn figure(
    members: &Members,
    indices: &[usize],
    (classes, metric): (usize, Metric),
    logits: &Tensor,
    read: &[usize],
) -> Figure {
    let row = |index: &usize| indices.binary_search(index).expect("only these are asked for");
    let truth = members.truth(&read.iter().map(row).collect::<Vec<_>>(), classes);
    // Images are ranked by probability: logits of two images are not on one scale.
    let decision = logits.log_softmax(1, Kind::Double);
    Figure { answers: Some(truth.answers(&decision)), ..Figure::of(truth.figure(&decision, metric)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paper B.8.2 by closed forms: value i of n from a to b is a (b / a)^(i / (n - 1)).
    #[test]
    fn the_grids_are_the_papers() {
        let near = |found: &[f64], exponent: &dyn Fn(f64) -> f64| {
            for (i, value) in found.iter().enumerate() {
                let expected = 10f64.powf(exponent(i as f64));
                assert!((value / expected - 1.0).abs() < 1e-12, "{i}: {value} {expected}");
            }
        };
        let TransferFinetune { batch, tuned, fresh } = TransferFinetune::default();
        assert_eq!((batch, tuned.steps, fresh.steps), (256, 20_000, 40_000));
        assert_eq!((tuned.rates.len(), tuned.decays.len()), (7, 8));
        near(&tuned.rates, &|i| -4.0 + i / 2.0);
        assert_eq!(tuned.decays[0], 0.0);
        near(&tuned.decays[1..], &|i| -6.0 + i / 2.0);
        assert_eq!((fresh.rates.len(), fresh.decays.len()), (7, 8));
        near(&fresh.rates, &|i| -3.0 + i / 2.0);
        near(&fresh.decays, &|i| -5.0 + i / 2.0);
        assert_eq!(TransferFinetune::default().trainings(), 2 * 57);
    }

    #[test]
    fn a_decay_is_divided_by_its_rate() {
        let search = Search { steps: 1, rates: vec![0.1, 0.01], decays: vec![0.0, 1e-3] };
        let found: Vec<_> = search.candidates().iter().map(|pair| (pair.rate, pair.decay)).collect();
        assert_eq!(found, [(0.1, 0.0), (0.1, 1e-3 / 0.1), (0.01, 0.0), (0.01, 1e-3 / 0.01)]);
        let one = Search { steps: 1, rates: vec![0.1], decays: vec![0.0] };
        assert_eq!((search.trainings(), one.trainings()), (5, 1), "one pair needs no comparison");
    }
}
