//! Protocols that train, each a run of its own below the evaluated run, so that they resume: fine-tuning with few and all
//! labels (paper B.5), the linear classifier on crops of frozen images (B.6), and the supervised baseline (B.3).

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde_json::{Value, json};
use simclr_data::{AugmentConfig, Dataset};
use tch::Tensor;

use super::{
    features::{self, FrozenEncoder, ReadOptions, label_tensor},
    frozen::{Kept, checksum},
    label_sets::LabelSets,
    memory::{Figure, Key, Memory},
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
    /// Layers of the projection head kept below the classifier in fine-tuning: a row for each (0: from h; SimCLRv2: 1).
    pub keep_head: Vec<usize>,
    /// Base learning rates of fine-tuning, for 256 images. Several are compared on a hold-out of the labels.
    pub rates: Vec<f64>,
    /// Several rates of fine-tuning are compared up to this many labels; with more, the first is taken.
    pub sweep_below: usize,
    /// Base learning rates of the linear classifier on crops, for 256 images; several are compared on a hold-out.
    pub linear_rates: Vec<f64>,
    /// Weight decays of the linear classifier on crops; several are compared on a hold-out.
    pub linear_decays: Vec<f64>,
    /// Optimizer of the linear classifier on crops: SGD, or LARS as the paper's alternative (B.6).
    pub linear_optim: OptimKind,
    /// Images per step of fine-tuning and of the linear classifier, at most; a quarter of the labels where that is fewer.
    pub batch: usize,
    /// Epochs; none: as in the paper, 60 below 5 % of the labels and 30 from there on, 90 of the linear classifier.
    pub epochs: Option<f64>,
    /// Subsets of labels, for each share below 1, that are fine-tuned on: the first of those of the linear classifier.
    pub draws: usize,
    /// Seeds of what is trained with all labels, counting up from the run's.
    pub seeds: u64,
}

