//! Trainings of an evaluation: each is a run within the folder of the evaluated run, so that it resumes, and its figure is
//! cached.

use std::path::Path;

use serde_json::{Value, json};
use simclr_data::{Dataset, dataset::Labels};
use tch::{Device, Tensor};

use super::grid::Candidate;
use crate::{
    CheckpointError, EvalError, RunConfig, TrainError,
    checkpoint::write_atomically,
    device::{Precision, choose_device},
    encoder::Mode,
    eval::{
        context::EvalContext,
        data::{checksum, name_lines},
        features,
        report::{Figure, FigureKey},
    },
    model::Model,
    train::{Observer, Outcome, RunFolder, StepReport, pretrain, state::init_from},
};

/// Trains the models of one evaluation.
pub(crate) struct Runner<'c, 'a> {
    pub(crate) context: &'c mut EvalContext<'a>,
    /// Models trained or cached so far, and in total.
    pub(crate) done: usize,
    pub(crate) total: usize,
}

/// A set to train on, as found by a run of its own.
#[derive(Clone, Copy)]
pub(crate) struct TrainData<'a> {
    pub(crate) path: &'a Path,
    pub(crate) labels: &'a Labels,
    /// The set at `path`: its training part, with `validation` joined with the validation part.
    pub(crate) set: &'a Dataset,
    pub(crate) validation: bool,
}

/// Images to train on: indices in the set of `data`.
#[derive(Clone, Copy)]
pub(crate) struct TrainSubset<'a> {
    pub(crate) data: TrainData<'a>,
    pub(crate) images: &'a [usize],
}

/// Images to evaluate a trained model on.
pub(crate) struct EvalSplit<'a> {
    pub(crate) set: &'a Dataset,
    pub(crate) images: &'a [usize],
    /// Dependencies of the figure besides the model and `images`.
    pub(crate) key: Value,
    pub(crate) metric: &'a MetricFn<'a>,
}

/// Logits `[n, K]` and the index of the image of each row to a figure.
pub(crate) type MetricFn<'a> = dyn Fn(&Tensor, &[usize]) -> Figure + 'a;

/// Use of a trained model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunPurpose {
    /// Its figure is only compared with others: the model is deleted, and a diverged one counts as the worst.
    Compared,
    /// Its figure is reported: the model stays in the run folder.
    Reported,
}

/// Below every figure.
const DIVERGED: f64 = -1.0;

impl<'c, 'a> Runner<'c, 'a> {
    pub(crate) fn new(context: &'c mut EvalContext<'a>) -> Self {
        Self { context, done: 0, total: 0 }
    }

    /// The candidate with the highest figure on `split` after training on `subset`, of equal ones the first.
    pub(crate) fn best_candidate(
        &mut self,
        name: &str,
        candidates: &[Candidate],
        config: &RunConfig,
        subset: TrainSubset<'_>,
        split: &EvalSplit<'_>,
    ) -> Result<Candidate, EvalError> {
        let mut best = (candidates[0], f64::NEG_INFINITY);
        for candidate in candidates {
            let name = format!("{name}, try {}", candidate.describe());
            let config = candidate.apply(config);
            let figure = self.figure(&name, &config, subset, split, RunPurpose::Compared)?.value;
            if figure > best.1 {
                best = (*candidate, figure);
            }
        }
        Ok(best.0)
    }

    /// The figure on `split` of the model trained by `config` on `subset`: from the cache, or by starting or resuming a run.
    pub(crate) fn figure(
        &mut self,
        name: &str,
        config: &RunConfig,
        subset: TrainSubset<'_>,
        split: &EvalSplit<'_>,
        purpose: RunPurpose,
    ) -> Result<Figure, EvalError> {
        let trained = self.dependencies(config, subset);
        let split_key = json!([split.key, checksum(split.images)]);
        let key = FigureKey::new(name, json!({ "trained": trained, "judged": split_key }));
        if let Some(cached) = self.context.cache.figure(&key) {
            self.done += 1;
            return Ok(cached);
        }
        let folder = FigureKey::new(name, trained).file_name();
        let path = self.context.run.evaluation().join(folder);
        let figure = match self.train(name, config, subset, &path) {
            Ok(model) => self.evaluate(&model, split)?,
            Err(EvalError::Training(error)) if purpose == RunPurpose::Compared && error.is_divergence() => {
                Figure { how: error.to_string(), ..Figure::of(DIVERGED) }
            }
            Err(error) => return Err(error),
        };
        let figure = self.context.cache.store_figure(&key, figure)?;
        if purpose == RunPurpose::Compared {
            fs_err::remove_dir_all(path)?;
        }
        Ok(figure)
    }

