//! One training after another, each a run of its own below the evaluated run, so that it resumes; judged and remembered.
//! What is trained and what its figure means is the business of the protocols.

use std::{path::Path, sync::atomic::AtomicBool};

use serde_json::{Value, json};
use simclr_data::{Dataset, dataset::Labels};
use tch::{Device, Tensor};

use crate::eval::evaluate::EvalOptions;
use crate::eval::features::frozen_encoder::{FrozenEncoder, ReadOptions};
use crate::eval::finetune::grid::Candidate;
use crate::eval::probes::frozen::checksum;
use crate::eval::report::results_cache::{Figure, Key, Memory};
use crate::{
    CheckpointError, EvalError, RunConfig,
    checkpoint::write_atomically,
    device::{Precision, choose_device},
    encoder::Mode,
    model::Model,
    train::{Observer, Outcome, RunFolder, StepReport, pretrain, state::start_from},
};

/// Trains for one evaluation.
pub(crate) struct Trainer<'a> {
    pub(crate) run: &'a RunFolder,
    pub(crate) frozen: &'a FrozenEncoder,
    pub(crate) memory: &'a Memory,
    pub(crate) options: &'a EvalOptions,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
    /// Models trained, or known already, and in all.
    pub(crate) trained: (usize, usize),
}

/// A set to train on, as a run of its own finds it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) data: &'a Path,
    pub(crate) labels: &'a Labels,
    /// What is at `data`: the training part, or with `validation` both.
    pub(crate) set: &'a Dataset,
    pub(crate) validation: bool,
}

/// Images to train on: indices in the set of the source.
#[derive(Clone, Copy)]
pub(crate) struct Lesson<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) images: &'a [usize],
}

/// Images to be judged on.
pub(crate) struct Exam<'a> {
    pub(crate) set: &'a Dataset,
    pub(crate) images: &'a [usize],
    /// What a figure depends on besides the model and `images`.
    pub(crate) of: Value,
    /// Logits `[n, K]` and the index of each row's image to a figure.
    pub(crate) figure: &'a Marks<'a>,
}

/// What becomes of a trained model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunPurpose {
    /// Its figure is only compared: it is not kept, and one that diverged is the worst.
    Compared,
    /// Its figure is reported: it stays in the run folder.
    Reported,
}

/// Below every figure.
const DIVERGED: f64 = -1.0;

/// See [`Exam::figure`].
pub(crate) type Marks<'a> = dyn Fn(&Tensor, &[usize]) -> Figure + 'a;

