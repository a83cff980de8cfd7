//! Protocols that train, each a run of its own below the evaluated run, so that they resume: fine-tuning with few and all
//! labels (paper B.5), the linear classifier on crops of frozen images (B.6), and the supervised baseline (B.3).

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use simclr_data::{AugmentConfig, Dataset};
use tch::Tensor;

use super::{
    features::{self, FrozenEncoder, ReadOptions, label_tensor},
    knn,
    protocol::EvalOptions,
    results::{Cell, Row},
    sets::Sets,
    splits,
};
use crate::{
    CheckpointError, EvalError, RunConfig,
    checkpoint::write_atomically,
    device::{Precision, choose_device},
    encoder::Mode,
    model::SimClr,
    objective::{ObjectiveKind, TaskConfig},
    optim::{OptimConfig, OptimKind, Scaling, ScheduleKind},
    train::{Observer, Outcome, RunFolder, StepReport, pretrain, state::start_from},
};

/// Which of them to run, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedOptions {
    /// Fine-tune the whole network from the run's weights, and beside it from fresh ones.
    pub finetune: bool,
    /// The linear classifier by SGD on random crops of all training images, encoder frozen.
    pub linear_sgd: bool,
    /// The encoder from fresh weights with all labels, by the run's own recipe.
    pub supervised: bool,
    /// Layers of the projection head kept below the classifier in fine-tuning (SimCLRv2: 1).
    pub keep_head: usize,
    /// Base learning rates of fine-tuning, for 256 images. Several are compared on a hold-out of the labels.
    pub rates: Vec<f64>,
    /// Several rates are compared up to this many labels; with more, the first is taken.
    pub sweep_below: usize,
    /// Images per step of fine-tuning and of the linear classifier, at most; a quarter of the labels where that is fewer.
    pub batch: usize,
    /// Epochs; none: as in the paper, 60 below 5 % of the labels and 30 from there on, 90 of the linear classifier.
    pub epochs: Option<f64>,
    /// Subsets of labels drawn for each share below 1.
    pub draws: usize,
    /// Lists of image names that take the place of drawn subsets, each with the share that it stands for.
    pub lists: Vec<PathBuf>,
}

impl Default for TrainedOptions {
    fn default() -> Self {
        Self {
            finetune: false,
            linear_sgd: false,
            supervised: false,
            keep_head: 0,
            rates: vec![FINETUNE_RATE, 10.0 * FINETUNE_RATE],
            sweep_below: 10_000,
            batch: 256,
            epochs: None,
            draws: 3,
            lists: Vec::new(),
        }
    }
}

/// Paper B.5: 0.05 * B / 256.
const FINETUNE_RATE: f64 = 0.05;
/// Paper B.6: 0.1 * B / 256, 90 epochs.
const LINEAR_RATE: f64 = 0.1;
const LINEAR_EPOCHS: f64 = 90.0;
/// Paper B.5: 60 epochs with 1 % of the labels, 30 with 10 %.
const FEW_LABELS: f64 = 0.05;
const FEW_EPOCHS: f64 = 60.0;
const MORE_EPOCHS: f64 = 30.0;
/// Share of the labels on which learning rates are compared.
const HOLD_OUT: f64 = 0.2;

impl TrainedOptions {
    /// # Errors
    /// A value that cannot be run.
    pub fn check(&self) -> Result<(), EvalError> {
        let fine = self.draws >= 1
            && self.batch >= 2
            && self.epochs.is_none_or(|epochs| epochs > 0.0)
            && !self.rates.is_empty()
            && self.rates.iter().all(|rate| rate.is_finite() && *rate > 0.0);
        let wrong = "evaluation options: expected learning rates and epochs above 0, at least one draw, and a batch of 2";
        if fine { Ok(()) } else { Err(EvalError::Refused(wrong.into())) }
    }
}

/// Everything that these protocols share.
pub(super) struct Bench<'a> {
    pub(super) run: &'a RunFolder,
    pub(super) frozen: &'a FrozenEncoder,
    pub(super) data: &'a Path,
    pub(super) sets: &'a Sets,
    pub(super) options: &'a EvalOptions,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
}

