//! The life of a run, top to bottom.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use simclr_data::{
    Batch, Chunking, DataError, Dataset, Loader, LoaderConfig, Split, dataset::Channels, loader::Batches,
};

use super::{
    Observer, RunFolder, StepReport,
    bad_files::BadFiles,
    clock::Clock,
    large::{Chunks, LargeStep},
    metrics::Metrics,
    online_knn::OnlineKnn,
    start,
    state::{Resumed, capture, first_non_finite, restore, start_from},
    step::{Stepped, train_step},
};
use crate::{
    ConfigError, Plan, RunConfig, TrainError,
    device::{choose_device, choose_precision},
    encoder::NormOver,
    health::Health,
    model::SimClr,
    nt_xent::LossScale,
    objective::{Objective, ObjectiveKind},
    optim::Optimizer,
};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done.
    Finished,
    /// `stop` was set: a checkpoint is written, `--resume` goes on from it.
    Stopped,
}

/// Pretrains on the images of `data`, or goes on from the newest checkpoint of `folder` if it has one.
///
/// # Errors
/// See [`TrainError`]; whatever happens, the last whole checkpoint stays.
pub fn pretrain(
    config: &RunConfig,
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    // Images and plan. The configuration names its images from here on, so a resumed run has the same one.
    let mut config = config.clone();
    config.data.path = Some(fs_err::canonicalize(data).map_err(|_| no_such(data))?);
    let config = &config;
    let dataset = Arc::new(training_images(config, data)?);
    let device = choose_device(config.train.device)?;
    let plan = config.resolve(&dataset, choose_precision(config.train.precision, device))?;
    tch::set_num_threads(plan.torch_threads as i32);

    // Model and optimizer, fresh or from the newest checkpoint.
    let shape = (plan.channels as i64, config.train.image_size as i64);
    let (task, seed) = (&config.task, config.train.seed);
    let objective = objective(config, &dataset)?;
    let model = SimClr::for_task(
        task,
        plan.classes,
        &config.encoder,
        &config.head,
        shape,
        seed,
        device,
        plan.precision,
    )?;
    if let Some(start) = &task.start {
        start_from(start, &model)?;
    }
    let mut optimizer = Optimizer::new(&config.optim, &model.params);
    let (newest, passed_over) = folder.newest_checkpoint()?;
    let Resumed { step: first_step, notes } = match &newest {
        Some((path, checkpoint)) => restore(path, checkpoint, &plan, &model, &mut optimizer)?,
        None => Resumed::default(),
    };
    drop(newest);
    folder.remove_partial_files()?;
    start::save(folder, &plan, device)?;
    observer.start(&start::facts(&plan, &dataset, &model, &optimizer, device));
    passed_over.iter().chain(&notes).for_each(|text| observer.message(text));

    // The loop.
    let mut loader = Loader::new(Arc::clone(&dataset), config.augment.clone(), loader_config(&plan))?;
    if let Some(chunking) = chunking(&plan) {
        loader = loader.chunked(chunking);
    }
    let mut run = Run {
        bad_files: BadFiles::open(folder, first_step == 0)?,
        metrics: Metrics::open(folder, first_step)?,
        knn: OnlineKnn::new(&plan, &dataset),
        objective,
        saved: (Instant::now(), (first_step > 0).then_some(first_step)),
        clock: Clock::default(),
        last_batch: (first_step, Vec::new()),
        plan: &plan,
        folder,
        dataset: &dataset,
        model: &model,
        optimizer,
    };
    let mut batches = loader.batches(first_step, plan.total_steps)?;
    while let Some(batch) = batches.next() {
        let stepped =
            batch.map_err(TrainError::from).and_then(|batch| run.step(batch, &mut batches, observer));
        let done = stepped.or_else(|error| run.give_up(error, batches.left_out()))?;
        if stop.load(Ordering::Relaxed) && done < plan.total_steps {
            run.save(done, observer)?;
            return Ok(Outcome::Stopped);
        }
    }
    run.save(plan.total_steps, observer)?;
    Ok(Outcome::Finished)
}

