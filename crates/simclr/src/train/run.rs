//! The life of a run, top to bottom.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use simclr_data::{Batch, DataError, Dataset, Loader, LoaderConfig, Split, dataset::Channels};

use super::{
    Observer, RunFolder, Silent, StepReport,
    bad_files::BadFiles,
    clock::Clock,
    metrics::Metrics,
    online_knn::OnlineKnn,
    start,
    state::{Resumed, capture, first_non_finite, restore, share, start_from},
    step::{Stepped, train_step},
};
use crate::{
    ConfigError, Plan, RanksError, RunConfig, TrainError,
    device::{choose_device, choose_precision},
    health::Health,
    model::SimClr,
    nt_xent::{Gather, LossScale},
    objective::{Objective, ObjectiveKind},
    optim::Optimizer,
    ranks::{Buckets, Disagreed, Ranks, Team},
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
    pretrain_among(&Ranks::alone(), config, data, folder, observer, stop)
}

/// [`pretrain`] by several processes, each of which calls this with the same configuration and takes its part of every
/// batch. Rank 0 alone reads and writes `folder` and tells `observer`.
///
/// # Errors
/// See [`TrainError`]. All processes end with an error if one has one; of several, that of the lowest rank is returned
/// there, and [`TrainError::Elsewhere`] on the others.
pub fn pretrain_among(
    ranks: &Ranks,
    config: &RunConfig,
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    ranks.set_patience(&config.ranks);
    // Images, plan, model and optimizer, fresh or from the newest checkpoint.
    let Ready { dataset, plan, model, mut optimizer, objective } = agreed(ranks, ready(ranks, config, data))?;
    same_everywhere(ranks, &plan)?;
    let newest =
        if ranks.is_first() { newest(folder, &plan, &model, &mut optimizer) } else { Ok(Resumed::default()) };
    let Resumed { step: first_step, notes } = share(ranks, &model, &mut optimizer, agreed(ranks, newest)?);
    if ranks.is_first() {
        observer.start(&start::facts(&plan, &dataset, &model, &optimizer, model.params.device()));
        notes.iter().for_each(|text| observer.message(text));
    }

    // The loop.
    let loader = Loader::new(Arc::clone(&dataset), config.augment.clone(), loader_config(&plan));
    let batches = loader
        .and_then(|all| all.part(ranks.rank(), ranks.count()).batches(first_step, plan.total_steps))
        .map_err(TrainError::from);
    let mut batches = agreed(ranks, batches)?;
    let record = if ranks.is_first() { Record::open(folder, first_step).map(Some) } else { Ok(None) };
    let mut run = Run {
        record: agreed(ranks, record.map_err(TrainError::from))?,
        knn: OnlineKnn::new(&plan, &dataset).filter(|_| ranks.is_first()),
        objective,
        saved: (Instant::now(), (first_step > 0).then_some(first_step)),
        clock: Clock::default(),
        last_batch: (first_step, Vec::new()),
        bad: HashSet::new(),
        buckets: Buckets::new(&model.params, ranks),
        plan: &plan,
        folder,
        dataset: &dataset,
        model: &model,
        optimizer,
        ranks,
    };
    while let Some(batch) = batches.next() {
        let batch = batch.or_else(|error| run.give_up(error, batches.left_out()));
        let (batch, parts) = run.meet(batch, batches.waited())?;
        let stepped = run.step(&batch, &parts, observer);
        let asked = stop.load(Ordering::Relaxed);
        let (_, asked) = agreed_telling(ranks, stepped, |()| asked.to_string())?;
        if asked.iter().any(|asked| asked == "true") && batch.step + 1 < plan.total_steps {
            agreed(ranks, run.save(batch.step + 1, observer))?;
            return Ok(Outcome::Stopped);
        }
    }
    agreed(ranks, run.save(plan.total_steps, observer))?;
    Ok(Outcome::Finished)
}

/// Success where all ranks have it.
fn agreed<T>(ranks: &Ranks, own: Result<T, TrainError>) -> Result<T, TrainError> {
    agreed_telling(ranks, own, |_| String::new()).map(|(value, _)| value)
}

/// [`agreed`], with what each rank tells the others.
fn agreed_telling<T>(
    ranks: &Ranks,
    own: Result<T, TrainError>,
    tell: impl FnOnce(&T) -> String,
) -> Result<(T, Vec<String>), TrainError> {
    ranks.agree(own, tell).map_err(|disagreed| match disagreed {
        Disagreed::Here(error) => error,
        Disagreed::Elsewhere { rank, message } => TrainError::Elsewhere { rank, message },
    })
}

/// What a process has before it meets the others.
struct Ready {
    dataset: Arc<Dataset>,
    plan: Plan,
    model: SimClr,
    optimizer: Optimizer,
    objective: Objective,
}