/// Rows, and the protocols in words by the name of their row.
type Rows = (Vec<Row>, Vec<(String, String)>);

impl Bench<'_> {
    /// The rows that the options ask for.
    pub(super) fn rows(&mut self) -> Result<Rows, EvalError> {
        let options = self.options.trained.clone();
        let (mut rows, mut protocols) = (Vec::new(), Vec::new());
        let start = self.frozen.origin().checkpoint.clone();
        if options.linear_sgd {
            let config = self.linear_config(start.clone());
            protocols.push((LINEAR.into(), self.words(&config)));
            let all = self.sets.train_indices.clone();
            let accuracy = self.accuracy("linear-sgd", &config, &all)?;
            rows.push(self.row(LINEAR, vec![Cell::of(1.0, all.len(), vec![accuracy])]));
        }
        if options.finetune {
            let kept = format!("from the run's weights, {} layers of the head kept; ", options.keep_head);
            let swept = format!("learning rates {:?} compared on a fifth of the labels", options.rates);
            let config = self.finetune_config(start.clone(), 1.0, self.sets.train_indices.len());
            protocols.push((FINETUNED.into(), format!("{kept}{}; {swept}", self.words(&config))));
            rows.push(self.finetuned(FINETUNED, start)?);
            protocols.push((FRESH.into(), "the same from fresh weights".into()));
            rows.push(self.finetuned(FRESH, None)?);
        }
        if options.supervised {
            let mut config = self.frozen.config().clone();
            config.task = TaskConfig { objective: ObjectiveKind::Supervised, ..TaskConfig::default() };
            protocols.push((
                SUPERVISED.into(),
                format!("the run's own recipe with labels: {}", self.words(&config)),
            ));
            let all = self.sets.train_indices.clone();
            let accuracy = self.accuracy("supervised", &config, &all)?;
            rows.push(self.row(SUPERVISED, vec![Cell::of(1.0, all.len(), vec![accuracy])]));
        }
        Ok((rows, protocols))
    }

    /// One row of fine-tuning: a cell for each share of the labels.
    fn finetuned(&mut self, name: &str, start: Option<PathBuf>) -> Result<Row, EvalError> {
        let mut cells = Vec::new();
        for share in self.options.shares.clone() {
            let (mut accuracies, mut rates, mut labels) = (Vec::new(), Vec::new(), 0);
            for (draw, subset) in self.subsets(share)?.into_iter().enumerate() {
                labels = subset.len();
                let place = format!("{}-{}pct-{draw}", name.replace([' ', ','], "-"), 100.0 * share);
                let config = self.finetune_config(start.clone(), share, labels);
                let rate = self.best_rate(&place, &config, &subset)?;
                accuracies.push(self.accuracy(&place, &with_rate(&config, rate), &subset)?);
                rates.push(format!("learning rate {rate}"));
            }
            cells.push(Cell { fits: rates, ..Cell::of(share, labels, accuracies) });
        }
        Ok(self.row(name, cells))
    }

    fn row(&self, name: &str, by_labels: Vec<Cell>) -> Row {
        let dimensions = self.frozen.feature_dim();
        Row { name: name.into(), dimensions, knn: None, retrieval: None, by_labels }
    }

    /// Indices in the training split of the labelled images of each draw.
    fn subsets(&self, share: f64) -> Result<Vec<Vec<usize>>, EvalError> {
        let (all, options) = (&self.sets.train_indices, self.options);
        if share >= 1.0 {
            return Ok(vec![all.clone()]);
        }
        let labels: Vec<i64> = all.iter().map(|&index| self.sets.train_labels[index]).collect();
        let classes = self.sets.train.classes().len();
        let mut given = Vec::new();
        for list in &options.trained.lists {
            let listed = self.sets.train.listed(list)?;
            // A list stands for the share that it is nearest to.
            let its = listed.len() as f64 / all.len() as f64;
            let nearest = |a: &&f64, b: &&f64| (*a / its).ln().abs().total_cmp(&(*b / its).ln().abs());
            if options.shares.iter().min_by(nearest) == Some(&share) {
                given.push(listed);
            }
        }
        if !given.is_empty() {
            return Ok(given);
        }
        let draw = |draw| splits::balanced_subset(&labels, classes, share, options.seed, draw as u64);
        let positions = (0..options.trained.draws).map(draw);
        Ok(positions.map(|subset| subset.into_iter().map(|position| all[position]).collect()).collect())
    }

    /// The rate with the highest accuracy on a stratified fifth of the labels; the lowest of equals.
    fn best_rate(&mut self, place: &str, config: &RunConfig, subset: &[usize]) -> Result<f64, EvalError> {
        let options = &self.options.trained;
        let labels: Vec<i64> = subset.iter().map(|&index| self.sets.train_labels[index]).collect();
        let (fit, held) =
            splits::hold_out(&labels, self.sets.train.classes().len(), HOLD_OUT, self.options.seed);
        let one = options.rates.len() == 1 || subset.len() > options.sweep_below;
        if one || held.is_empty() || fit.len() < 2 {
            return Ok(options.rates[0]);
        }
        let pick =
            |positions: &[usize]| positions.iter().map(|&position| subset[position]).collect::<Vec<_>>();
        let (fit, held) = (pick(&fit), pick(&held));
        let mut best = (f64::NAN, f64::NEG_INFINITY);
        for rate in options.rates.clone() {
            let mut config = with_rate(config, rate);
            config.train.batch = config.train.batch.min(fit.len());
            let model = self.train(&format!("{place}-rate-{rate}"), &config, &fit)?;
            let accuracy = self.right(&model, (&self.sets.train, &self.sets.train_labels), &held)?;
            if accuracy > best.1 {
                best = (rate, accuracy);
            }
        }
        Ok(best.0)
    }

    /// Test accuracy of the classifier trained by `config` on the images `indices`. A figure that is there already is
    /// taken; a run that was interrupted goes on.
    fn accuracy(&mut self, place: &str, config: &RunConfig, indices: &[usize]) -> Result<f64, EvalError> {
        let model = self.train(place, config, indices)?;
        let test = self.sets.test.as_ref().unwrap_or(&self.sets.train);
        self.right(&model, (test, &self.sets.test_labels), &self.sets.test_indices)
    }

    /// The trained model of a protocol, in evaluation precision.
    fn train(&mut self, place: &str, config: &RunConfig, indices: &[usize]) -> Result<SimClr, EvalError> {
        let samples = self.sets.train.samples();
        let names: Vec<&str> = indices.iter().map(|&index| samples[index].name.as_str()).collect();
        let names = names.join("\n") + "\n";
        let what = format!("{}{}{names}", config.to_toml(), self.sets.train.fingerprint());
        let path = self
            .run
            .path()
            .join("evaluation")
            .join(format!("{place}-{:08x}", crc32c::crc32c(what.as_bytes())));
        let folder =
            if path.join("config.toml").exists() { RunFolder::open(&path) } else { RunFolder::create(&path) }
                .map_err(from_training)?;
        let mut config = config.clone();
        config.task.images = Some(path.join("images.txt"));
        config.data.channels = self.frozen.channels() as usize;
        write_atomically(&path.join("images.txt"), names.as_bytes())?;
        self.observer.message(&format!("training {place}"));
        let outcome = pretrain(&config, self.data, &folder, &mut OnlySteps(self.observer), self.stop);
        if outcome.map_err(from_training)? == Outcome::Stopped {
            return Err(EvalError::Stopped);
        }
        self.load(&config, &folder)
    }

    fn load(&self, config: &RunConfig, folder: &RunFolder) -> Result<SimClr, EvalError> {
        let shape = (self.frozen.channels(), config.train.image_size as i64);
        let model = SimClr::for_task(
            &config.task,
            self.sets.train.classes().len(),
            &config.encoder,
            &config.head,
            shape,
            config.train.seed,
            choose_device(config.train.device, 0)?,
            Precision::F32,
        )?;
        let missing = || CheckpointError::Missing { folder: folder.path().to_owned() };
        let newest = folder.checkpoint_files()?.pop().ok_or_else(missing)?;
        start_from(&newest, &model)?;
        Ok(model)
    }

    /// Share of `indices` whose label the model finds; bad images are left out of both.
    fn right(
        &self,
        model: &SimClr,
        (set, labels): (&Dataset, &[i64]),
        indices: &[usize],
    ) -> Result<f64, EvalError> {
        let read = ReadOptions::of(self.frozen, self.options.batch, self.options.threads);
        let logits = |pixels: &Tensor| {
            let (_, logits) = tch::no_grad(|| model.forward(pixels, &Mode::Eval))?;
            Ok(logits.argmax(1, false).to_device(tch::Device::Cpu))
        };
        let read = features::extract(set, indices, &read, &[&logits], &mut |_, _| {})?;
        Ok(knn::accuracy(&read.features[0], &label_tensor(labels, &read.indices)))
    }

    /// Paper B.5: Nesterov momentum, no warm-up, no regularisation, crop and flip only.
    fn finetune_config(&self, start: Option<PathBuf>, share: f64, labels: usize) -> RunConfig {
        let paper = if share < FEW_LABELS { FEW_EPOCHS } else { MORE_EPOCHS };
        let epochs = self.options.trained.epochs.unwrap_or(paper);
        // From fresh weights there is no head to keep.
        let keep_head = if start.is_some() { self.options.trained.keep_head } else { 0 };
        let mut config = self.with_labels(FINETUNE_RATE, epochs, labels);
        config.task = TaskConfig { start, keep_head, ..config.task };
        config
    }

    /// Paper B.6: Nesterov momentum, no warm-up, no weight decay, crop and flip only, encoder frozen.
    fn linear_config(&self, start: Option<PathBuf>) -> RunConfig {
        let epochs = self.options.trained.epochs.unwrap_or(LINEAR_EPOCHS);
        let mut config = self.with_labels(LINEAR_RATE, epochs, self.sets.train_indices.len());
        config.task = TaskConfig { start, frozen: true, ..config.task };
        config
    }

    fn with_labels(&self, rate: f64, epochs: f64, labels: usize) -> RunConfig {
        let mut config = self.frozen.config().clone();
        config.augment = AugmentConfig {
            color: 0.0,
            gray: 0.0,
            blur: 0.0,
            solarize: 0.0,
            rotate: 0.0,
            cutout: 0.0,
            noise: 0.0,
            sobel: 0.0,
            ..config.augment
        };
        config.optim = OptimConfig {
            kind: OptimKind::Sgd,
            lr: rate,
            scaling: Scaling::Linear,
            weight_decay: 0.0,
            momentum: 0.9,
            nesterov: true,
            warmup_epochs: 0.0,
            schedule: ScheduleKind::Cosine,
            ..OptimConfig::default()
        };
        config.task = TaskConfig { objective: ObjectiveKind::Supervised, ..TaskConfig::default() };
        config.train.epochs = epochs;
        config.train.batch = self.options.trained.batch.min(labels / 4).max(2);
        config.train.knn_every = 0.0;
        config.train.keep_checkpoints = 1;
        config
    }

    /// What is trained, for the results.
    fn words(&self, config: &RunConfig) -> String {
        let (optim, train) = (&config.optim, &config.train);
        format!(
            "{:?}, base rate {}, weight decay {}, {} epochs of batches up to {}, crops of {} px",
            optim.kind, optim.lr, optim.weight_decay, train.epochs, train.batch, train.image_size
        )
        .to_lowercase()
    }
}

const LINEAR: &str = "linear on crops (sgd)";
const FINETUNED: &str = "fine-tuned";
const FRESH: &str = "fine-tuned, fresh weights";
const SUPERVISED: &str = "supervised";

fn with_rate(config: &RunConfig, rate: f64) -> RunConfig {
    let mut config = config.clone();
    config.optim.lr = rate;
    config
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