fn no_such(data: &Path) -> DataError {
    DataError::Empty { path: data.to_owned(), reason: "no such file or folder".into() }
}

/// The training part of the set at `data`, or those of its images that `task.images` lists.
fn training_images(config: &RunConfig, data: &Path) -> Result<Dataset, TrainError> {
    let channels = match config.data.channels {
        0 => Channels::Auto,
        count => Channels::Count(count),
    };
    let all = Dataset::open(data, Split::Train, channels)?;
    Ok(match &config.task.images {
        Some(list) => all.subset(&all.listed(list)?),
        None => all,
    })
}

fn objective(config: &RunConfig, dataset: &Dataset) -> Result<Objective, TrainError> {
    if config.task.objective == ObjectiveKind::Contrastive {
        return Ok(Objective::Contrastive(config.loss.clone()));
    }
    let missing = || ConfigError::Value {
        key: "task.objective".into(),
        value: "supervised".into(),
        expected: "a data set with a label for every image".into(),
    };
    let labels = dataset.labels().ok_or_else(missing)?.into_iter().map(i64::from).collect();
    Ok(Objective::Supervised { labels, classes: dataset.classes().len() })
}

fn loader_config(plan: &Plan) -> LoaderConfig {
    let config = &plan.config;
    LoaderConfig {
        views: config.task.objective.views(),
        batch: config.train.batch,
        size: config.train.image_size,
        seed: config.train.seed,
        threads: plan.data_threads,
        prefetch: config.data.prefetch,
        max_bad_share: config.data.max_bad_share,
    }
}

fn chunking(plan: &Plan) -> Option<Chunking> {
    let train = &plan.config.train;
    let apart = train.batch_norm == NormOver::ChunkShuffled;
    train.is_chunked().then_some(Chunking { images: train.chunk, apart, passes: plan.view_passes })
}

/// A run between its first and its last step.
struct Run<'a> {
    plan: &'a Plan,
    folder: &'a RunFolder,
    dataset: &'a Dataset,
    model: &'a SimClr,
    optimizer: Optimizer,
    objective: Objective,
    metrics: Metrics,
    bad_files: BadFiles,
    knn: Option<OnlineKnn>,
    /// When the last checkpoint was written, and the step of the newest one.
    saved: (Instant, Option<u64>),
    clock: Clock,
    /// Step and images of the newest batch, to name where numbers stop being numbers.
    last_batch: (u64, Vec<usize>),
}