fn ready(ranks: &Ranks, config: &RunConfig, data: &Path) -> Result<Ready, TrainError> {
    // The configuration names its images from here on, so a resumed run has the same one.
    let mut config = config.clone();
    config.data.path = Some(fs_err::canonicalize(data).map_err(|_| no_such(data))?);
    let config = &config;
    let dataset = Arc::new(training_images(config, data)?);
    let device = choose_device(config.train.device, ranks.local_rank())?;
    let plan = config.resolve(&dataset, choose_precision(config.train.precision, device))?;
    let plan = plan.among(ranks.count(), ranks.sharing())?;
    tch::set_num_threads(plan.torch_threads as i32);
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
    let optimizer = Optimizer::new(&config.optim, &model.params);
    Ok(Ready { dataset, plan, model, optimizer, objective })
}

/// Other images, another program or another precision on one of the ranks would silently be another run.
fn same_everywhere(ranks: &Ranks, plan: &Plan) -> Result<(), TrainError> {
    let precision = format!("{:?}", plan.precision).to_lowercase();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let own = [
        ("the images' fingerprints", plan.data_fingerprint.clone()),
        ("the versions of simclr", version),
        ("compute precisions", precision),
    ];
    let mut result = Ok(());
    for (what, here) in own {
        let first = ranks.broadcast_text(&here);
        if here != first && result.is_ok() {
            result = Err(RanksError::Differ { what, here, first }.into());
        }
    }
    agreed(ranks, result)
}

/// On rank 0: the state of the newest checkpoint, where there is one, and a run folder that is ready for the run.
fn newest(
    folder: &RunFolder,
    plan: &Plan,
    model: &SimClr,
    optimizer: &mut Optimizer,
) -> Result<Resumed, TrainError> {
    let (newest, mut notes) = folder.newest_checkpoint()?;
    let resumed = match &newest {
        Some((path, checkpoint)) => restore(path, checkpoint, plan, model, optimizer)?,
        None => Resumed::default(),
    };
    folder.remove_partial_files()?;
    start::save(folder, plan, model.params.device())?;
    notes.extend(resumed.notes);
    Ok(Resumed { step: resumed.step, notes })
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

/// What rank 0 writes down.
struct Record {
    metrics: Metrics,
    bad_files: BadFiles,
}

impl Record {
    fn open(folder: &RunFolder, first_step: u64) -> Result<Self, std::io::Error> {
        let bad_files = BadFiles::open(folder, first_step == 0)?;
        Ok(Self { metrics: Metrics::open(folder, first_step)?, bad_files })
    }
}

/// One rank's part of a batch, as it tells the others.
#[derive(Serialize, Deserialize)]
struct Part {
    ids: Vec<usize>,
    bad: Vec<(usize, String)>,
    /// Seconds waited for data so far.
    waited: f64,
}

/// A run between its first and its last step.
struct Run<'a> {
    plan: &'a Plan,
    folder: &'a RunFolder,
    dataset: &'a Dataset,
    model: &'a SimClr,
    optimizer: Optimizer,
    objective: Objective,
    ranks: &'a Ranks,
    buckets: Buckets,
    /// Rank 0's.
    record: Option<Record>,
    knn: Option<OnlineKnn>,
    /// When the last checkpoint was written, and the step of the newest one.
    saved: (Instant, Option<u64>),
    clock: Clock,
    /// Step and images of the newest batch over all ranks, to name where numbers stop being numbers.
    last_batch: (u64, Vec<usize>),
    /// Images that no rank could decode so far.
    bad: HashSet<usize>,
}

