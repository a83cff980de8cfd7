//! Fine-tuning on other data sets (paper B.8.2): the whole network from the run's weights and from fresh ones, with learning
//! rate and weight decay chosen by the set's metric on its validation part (or a fifth of the training images), trained again
//! on both, tested once.

use serde_json::json;
use simclr_data::{Dataset, dataset::Labels};
use tch::Tensor;

use super::{
    grid::{Candidate, Grid, short_number},
    presets,
    runner::{EvalSplit, RunPurpose, Runner, TrainData, TrainSubset},
};
use crate::{
    EvalError, RunConfig,
    eval::{
        context::EvalContext,
        data::{ImageLabels, LabelledSet},
        options::{HOLD_OUT, TransferFinetune, TransferSearch, TransferSet},
        report::{Figure, TransferRow, Tuned},
    },
};

/// Names of the two protocols.
const FROM_RUN: &str = "transfer, fine-tuned";
const FROM_FRESH: &str = "transfer, fresh weights";

impl TransferSearch {
    /// Every rate with every decay, divided by the rate.
    fn candidates(&self) -> Vec<Candidate> {
        let divided = |Candidate { rate, decay }| Candidate { rate, decay: decay / rate };
        self.grid().candidates.into_iter().map(divided).collect()
    }

    fn grid(&self) -> Grid {
        Grid::product(&self.rates, &self.decays)
    }

    /// One training for each candidate if there is a choice, and one on all images.
    fn trainings(&self) -> usize {
        self.grid().trainings(0) + 1
    }

    fn describe(&self, batch: usize) -> String {
        let list =
            |values: &[f64]| values.iter().map(|value| short_number(*value)).collect::<Vec<_>>().join(", ");
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

/// Fine-tunes on the transfer sets.
pub(crate) struct TransferTuning<'t, 'c, 'a> {
    pub(crate) runner: &'t mut Runner<'c, 'a>,
}

impl TransferTuning<'_, '_, '_> {
    /// Trainings for each set.
    pub(crate) fn trainings(options: &TransferFinetune) -> usize {
        options.pretrained().trainings() + options.fresh().trainings()
    }

    /// Name and description of the two protocols; none without sets.
    pub(crate) fn descriptions(&self) -> Vec<(String, String)> {
        let config = self.runner.context.config;
        let options = &config.transfer_finetune;
        let protocols = [(FROM_RUN, options.pretrained()), (FROM_FRESH, options.fresh())];
        let described = protocols.map(|(name, search)| (name.to_owned(), search.describe(options.batch)));
        if config.transfer.is_empty() { Vec::new() } else { described.to_vec() }
    }

    /// Adds both figures to the row of `set`.
    pub(crate) fn fill(&mut self, set: &TransferSet, row: &mut TransferRow) -> Result<(), EvalError> {
        let images = TransferImages::open(set, self.runner.context)?;
        let options = &self.runner.context.config.transfer_finetune;
        let (pretrained, fresh) = (options.pretrained(), options.fresh());
        row.finetuned = Some(self.tuned(&images, &pretrained, true)?);
        row.fresh = Some(self.tuned(&images, &fresh, false)?);
        Ok(())
    }

    fn tuned(
        &mut self,
        images: &TransferImages<'_>,
        search: &TransferSearch,
        pretrained: bool,
    ) -> Result<Tuned, EvalError> {
        let (encoder, batch) =
            (self.runner.context.encoder, self.runner.context.config.transfer_finetune.batch);
        let start = encoder.origin().checkpoint.clone().filter(|_| pretrained);
        let name =
            format!("{}, {}", images.source.name(), if pretrained { "fine-tuned" } else { "fresh weights" });
        let recipe =
            |images: usize| presets::transfer(encoder.config(), start.clone(), (search.steps, batch), images);
        let (fit, all) = (images.indices_of(&images.fit), images.indices_of(&images.all()));
        let chosen = match &search.candidates()[..] {
            [only] => *only,
            candidates => self.best_candidate(&name, candidates, &recipe(fit.len()), &fit, images)?,
        };
        let config = chosen.apply(&recipe(all.len()));
        let found = self.test(&name, &config, &all, images)?;
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

    fn best_candidate(
        &mut self,
        name: &str,
        candidates: &[Candidate],
        config: &RunConfig,
        fit: &[usize],
        images: &TransferImages<'_>,
    ) -> Result<Candidate, EvalError> {
        let held = images.indices_of(&images.labels.first_rows(&images.held));
        let metric =
            |logits: &Tensor, read: &[usize]| images.figure(&images.labels, &images.indices, logits, read);
        let key = json!(images.source.metric);
        let split = EvalSplit { set: images.train(), images: &held, key, metric: &metric };
        self.runner.best_candidate(name, candidates, config, images.subset(fit), &split)
    }

    fn test(
        &mut self,
        name: &str,
        config: &RunConfig,
        all: &[usize],
        images: &TransferImages<'_>,
    ) -> Result<Figure, EvalError> {
        let (set, metric) = (&images.set, images.source.metric);
        let labels = ImageLabels::of(set.test_set(), &set.test_labels, &set.test_indices, metric);
        let unique: Vec<usize> = labels.unique_images().iter().map(|&row| set.test_indices[row]).collect();
        let figure =
            |logits: &Tensor, read: &[usize]| images.figure(&labels, &set.test_indices, logits, read);
        let key = json!([set.identities(), metric]);
        let split = EvalSplit { set: set.test_set(), images: &unique, key, metric: &figure };
        self.runner.figure(name, config, images.subset(all), &split, RunPurpose::Reported)
    }
}

/// The images of one set. Row i of `labels` belongs to image `indices[i]` of the training images.
struct TransferImages<'a> {
    source: &'a TransferSet,
    set: LabelledSet,
    /// Training and validation part joined, if there is a validation part.
    joined: Option<Dataset>,
    indices: Vec<usize>,
    labels: ImageLabels,
    /// Rows to train candidates on.
    fit: Vec<usize>,
    /// Rows to compare candidates by.
    held: Vec<usize>,
}