    /// Dependencies of a trained model; independent of file paths.
    fn dependencies(&self, config: &RunConfig, subset: TrainSubset<'_>) -> Value {
        let mut plain = config.clone();
        // The identity of a set includes its labels.
        (plain.data.path, plain.data.labels) = (None, Labels::Auto);
        (plain.task.init_from, plain.task.subset) = (None, None);
        json!({
            "config": plain,
            "from": config.task.init_from.as_ref().map(|_| self.context.encoder.fingerprint()),
            "set": subset.data.set.identity(),
            "images": checksum(subset.images),
        })
    }

    /// The trained model in evaluation precision; its run is in the folder `path`.
    fn train(
        &mut self,
        name: &str,
        config: &RunConfig,
        subset: TrainSubset<'_>,
        path: &Path,
    ) -> Result<Model, EvalError> {
        let TrainSubset { data, images } = subset;
        let folder = if RunFolder::is_run(path) { RunFolder::open(path) } else { RunFolder::create(path) };
        let folder = folder.map_err(Box::new)?;
        let mut config = config.clone();
        config.task.subset = Some(path.join("images.txt"));
        config.task.include_validation = data.validation;
        config.data.labels = data.labels.clone();
        config.data.channels = self.context.encoder.channels() as usize;
        write_atomically(&path.join("images.txt"), name_lines(data.set, images).as_bytes())?;
        self.done += 1;
        let context = &mut *self.context;
        context.observer.message(&format!("training {} of {}: {name}", self.done, self.total));
        let outcome = pretrain(&config, data.path, &folder, &mut StepsOnly(context.observer), context.stop);
        if outcome.map_err(Box::<TrainError>::from)? == Outcome::Stopped {
            return Err(EvalError::Stopped);
        }
        let model = self.load(&config, data.set.classes().len(), &folder)?;
        if config.task.frozen && self.context.encoder.differs(&model) {
            return Err(EvalError::EncoderChanged { place: name.into() });
        }
        Ok(model)
    }

    fn load(&self, config: &RunConfig, classes: usize, folder: &RunFolder) -> Result<Model, EvalError> {
        let model = Model::for_task(
            &config.task,
            classes,
            &config.encoder,
            &config.head,
            (self.context.encoder.channels(), config.train.image_size as i64),
            config.train.seed,
            choose_device(config.train.device, 0)?,
            Precision::F32,
        )?;
        let missing = || CheckpointError::Missing { folder: folder.path().to_owned() };
        let newest = folder.checkpoint_files()?.pop().ok_or_else(missing)?;
        init_from(&newest, &model)?;
        Ok(model)
    }

    /// Undecodable images are left out.
    fn evaluate(&self, model: &Model, split: &EvalSplit<'_>) -> Result<Figure, EvalError> {
        let logits = |pixels: &Tensor| {
            let (_, logits) = tch::no_grad(|| model.forward(pixels, &Mode::Eval))?;
            Ok(logits.to_device(Device::Cpu))
        };
        let options = self.context.read_options();
        let read = features::extract(split.set, split.images, &options, &[&logits], &mut |_, _| {})?;
        Ok((split.metric)(&read.features[0], &read.indices))
    }
}

/// Forwards the progress of a nested run without its start banner.
struct StepsOnly<'a>(&'a mut dyn Observer);

impl Observer for StepsOnly<'_> {
    fn step(&mut self, report: &StepReport) {
        self.0.step(report);
    }
}
