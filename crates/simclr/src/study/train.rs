//! Trains the networks of a study, each in a run folder of its own. A finished run is not repeated, an interrupted one continues.

use std::{path::Path, sync::atomic::AtomicBool, time::Instant};

use simclr_data::dataset::Labels;

use super::{
    arm::{How, Run},
    table::{DIVERGED, Figures},
    workspace::{CHOICE, Workspace},
};
use crate::{
    EvalError, RunConfig, TrainError,
    checkpoint::write_atomically,
    config::Written,
    dist::ProcessGroup,
    eval::{
        data::name_lines,
        options::FinetuneRecipe,
        semi_supervised::{DistillOptions, FinetuneOptions, LabelledData, Steps},
    },
    health::Health,
    train::{Observer, Outcome, RunFolder, StepReport, fit},
};

/// Figure of a trained run: seconds of the process that finished it.
pub(super) const SECONDS: &str = "seconds";
/// Figure of a fine-tuned or distilled run: accuracy on the test part, in points.
pub(super) const ACCURACY: &str = "accuracy";

/// Base learning rate of fine-tuning. Ten times the paper's: with few labels, small batches mean few steps.
const FINETUNE_RATE: f64 = 0.5;

/// Progress of a job without the facts, messages and health of its run, which are in the run folder.
struct Quiet<'a>(&'a mut dyn Observer);

impl Observer for Quiet<'_> {
    fn step(&mut self, report: &StepReport) {
        self.0.step(report);
    }

    fn health(&mut self, _: &Health) {}

    fn progress(&mut self, what: &str, done: usize, total: usize) {
        self.0.progress(what, done, total);
    }
}

/// Trains networks.
pub(super) struct Trainer<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
}

impl Trainer<'_> {
    /// Trains `run` and the runs that it starts from, unless they are finished. Returns the note of the finished run.
    pub(super) fn train(&mut self, run: &Run, seed: u64) -> Result<Figures, EvalError> {
        if let Some(source) = run.source() {
            self.train(source, seed)?;
        }
        let file = self.workspace.figures_file(run, seed, None)?;
        if let Some(note) = self.workspace.stored(&file) {
            return Ok(note);
        }
        let begin = Instant::now();
        let mut note = match &run.how {
            How::Fresh => return Ok(Figures::default()),
            How::Fit => self.fit(run, seed)?,
            How::Finetune { .. } | How::Distill { .. } => self.semi_supervised(run, seed)?,
        };
        note.set(SECONDS, begin.elapsed().as_secs_f64());
        self.workspace.store(&file, &note)?;
        Ok(note)
    }

    fn fit(&mut self, run: &Run, seed: u64) -> Result<Figures, EvalError> {
        let path = self.workspace.run_folder(run, seed)?;
        let opened = self.workspace.opened(run.images.set);
        let folder = open_or_create(&path)?;
        let images = path.join("images.txt");
        let chosen = self.workspace.chosen(&run.images);
        write_atomically(&images, name_lines(&opened.set.train, &chosen).as_bytes())?;
        let mut config = run.config(&self.workspace.scale, seed)?;
        (config.train.threads, config.data.threads) = (self.workspace.threads, self.workspace.threads);
        config.task.subset = Some(images);
        config.data.labels = Labels::Auto;
        config.data.channels = opened.set.train.channels();
        let (group, everything) = (ProcessGroup::alone(), Written::EVERYTHING);
        let mut quiet = Quiet(&mut *self.observer);
        let outcome = fit(&group, (&config, &everything), &opened.path, &folder, &mut quiet, self.stop);
        match outcome {
            Ok(Outcome::Finished) => Ok(Figures::default()),
            Ok(Outcome::Stopped) => Err(EvalError::Stopped),
            // A result, not a failure: some studies look for it.
            Err(TrainError::NonFinite { .. }) => Ok(Figures::of(DIVERGED, 1.0)),
            Err(error) => Err(Box::new(error).into()),
        }
    }

    fn semi_supervised(&mut self, run: &Run, seed: u64) -> Result<Figures, EvalError> {
        let workspace = self.workspace;
        let (out, path) = (workspace.run_folder(run, seed)?, &workspace.opened(run.images.set).path);
        let source = run.source().map(|source| workspace.run_folder(source, seed)).transpose()?;
        let source = RunFolder::open(&source.unwrap_or_default()).map_err(Box::new)?;
        let mut quiet = Quiet(&mut *self.observer);
        let share = |labels: f64| workspace.share_of_all(&run.images, labels);
        let data = |labels: f64| LabelledData {
            path,
            labels: Labels::Auto,
            fraction: share(labels),
            seed,
            hold_out_seed: CHOICE,
        };
        let result = match &run.how {
            How::Finetune { labels, head_layers, from_scratch, .. } => {
                let options = finetuning(*labels, *head_layers, *from_scratch);
                let mut steps = Steps { data: data(*labels), observer: &mut quiet, stop: self.stop };
                steps.finetune(&source, &options, &out)?
            }
            How::Distill { labels, temperature, label_weight, .. } => {
                let mut config = run.config(&workspace.scale, seed)?;
                // A student sees all images of the set; as many steps as with the chosen ones.
                config.train.epochs *= workspace.share_of_all(&run.images, 1.0);
                config.optim.warmup_epochs *= workspace.share_of_all(&run.images, 1.0);
                let options =
                    DistillOptions { config, temperature: *temperature, label_weight: *label_weight };
                let mut steps = Steps { data: data(*labels), observer: &mut quiet, stop: self.stop };
                steps.distill(&source, &options, &out)?
            }
            How::Fit | How::Fresh => return Ok(Figures::default()),
        };
        Ok(Figures::of(ACCURACY, 100.0 * result.accuracy))
    }
}

/// Paper B.5: 60 epochs below 5 % of the labels, else 30. Of a subset of a larger set, the share of the subset counts.
fn finetuning(labels: f64, head_layers: usize, from_scratch: bool) -> FinetuneOptions {
    let epochs = if labels < 0.05 { 60.0 } else { 30.0 };
    FinetuneOptions {
        recipe: FinetuneRecipe::V1,
        head_layers,
        epochs: Some(epochs),
        batch: None,
        lr: Some(FINETUNE_RATE),
        from_scratch,
        device: None,
        threads: None,
    }
}

fn open_or_create(path: &Path) -> Result<RunFolder, EvalError> {
    let folder = if RunFolder::is_run(path) { RunFolder::open(path) } else { RunFolder::create(path) };
    Ok(folder.map_err(Box::new)?)
}

/// Mean of the step accuracies in the last epoch of the run `folder`, in points.
pub(super) fn last_accuracy(folder: &RunFolder, config: &RunConfig) -> Result<f64, EvalError> {
    let text = fs_err::read_to_string(folder.metrics_file())?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let last = config.train.epochs - 1.0;
    let accuracy = |line: serde_json::Value| {
        let (epoch, accuracy) = (line["epoch"].as_f64()?, line["accuracy"].as_f64()?);
        (epoch > last).then_some(accuracy)
    };
    let found: Vec<f64> = lines.filter_map(accuracy).collect();
    Ok(100.0 * found.iter().sum::<f64>() / found.len().max(1) as f64)
}