impl Run<'_> {
    /// One update, its record, and what is due after it: health, online kNN, checkpoint. `batch` is the batch of the step, or
    /// its first chunk. Returns how many steps are done.
    fn step(
        &mut self,
        batch: Batch,
        batches: &mut Batches,
        observer: &mut dyn Observer,
    ) -> Result<u64, TrainError> {
        let (plan, config, step) = (self.plan, &self.plan.config, batch.step);
        let (ids, done) = self.update(batch, batches, observer)?;
        let images = ids.len();
        self.last_batch = (step, ids);
        if let Some((what, value)) = done.non_finite() {
            return Err(self.non_finite(what, value)?);
        }
        let (images_per_second, data_wait) = self.clock.tick(images, batches.waited());
        let report = StepReport {
            step,
            total_steps: plan.total_steps,
            epoch: (step + 1) as f64 / plan.steps_per_epoch as f64,
            loss: done.loss,
            chance_loss: self.objective.chance(images),
            accuracy: done.accuracy,
            accuracy_of: config.task.objective.accuracy_name(),
            lr: plan.schedule.at(step),
            images_per_second,
            data_wait,
        };
        self.metrics.step(&report)?;
        observer.step(&report);
        self.due(step + 1, &done, observer)?;
        Ok(step + 1)
    }

    /// The update of one step, whole or in chunks. Returns the images whose loss it is, too.
    fn update(
        &mut self,
        batch: Batch,
        batches: &mut Batches,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<usize>, Stepped), TrainError> {
        let config = &self.plan.config;
        let (lr, shape) = (self.plan.schedule.at(batch.step), (self.plan.channels, config.train.image_size));
        let mut chunks = Chunks::new(batch, batches);
        let done = if config.train.is_chunked() {
            let large = LargeStep {
                model: self.model,
                objective: &self.objective,
                over: config.train.batch_norm,
                passes: self.plan.view_passes,
                shape,
                seed: config.train.seed,
            };
            large.run(&mut chunks, &mut self.optimizer, lr)
        } else {
            let batch = chunks.next()?;
            let done = train_step(self.model, &mut self.optimizer, &self.objective, &batch, shape, lr);
            done.map(|done| (batch.ids, done)).map_err(TrainError::from)
        };
        for sentence in self.bad_files.add(self.dataset, &chunks.bad)? {
            observer.message(&sentence);
        }
        done
    }

    fn due(
        &mut self,
        steps_done: u64,
        done: &Stepped,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let train = &self.plan.config.train;
        let health_due = steps_done.is_multiple_of(train.health_every) || steps_done == self.plan.total_steps;
        if health_due && self.plan.config.task.objective == ObjectiveKind::Contrastive {
            let scale = if self.plan.config.loss.scale == LossScale::Official { 2.0 } else { 1.0 };
            let health = Health::of(&done.h, &done.z, done.loss / scale, done.accuracy);
            self.metrics.health(steps_done - 1, &health)?;
            observer.health(&health);
        }
        let epoch_ends = steps_done.is_multiple_of(self.plan.steps_per_epoch);
        if let Some(knn) = self.knn.as_ref().filter(|knn| epoch_ends && knn.is_due(steps_done)) {
            if let Some(accuracy) = knn.accuracy(self.model, self.dataset)? {
                self.metrics.knn(steps_done - 1, accuracy)?;
                let (epoch, percent) = (steps_done / self.plan.steps_per_epoch, 100.0 * accuracy);
                observer.message(&format!(
                    "epoch {epoch}: online kNN on held-out training images {percent:.1} %"
                ));
            }
            self.clock.restart();
        }
        if self.saved.0.elapsed() >= Duration::from_secs_f64(60.0 * train.checkpoint_minutes) {
            self.save(steps_done, observer)?;
        }
        Ok(())
    }

    /// Lists the images of a batch that could not be made, so that the list is whole when the run ends for them.
    fn give_up<T>(&mut self, error: TrainError, left_out: &[(usize, String)]) -> Result<T, TrainError> {
        self.bad_files.add(self.dataset, left_out)?;
        self.metrics.flush()?;
        Err(error)
    }

    /// Writes the checkpoint of `step` unless it is there already. A state with values that are no numbers is an error
    /// and not written: the checkpoint before it is worth more.
    fn save(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.metrics.flush()?;
        if self.saved.1 == Some(step) {
            return Ok(());
        }
        let checkpoint = capture(self.plan, self.model, &self.optimizer, step);
        if let Some(value) = first_non_finite(&checkpoint) {
            return Err(self.non_finite("a weight", value)?);
        }
        let path = self.folder.checkpoint_file(step);
        checkpoint.save(&path)?;
        self.folder.prune_checkpoints(step, self.plan.config.train.keep_checkpoints)?;
        self.saved = (Instant::now(), Some(step));
        observer.message(&format!("checkpoint after step {step}: {}", path.display()));
        Ok(())
    }

    /// Leaves the names of the newest batch's images behind.
    fn non_finite(&mut self, what: &'static str, value: f64) -> Result<TrainError, TrainError> {
        let (step, ids) = (self.last_batch.0, &self.last_batch.1);
        let names: Vec<_> = ids.iter().map(|&id| self.dataset.samples()[id].name.as_str()).collect();
        let name = format!("nonfinite-step-{step}.txt");
        self.folder.write(&name, &(names.join("\n") + "\n"))?;
        self.metrics.flush()?;
        Ok(TrainError::NonFinite { what, value, step, dump: self.folder.path().join(name) })
    }
}