impl Trainer<'_> {
    /// The candidate with the highest figure in `exam` after training on `lesson`; the first of equals.
    pub(crate) fn choose(
        &mut self,
        place: &str,
        candidates: &[Candidate],
        config: &RunConfig,
        lesson: Lesson<'_>,
        exam: &Exam<'_>,
    ) -> Result<Candidate, EvalError> {
        let mut best = (candidates[0], f64::NEG_INFINITY);
        for candidate in candidates {
            let place = format!("{place}, try {}", candidate.said());
            let figure =
                self.figure(&place, &candidate.put(config), lesson, exam, RunPurpose::Compared)?.value;
            if figure > best.1 {
                best = (*candidate, figure);
            }
        }
        Ok(best.0)
    }

    /// The figure in `exam` of the model trained by `config` on `lesson`. One that is known already is taken; a run that was
    /// interrupted goes on.
    pub(crate) fn figure(
        &mut self,
        place: &str,
        config: &RunConfig,
        lesson: Lesson<'_>,
        exam: &Exam<'_>,
        model: RunPurpose,
    ) -> Result<Figure, EvalError> {
        let judged = json!([exam.of, checksum(exam.images)]);
        let key = Key::new(place, json!({ "trained": self.what(config, lesson), "judged": judged }));
        if let Some(known) = self.memory.figure(&key) {
            self.trained.0 += 1;
            return Ok(known);
        }
        let path = self.run.path().join("evaluation").join(self.name(place, config, lesson));
        let figure = match self.train(place, config, lesson, &path) {
            Ok(trained) => self.judged(&trained, exam)?,
            Err(EvalError::Training(error)) if model == RunPurpose::Compared && error.is_divergence() => {
                Figure { how: error.to_string(), ..Figure::of(DIVERGED) }
            }
            Err(error) => return Err(error),
        };
        let figure = self.memory.keep_figure(&key, figure)?;
        if model == RunPurpose::Compared {
            fs_err::remove_dir_all(path)?;
        }
        Ok(figure)
    }

    /// Of the folder of a training.
    fn name(&self, place: &str, config: &RunConfig, lesson: Lesson<'_>) -> String {
        Key::new(place, self.what(config, lesson)).file_name()
    }

    /// All that a trained model depends on, wherever its files are.
    fn what(&self, config: &RunConfig, lesson: Lesson<'_>) -> Value {
        let mut plain = config.clone();
        // The identity of a set holds its labels.
        (plain.data.path, plain.data.labels) = (None, Labels::Auto);
        (plain.task.start, plain.task.images) = (None, None);
        json!({
            "config": plain,
            "from": config.task.start.as_ref().map(|_| self.frozen.fingerprint()),
            "set": lesson.source.set.identity(),
            "images": checksum(lesson.images),
        })
    }

    /// The trained model of a protocol, in evaluation precision; its run is in the folder `path`.
    fn train(
        &mut self,
        place: &str,
        config: &RunConfig,
        lesson: Lesson<'_>,
        path: &Path,
    ) -> Result<Model, EvalError> {
        let Lesson { source, images } = lesson;
        let folder =
            if path.join("config.toml").exists() { RunFolder::open(path) } else { RunFolder::create(path) }
                .map_err(from_training)?;
        let samples = source.set.samples();
        let names: Vec<&str> = images.iter().map(|&index| samples[index].name.as_str()).collect();
        let mut config = config.clone();
        config.task.images = Some(path.join("images.txt"));
        config.task.validation = source.validation;
        config.data.labels = source.labels.clone();
        config.data.channels = self.frozen.channels() as usize;
        write_atomically(&path.join("images.txt"), (names.join("\n") + "\n").as_bytes())?;
        self.trained.0 += 1;
        self.observer.message(&format!("training {} of {}: {place}", self.trained.0, self.trained.1));
        let outcome = pretrain(&config, source.data, &folder, &mut OnlySteps(self.observer), self.stop);
        if outcome.map_err(from_training)? == Outcome::Stopped {
            return Err(EvalError::Stopped);
        }
        let model = self.load(&config, source.set.classes().len(), &folder)?;
        if config.task.frozen && self.frozen.differs(&model) {
            return Err(EvalError::Other(format!("{place}: the encoder changed although it was frozen")));
        }
        Ok(model)
    }

    fn load(&self, config: &RunConfig, classes: usize, folder: &RunFolder) -> Result<Model, EvalError> {
        let model = Model::for_task(
            &config.task,
            classes,
            &config.encoder,
            &config.head,
            (self.frozen.channels(), config.train.image_size as i64),
            config.train.seed,
            choose_device(config.train.device, 0)?,
            Precision::F32,
        )?;
        let missing = || CheckpointError::Missing { folder: folder.path().to_owned() };
        let newest = folder.checkpoint_files()?.pop().ok_or_else(missing)?;
        start_from(&newest, &model)?;
        Ok(model)
    }

    /// The model's figure; bad images are left out.
    fn judged(&self, model: &Model, exam: &Exam<'_>) -> Result<Figure, EvalError> {
        let read = ReadOptions::of(self.frozen, self.options.batch, self.options.threads);
        let logits = |pixels: &Tensor| {
            let (_, logits) = tch::no_grad(|| model.forward(pixels, &Mode::Eval))?;
            Ok(logits.to_device(Device::Cpu))
        };
        let read = crate::eval::features::extract(exam.set, exam.images, &read, &[&logits], &mut |_, _| {})?;
        Ok((exam.figure)(&read.features[0], &read.indices))
    }
}

fn from_training(error: crate::TrainError) -> EvalError {
    EvalError::Training(Box::new(error))
}

/// Of a protocol's own run only the steps are shown: its facts follow from the evaluated run's.
struct OnlySteps<'a>(&'a mut dyn Observer);

impl Observer for OnlySteps<'_> {
    fn step(&mut self, report: &StepReport) {
        self.0.step(report);
    }
}