impl Run<'_> {
    /// Every rank has its part of the batch; none goes on without the others. Gives the parts of all.
    fn meet(
        &mut self,
        batch: Result<Batch, TrainError>,
        waited: f64,
    ) -> Result<(Batch, Vec<Part>), TrainError> {
        if self.ranks.count() == 1 {
            let batch = batch?;
            let part = Part { ids: batch.ids.clone(), bad: batch.bad.clone(), waited };
            return Ok((batch, vec![part]));
        }
        let tell = |batch: &Batch| {
            let part = Part { ids: batch.ids.clone(), bad: batch.bad.clone(), waited };
            serde_json::to_string(&part).expect("numbers and texts are JSON")
        };
        let (batch, parts) = agreed_telling(self.ranks, batch, tell)?;
        let part = |text: &String| serde_json::from_str(text).expect("every rank writes a part");
        let parts: Vec<Part> = parts.iter().map(part).collect();
        // A loader sees the bad images of its own parts alone; the limit is on all of them.
        let bad: Vec<_> = parts.iter().flat_map(|part| part.bad.clone()).collect();
        self.bad.extend(bad.iter().map(|(id, _)| *id));
        let (allowed, seen) = (self.plan.config.data.max_bad_share, self.dataset.len());
        if self.bad.len() as f64 <= allowed * seen as f64 {
            return Ok((batch, parts));
        }
        let first = bad.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        let error = DataError::TooManyBad { bad: self.bad.len(), seen, allowed, first };
        agreed(self.ranks, self.give_up(error, &bad)).map(|batch| (batch, parts))
    }

    /// One update, its record, and what is due after it: health, online kNN, checkpoint.
    fn step(&mut self, batch: &Batch, parts: &[Part], observer: &mut dyn Observer) -> Result<(), TrainError> {
        let (plan, config) = (self.plan, &self.plan.config);
        self.last_batch = (batch.step, parts.iter().flat_map(|part| part.ids.iter().copied()).collect());
        let lr = plan.schedule.at(batch.step);
        let shape = (plan.channels, config.train.image_size);
        let counts = parts.iter().map(|part| part.ids.len()).collect();
        let team = Team::new(self.ranks, counts, &self.buckets);
        let done = train_step(self.model, &mut self.optimizer, &self.objective, batch, shape, lr, &team);
        let done = done.inspect_err(|error| self.ranks.give_up(&error.to_string()))?;
        if let Some((what, value)) = done.non_finite() {
            return Err(self.non_finite(what, value)?);
        }
        let images = team.images();
        let steps_done = batch.step + 1;
        let health_due =
            steps_done.is_multiple_of(config.train.health_every) || steps_done == plan.total_steps;
        let health = (health_due && config.task.objective == ObjectiveKind::Contrastive)
            .then(|| self.health(&done, &team));
        // From here on rank 0 may fail by itself: no exchange follows but the one that asks how the step went.
        for part in parts {
            self.note_bad(&part.bad, observer)?;
        }
        let waited = parts.iter().map(|part| part.waited).fold(0.0, f64::max);
        let (images_per_second, data_wait) = self.clock.tick(images, waited);
        let report = StepReport {
            step: batch.step,
            total_steps: plan.total_steps,
            epoch: (batch.step + 1) as f64 / plan.steps_per_epoch as f64,
            loss: done.loss,
            chance_loss: self.objective.chance(images),
            accuracy: done.accuracy,
            accuracy_of: config.task.objective.accuracy_name(),
            lr,
            images_per_second,
            data_wait,
        };
        if let Some(record) = &mut self.record {
            record.metrics.step(&report)?;
            observer.step(&report);
            if let Some(health) = health {
                record.metrics.health(batch.step, &health)?;
                observer.health(&health);
            }
        }
        self.due(steps_done, observer)
    }

    /// Figures of the whole batch.
    fn health(&self, done: &Stepped, team: &Team<'_>) -> Health {
        let scale = if self.plan.config.loss.scale == LossScale::Official { 2.0 } else { 1.0 };
        let (h, z) = (team.gather(&done.h), team.gather(&done.z));
        Health::of(&h, &z, done.loss / scale, done.accuracy)
    }

    /// Rank 0's work between steps, for which the others wait.
    fn due(&mut self, steps_done: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let train = &self.plan.config.train;
        let epoch_ends = steps_done.is_multiple_of(self.plan.steps_per_epoch);
        if let Some(knn) = self.knn.as_ref().filter(|knn| epoch_ends && knn.is_due(steps_done)) {
            let accuracy = knn.accuracy(self.model, self.dataset)?;
            if let (Some(accuracy), Some(record)) = (accuracy, &mut self.record) {
                record.metrics.knn(steps_done - 1, accuracy)?;
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

    /// Lists images that could not be decoded, each once, and says so.
    fn note_bad(
        &mut self,
        bad: &[(usize, String)],
        observer: &mut dyn Observer,
    ) -> Result<(), std::io::Error> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let sentences = record.bad_files.add(self.dataset, bad)?;
        sentences.iter().for_each(|sentence| observer.message(sentence));
        Ok(())
    }

    /// Lists the images of a batch that could not be made, so that the list is whole when the run ends for them.
    fn give_up(&mut self, error: DataError, left_out: &[(usize, String)]) -> Result<Batch, TrainError> {
        self.note_bad(left_out, &mut Silent)?;
        self.flush()?;
        Err(error.into())
    }

    fn flush(&mut self) -> Result<(), std::io::Error> {
        self.record.as_mut().map_or(Ok(()), |record| record.metrics.flush())
    }

    /// On rank 0: writes the checkpoint of `step` unless it is there already. A state with values that are no numbers is an
    /// error and not written: the checkpoint before it is worth more.
    fn save(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.flush()?;
        if self.saved.1 == Some(step) || !self.ranks.is_first() {
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
        if self.ranks.is_first() {
            self.folder.write(&name, &(names.join("\n") + "\n"))?;
        }
        self.flush()?;
        Ok(TrainError::NonFinite { what, value, step, dump: self.folder.path().join(name) })
    }
}