impl Default for TrainedOptions {
    fn default() -> Self {
        Self {
            finetune: false,
            linear_sgd: false,
            supervised: false,
            keep_head: vec![0],
            rates: vec![FINETUNE_RATE, 10.0 * FINETUNE_RATE],
            sweep_below: 10_000,
            linear_rates: vec![LINEAR_RATE],
            linear_decays: vec![0.0],
            linear_optim: OptimKind::Sgd,
            batch: 256,
            epochs: None,
            draws: 3,
            seeds: 1,
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
/// Share of the labels on which candidates are compared.
const HOLD_OUT: f64 = 0.2;

impl TrainedOptions {
    /// # Errors
    /// A value that cannot be run.
    pub fn check(&self) -> Result<(), EvalError> {
        let positive = |rates: &[f64]| !rates.is_empty() && rates.iter().all(|r| r.is_finite() && *r > 0.0);
        let decays = &self.linear_decays;
        let fine = self.draws >= 1
            && self.seeds >= 1
            && self.batch >= 2
            && self.epochs.is_none_or(|epochs| epochs > 0.0)
            && positive(&self.rates)
            && positive(&self.linear_rates)
            && !decays.is_empty()
            && decays.iter().all(|decay| decay.is_finite() && *decay >= 0.0)
            && !self.keep_head.is_empty()
            && [OptimKind::Sgd, OptimKind::Lars].contains(&self.linear_optim);
        let wrong = "evaluation options: expected learning rates and epochs above 0, weight decays of at least 0, at least \
                     one draw, one seed and one layer to start from, a batch of 2, and sgd or lars for the linear classifier";
        if fine { Ok(()) } else { Err(EvalError::Refused(wrong.into())) }
    }
}

/// Everything that these protocols share.
pub(super) struct Bench<'a> {
    pub(super) run: &'a RunFolder,
    pub(super) frozen: &'a FrozenEncoder,
    pub(super) data: &'a Path,
    pub(super) sets: &'a Sets,
    pub(super) kept: &'a Kept,
    pub(super) labels: &'a LabelSets,
    pub(super) memory: &'a Memory,
    pub(super) options: &'a EvalOptions,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
    /// Models trained, or known already, and in all.
    pub(super) trained: (usize, usize),
}

/// Rows, and the protocols in words by the name of their row.
type Rows = (Vec<Row>, Vec<(String, String)>);

/// Learning rates and weight decays that are compared.
struct Grid {
    candidates: Vec<(f64, f64)>,
    /// With more labels than this the first candidate is taken.
    below: usize,
}

impl Bench<'_> {
    /// The rows that the options ask for.
    pub(super) fn rows(&mut self) -> Result<Rows, EvalError> {
        self.trained = (0, self.count());
        let options = self.options.trained.clone();
        let (mut rows, mut protocols) = (Vec::new(), Vec::new());
        let start = self.frozen.origin().checkpoint.clone();
        if options.linear_sgd {
            let name = self.linear_name();
            let config = self.linear_config(start.clone());
            let grid = self.linear_grid();
            protocols.push((name.clone(), format!("{}{}", self.words(&config), grid.words())));
            let place =
                format!("linear-{}", if options.linear_optim == OptimKind::Sgd { "sgd" } else { "lars" });
            let cell = self.with_all(&place, &config, &grid)?;
            rows.push(self.row(&name, vec![cell]));
        }
        if options.finetune {
            for keep in &options.keep_head {
                let name = finetuned_name(*keep);
                let config = self.finetune_config(start.clone(), *keep, 1.0, self.kept.train.len());
                let words = format!(
                    "from the run's weights; {}{}",
                    self.words(&config),
                    self.finetune_grid().words()
                );
                protocols.push((name.clone(), words));
                rows.push(self.finetuned(&name, start.as_ref(), *keep)?);
            }
            protocols.push((FRESH.into(), "the same from fresh weights".into()));
            rows.push(self.finetuned(FRESH, None, 0)?);
        }
        if options.supervised {
            let config = self.supervised_config();
            let words = format!("the run's own recipe with labels: {}", self.words(&config));
            protocols.push((SUPERVISED.into(), words));
            let cell =
                self.with_all("supervised", &config, &Grid::one(config.optim.lr, config.optim.weight_decay))?;
            rows.push(self.row(SUPERVISED, vec![cell]));
        }
        Ok((rows, protocols))
    }

    /// How many models the options ask for.
    fn count(&self) -> usize {
        let options = &self.options.trained;
        let (all, seeds) = (self.kept.train.len(), options.seeds as usize);
        let linear = seeds + self.linear_grid().size(all);
        let share = |share: f64| {
            let grid = self.finetune_grid();
            let finals = if share < 1.0 { 1 } else { seeds };
            self.finetune_sets(share).iter().map(|subset| finals + grid.size(subset.len())).sum::<usize>()
        };
        let finetuned =
            self.options.shares.iter().map(|&of| share(of)).sum::<usize>() * (options.keep_head.len() + 1);
        let asked =
            [(options.linear_sgd, linear), (options.finetune, finetuned), (options.supervised, seeds)];
        asked.iter().filter(|(asked, _)| *asked).map(|(_, count)| count).sum()
    }

    fn linear_name(&self) -> String {
        format!("linear on crops ({:?})", self.options.trained.linear_optim).to_lowercase()
    }

    fn linear_grid(&self) -> Grid {
        let options = &self.options.trained;
        let with = |rate: &f64| options.linear_decays.iter().map(|decay| (*rate, *decay)).collect::<Vec<_>>();
        Grid { candidates: options.linear_rates.iter().flat_map(with).collect(), below: usize::MAX }
    }

    fn finetune_grid(&self) -> Grid {
        let options = &self.options.trained;
        Grid {
            candidates: options.rates.iter().map(|rate| (*rate, 0.0)).collect(),
            below: options.sweep_below,
        }
    }

    /// The subsets of one share that are fine-tuned on.
    fn finetune_sets(&self, share: f64) -> &[Vec<usize>] {
        let subsets = self.labels.at(share);
        // Lists were given to be used, all of them.
        let count = if self.options.lists.is_empty() { self.options.trained.draws } else { subsets.len() };
        &subsets[..count.min(subsets.len())]
    }

    /// A cell of what is trained with all labels, over seeds.
    fn with_all(&mut self, place: &str, config: &RunConfig, grid: &Grid) -> Result<Cell, EvalError> {
        let all = self.kept.train.clone();
        let chosen = self.best(place, config, &all, grid)?;
        let figures = (0..self.options.trained.seeds).map(|seed| {
            let mut config = with(config, chosen);
            config.train.seed = config.train.seed.wrapping_add(seed);
            let place = if seed == 0 { place.to_owned() } else { format!("{place}-seed-{seed}") };
            let figure = self.figure(&place, &config, &all)?;
            Ok(Figure { how: said(chosen), ..figure })
        });
        Ok(Cell::of_figures(1.0, all.len(), figures.collect::<Result<_, EvalError>>()?))
    }

    /// One row of fine-tuning: a cell for each share of the labels.
    fn finetuned(&mut self, name: &str, start: Option<&PathBuf>, keep: usize) -> Result<Row, EvalError> {
        let grid = self.finetune_grid();
        let mut cells = Vec::new();
        for share in self.options.shares.clone() {
            let place =
                |draw: usize| format!("{}-{}pct-{draw}", name.replace([' ', ','], "-"), 100.0 * share);
            let config = |labels: usize| self.finetune_config(start.cloned(), keep, share, labels);
            if share >= 1.0 {
                let config = config(self.kept.train.len());
                cells.push(self.with_all(&place(0), &config, &grid)?);
                continue;
            }
            let subsets = self.finetune_sets(share).to_vec();
            let configs: Vec<RunConfig> = subsets.iter().map(|subset| config(subset.len())).collect();
            let mut figures = Vec::new();
            for (draw, (subset, config)) in subsets.iter().zip(configs).enumerate() {
                let chosen = self.best(&place(draw), &config, subset, &grid)?;
                let figure = self.figure(&place(draw), &with(&config, chosen), subset)?;
                figures.push(Figure { how: said(chosen), ..figure });
            }
            cells.push(Cell::of_figures(share, subsets.first().map_or(0, Vec::len), figures));
        }
        Ok(self.row(name, cells))
    }

    fn row(&self, name: &str, by_labels: Vec<Cell>) -> Row {
        let dimensions = self.frozen.feature_dim();
        Row { name: name.into(), dimensions, knn: None, knn_plain: None, retrieval: None, by_labels }
    }

    /// The candidate with the highest accuracy on a stratified fifth of the labels; the first of equals.
    fn best(
        &mut self,
        place: &str,
        config: &RunConfig,
        subset: &[usize],
        grid: &Grid,
    ) -> Result<(f64, f64), EvalError> {
        let labels: Vec<i64> = subset.iter().map(|&index| self.sets.train_labels[index]).collect();
        let (fit, held) =
            splits::hold_out(&labels, self.sets.train.classes().len(), HOLD_OUT, self.options.seed);
        if grid.size(subset.len()) == 0 {
            return Ok(grid.candidates[0]);
        }
        if held.is_empty() || fit.len() < 2 {
            self.trained.0 += grid.candidates.len();
            return Ok(grid.candidates[0]);
        }
        let pick =
            |positions: &[usize]| positions.iter().map(|&position| subset[position]).collect::<Vec<_>>();
        let (fit, held) = (pick(&fit), pick(&held));
        let mut best = (grid.candidates[0], f64::NEG_INFINITY);
        for candidate in &grid.candidates {
            let mut config = with(config, *candidate);
            config.train.batch = config.train.batch.min(fit.len());
            let place = format!("{place}-try-{}-{}", candidate.0, candidate.1);
            let accuracy = self.tried(&place, &config, &fit, &held)?;
            if accuracy > best.1 {
                best = (*candidate, accuracy);
            }
        }
        Ok(best.0)
    }

    /// Accuracy on the training images `held` after training on `fit`. The model is not kept.
    fn tried(
        &mut self,
        place: &str,
        config: &RunConfig,
        fit: &[usize],
        held: &[usize],
    ) -> Result<f64, EvalError> {
        let what = self.what(config, fit);
        let key = Key::new(place, json!({ "trained": what, "judged": checksum(held) }));
        if let Some(known) = self.memory.figure(&key) {
            self.trained.0 += 1;
            return Ok(known.value);
        }
        let (model, folder) = self.train(place, config, fit)?;
        let figure = self.judged(&model, (&self.sets.train, &self.sets.train_labels), held)?;
        let figure = self.memory.keep_figure(&key, figure)?;
        fs_err::remove_dir_all(folder.path())?;
        Ok(figure.value)
    }

    /// Test accuracy of the classifier trained by `config` on the images `indices`. A figure that is there already is
    /// taken; a run that was interrupted goes on.
    fn figure(&mut self, place: &str, config: &RunConfig, indices: &[usize]) -> Result<Figure, EvalError> {
        let what = self.what(config, indices);
        let test = json!([self.sets.fingerprints(), checksum(&self.kept.test)]);
        let key = Key::new(place, json!({ "trained": what, "test": test }));
        if let Some(known) = self.memory.figure(&key) {
            self.trained.0 += 1;
            return Ok(known);
        }
        let (model, _) = self.train(place, config, indices)?;
        let test = (self.sets.test_set(), &self.sets.test_labels[..]);
        let figure = self.judged(&model, test, &self.kept.test)?;
        self.memory.keep_figure(&key, figure)
    }

    /// All that a trained model depends on, wherever its files are.
    fn what(&self, config: &RunConfig, indices: &[usize]) -> Value {
        let mut plain = config.clone();
        plain.data.path = None;
        (plain.task.start, plain.task.images) = (None, None);
        json!({
            "config": plain,
            "from": config.task.start.as_ref().map(|_| self.frozen.fingerprint()),
            "set": self.sets.train.fingerprint(),
            "images": checksum(indices),
        })
    }

    /// The trained model of a protocol, in evaluation precision, and where it is.
    fn train(
        &mut self,
        place: &str,
        config: &RunConfig,
        indices: &[usize],
    ) -> Result<(SimClr, RunFolder), EvalError> {
        let name = Key::new(place, self.what(config, indices)).file_name();
        let path = self.run.path().join("evaluation").join(name);
        let folder =
            if path.join("config.toml").exists() { RunFolder::open(&path) } else { RunFolder::create(&path) }
                .map_err(from_training)?;
        let samples = self.sets.train.samples();
        let names: Vec<&str> = indices.iter().map(|&index| samples[index].name.as_str()).collect();
        let mut config = config.clone();
        config.task.images = Some(path.join("images.txt"));
        config.data.channels = self.frozen.channels() as usize;
        write_atomically(&path.join("images.txt"), (names.join("\n") + "\n").as_bytes())?;
        self.trained.0 += 1;
        self.observer.message(&format!("training {} of {}: {place}", self.trained.0, self.trained.1));
        let outcome = pretrain(&config, self.data, &folder, &mut OnlySteps(self.observer), self.stop);
        if outcome.map_err(from_training)? == Outcome::Stopped {
            return Err(EvalError::Stopped);
        }
        let model = self.load(&config, &folder)?;
        if config.task.frozen && self.frozen.differs(&model) {
            return Err(EvalError::Other(format!("{place}: the encoder changed although it was frozen")));
        }
        Ok((model, folder))
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

    /// The model's labels for `indices`, and the share of them that are right; bad images are left out of both.
    fn judged(
        &self,
        model: &SimClr,
        (set, labels): (&Dataset, &[i64]),
        indices: &[usize],
    ) -> Result<Figure, EvalError> {
        let read = ReadOptions::of(self.frozen, self.options.batch, self.options.threads);
        let logits = |pixels: &Tensor| {
            let (_, logits) = tch::no_grad(|| model.forward(pixels, &Mode::Eval))?;
            Ok(logits.argmax(1, false).to_device(tch::Device::Cpu))
        };
        let read = features::extract(set, indices, &read, &[&logits], &mut |_, _| {})?;
        Ok(Figure::accuracy(&read.features[0], &label_tensor(labels, &read.indices)))
    }

    /// Paper B.5: Nesterov momentum, no warm-up, no regularisation, crop and flip only.
    fn finetune_config(
        &self,
        start: Option<PathBuf>,
        keep_head: usize,
        share: f64,
        labels: usize,
    ) -> RunConfig {
        let paper = if share < FEW_LABELS { FEW_EPOCHS } else { MORE_EPOCHS };
        let epochs = self.options.trained.epochs.unwrap_or(paper);
        let mut config = self.with_labels(FINETUNE_RATE, epochs, labels);
        config.task = TaskConfig { start, keep_head, ..config.task };
        config
    }

    /// Paper B.6: Nesterov momentum, no warm-up, no weight decay, crop and flip only, encoder frozen.
    fn linear_config(&self, start: Option<PathBuf>) -> RunConfig {
        let options = &self.options.trained;
        let epochs = options.epochs.unwrap_or(LINEAR_EPOCHS);
        let mut config = self.with_labels(LINEAR_RATE, epochs, self.kept.train.len());
        config.optim.kind = options.linear_optim;
        config.task = TaskConfig { start, frozen: true, ..config.task };
        config
    }

    /// Paper B.3: the run's own recipe, with labels in place of pairs.
    fn supervised_config(&self) -> RunConfig {
        let mut config = self.frozen.config().clone();
        config.task = TaskConfig { objective: ObjectiveKind::Supervised, ..TaskConfig::default() };
        config.train.batch = config.train.batch.min(self.kept.train.len());
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

pub(super) const FINETUNED: &str = "fine-tuned";
const FRESH: &str = "fine-tuned, fresh weights";
const SUPERVISED: &str = "supervised";

fn finetuned_name(keep: usize) -> String {
    if keep == 0 { FINETUNED.into() } else { format!("fine-tuned from head layer {keep}") }
}

impl Grid {
    fn one(rate: f64, decay: f64) -> Self {
        Self { candidates: vec![(rate, decay)], below: 0 }
    }

    /// Candidates that are tried with so many labels; 0 where there is nothing to compare.
    fn size(&self, labels: usize) -> usize {
        if self.candidates.len() > 1 && labels <= self.below { self.candidates.len() } else { 0 }
    }

    fn words(&self) -> String {
        let tried: Vec<String> = self.candidates.iter().map(|candidate| said(*candidate)).collect();
        let below =
            if self.below == usize::MAX { String::new() } else { format!(" up to {} labels", self.below) };
        match tried.len() {
            1 => String::new(),
            _ => format!("; compared on a fifth of the labels{below}: {}", tried.join(", ")),
        }
    }
}

fn said((rate, decay): (f64, f64)) -> String {
    if decay > 0.0 { format!("learning rate {rate} decay {decay}") } else { format!("learning rate {rate}") }
}

fn with(config: &RunConfig, (rate, decay): (f64, f64)) -> RunConfig {
    let mut config = config.clone();
    (config.optim.lr, config.optim.weight_decay) = (rate, decay);
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