impl<'a> TransferImages<'a> {
    fn open(source: &'a TransferSet, context: &mut EvalContext<'_>) -> Result<Self, EvalError> {
        let TransferSet { path, metric } = source;
        let (decoding, seed) = (context.encoder.decoding(), context.config.seed);
        let mut set = LabelledSet::open(path, &Labels::Auto, &decoding, seed)?;
        set.identify(context.run, context.observer)?;
        let mut labels = ImageLabels::of(&set.train, &set.train_labels, &set.train_indices, *metric);
        let mut indices = set.train_indices.clone();
        let Some((validation, of_validation)) = set.validation(path, context.run, context.observer)? else {
            let (fit, held) = labels.hold_out(set.train.classes().len(), HOLD_OUT, seed);
            if held.is_empty() {
                let reason =
                    "too few images to hold some out for choosing learning rate and weight decay".into();
                return Err(EvalError::Labels { path: path.clone(), reason });
            }
            return Ok(Self { source, set, joined: None, indices, labels, fit, held });
        };
        let rows = labels.len();
        let all: Vec<usize> = (0..validation.len()).collect();
        labels.append(ImageLabels::of(&validation, &of_validation, &all, *metric));
        indices.extend(all.iter().map(|index| set.train.len() + index));
        let joined = Dataset::open_with_validation(path, &decoding)?;
        let mut joined = joined.decoded_by(decoding.jpeg).scaled_to(&decoding.range)?;
        joined.set_identity(format!("{}+{}", set.train.identity(), validation.identity()));
        let (fit, held) = ((0..rows).collect(), (rows..labels.len()).collect());
        Ok(Self { source, set, joined: Some(joined), indices, labels, fit, held })
    }

    /// The set of `indices`.
    fn train(&self) -> &Dataset {
        self.joined.as_ref().unwrap_or(&self.set.train)
    }

    fn subset<'s>(&'s self, images: &'s [usize]) -> TrainSubset<'s> {
        let (set, validation) = (self.train(), self.joined.is_some());
        let data = TrainData { path: &self.source.path, labels: &Labels::Auto, set, validation };
        TrainSubset { data, images }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.labels.len()).collect()
    }

    fn indices_of(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|&row| self.indices[row]).collect()
    }

    /// The metric of `logits` of the images `read`; row i of `labels` belongs to image `indices[i]`, ascending.
    fn figure(&self, labels: &ImageLabels, indices: &[usize], logits: &Tensor, read: &[usize]) -> Figure {
        let row = |index: &usize| indices.binary_search(index).expect("all read images have a row");
        let rows: Vec<usize> = read.iter().map(row).collect();
        let truth = labels.truth(&rows, self.set.train.classes().len());
        let value = truth.metric(logits, self.source.metric);
        Figure { predictions: Some(truth.predictions(logits)), ..Figure::of(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_grids_take_57_trainings_each() {
        assert_eq!(TransferTuning::trainings(&TransferFinetune::default()), 2 * 57);
    }

    #[test]
    fn decays_are_divided_by_their_rates() {
        let search = TransferSearch { steps: 1, rates: vec![0.1, 0.01], decays: vec![0.0, 1e-3] };
        let found: Vec<_> = search.candidates().iter().map(|pair| (pair.rate, pair.decay)).collect();
        assert_eq!(found, [(0.1, 0.0), (0.1, 1e-3 / 0.1), (0.01, 0.0), (0.01, 1e-3 / 0.01)]);
        let one = TransferSearch { steps: 1, rates: vec![0.1], decays: vec![0.0] };
        assert_eq!((search.trainings(), one.trainings()), (5, 1), "a single pair needs no comparison");
    }
}
