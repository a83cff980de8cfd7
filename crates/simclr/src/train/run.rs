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
use simclr_data::{
    Batch, Chunking, DataError, Dataset, Loader, LoaderConfig, RangeChoice, Split, dataset,
    error::allowed_failures,
};
use simclr_shim::stream::StreamGuard;
use tch::{Device, Kind, Tensor};

use super::{
    Observer, RunFolder, StepReport,
    agreed::{abort_group_on_error, all_ok, all_ok_with},
    bad_files::BadFiles,
    chance::ChanceMonitor,
    clock::Clock,
    feed::Feed,
    fit::{Fitted, fitted},
    images::{self, TrainedImages},
    large::{Chunks, LargeStep},
    metrics::Metrics,
    online_knn::OnlineKnn,
    recorded::Recorder,
    run_folder::Newest,
    start,
    state::{Resumed, capture, first_non_finite, restore, share, start_from, views_of},
    step::{Setting, Stepped, seed_module, train_step_of},
};
use crate::{
    ConfigError, DistError, Plan, RunConfig, TrainError,
    checkpoint::Checkpoint,
    config::Written,
    device::{choose_device, choose_precision},
    dist::{BatchShards, GradientBuckets, ProcessGroup},
    encoder::BatchNormScope,
    health::Health,
    model::Model,
    nt_xent::{AllGather, LossScale},
    objective::{Objective, ObjectiveKind},
    optim::Optimizer,
    views::{AugmentDevice, choose_augment_device},
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
    fit(&ProcessGroup::alone(), (config, &Written::EVERYTHING), data, folder, observer, stop)
}

/// [`pretrain`] by several processes, each of which calls this with the same configuration and takes its part of every
/// batch. Rank 0 alone reads and writes `folder` and tells `observer`. Keys that are not written in the configuration are chosen
/// for the machine (`fit`).
///
/// # Errors
/// See [`TrainError`]. All processes end with an error if one has one; of several, that of the lowest rank is returned
/// there, and [`TrainError::RemoteRank`] on the others.
pub fn fit(
    group: &ProcessGroup,
    (config, written): (&RunConfig, &Written),
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    group.set_timeouts(&config.ranks);
    // Images, plan, model and optimizer, fresh or from the newest checkpoint.
    let opened = all_ok(group, open(group, config, data))?;
    let Fitted { config, facts } = fitted(group, &opened, written)?;
    let own = all_ok(group, ready(group, &opened, &config))?;
    let Ready { dataset, plan, model, mut optimizer, objective } = own;
    let _stream = all_ok(group, own_stream(&plan, &model))?;
    same_everywhere(group, &plan)?;
    let found = all_ok(group, if group.is_first() { hold(folder) } else { Ok((None, Vec::new())) })?;
    let plan = keep_views(group, found.0.as_ref().map(|(_, checkpoint)| checkpoint), plan);
    let newest = if group.is_first() {
        resume(folder, found, (&plan, &*dataset), &model, &mut optimizer)
    } else {
        Ok(Resumed::default())
    };
    let Resumed { step: first_step, notes } = share(group, &model, &mut optimizer, all_ok(group, newest)?);
    let carried = group.connect_gpus(model.params.device());
    if group.is_first() {
        let own = start::facts(&plan, &dataset, &model, &optimizer, model.params.device());
        observer.start(&[own, facts].concat());
        carried.iter().for_each(|how| observer.message(&format!("tensors between processes: {how}")));
        notes.iter().for_each(|text| observer.message(text));
    }

    // The loop.
    let record = if group.is_first() { Record::open(folder, first_step).map(Some) } else { Ok(None) };
    let mut run = Run {
        record: all_ok(group, record.map_err(TrainError::from))?,
        knn: OnlineKnn::new(&plan, &dataset).filter(|_| group.is_first()),
        objective,
        saved: (Instant::now(), (first_step > 0).then_some(first_step)),
        images: TrainedImages::new(),
        clock: Clock::default(),
        chance: ChanceMonitor::default(),
        last_batch: (first_step, Vec::new()),
        bad: HashSet::new(),
        buckets: GradientBuckets::new(&model.params, group),
        recorder: None,
        plan: &plan,
        folder,
        dataset: &dataset,
        model: &model,
        optimizer,
        group,
    };
    let mut feed = all_ok(group, run.feed(&dataset, first_step))?;
    for step in first_step..plan.total_steps {
        let stepped = run.step(step, &mut feed, observer)?;
        let asked = stop.load(Ordering::Relaxed);
        let (_, asked) = all_ok_with(group, stepped, |()| asked.to_string())?;
        if asked.iter().any(|asked| asked == "true") && step + 1 < plan.total_steps {
            all_ok(group, run.save(step + 1, observer))?;
            return Ok(Outcome::Stopped);
        }
    }
    all_ok(group, run.save(plan.total_steps, observer))?;
    Ok(Outcome::Finished)
}

/// On a GPU, where one thread alone gives it work: a stream of that thread's own. The default one can neither be recorded nor
/// go on beside uploads.
fn own_stream(plan: &Plan, model: &Model) -> Result<Option<StreamGuard>, TrainError> {
    simclr_shim::stream::set_deterministic(plan.config.train.deterministic);
    let like = Tensor::empty([0], (Kind::Float, model.params.device()));
    let alone = plan.ranks == 1 && !plan.is_chunked();
    Ok(alone.then(|| StreamGuard::new(&like)).transpose()?)
}

/// What a process has before it meets the others.
pub(super) struct Ready {
    pub(super) dataset: Arc<Dataset>,
    pub(super) plan: Plan,
    pub(super) model: Model,
    pub(super) optimizer: Optimizer,
    pub(super) objective: Objective,
}

/// The images of a run and where it computes.
pub(super) struct Opened {
    /// As written, with the place of the images.
    pub(super) config: RunConfig,
    pub(super) dataset: Arc<Dataset>,
    pub(super) device: Device,
}

pub(super) fn open(group: &ProcessGroup, config: &RunConfig, data: &Path) -> Result<Opened, TrainError> {
    // The configuration names its images from here on, so a resumed run has the same one.
    let mut config = config.clone();
    config.data.path = Some(dataset::canonical(data)?);
    config.data.labels = config.data.labels.canonical()?;
    let (dataset, range) = training_images(&config, data)?.with_range(&config.data.range)?;
    config.data.range = RangeChoice::Set(range);
    config.data.pages = dataset.decoding().pages;
    let dataset = Arc::new(dataset);
    let device = choose_device(config.train.device, group.local_rank())?;
    Ok(Opened { config, dataset, device })
}

pub(super) fn ready(group: &ProcessGroup, opened: &Opened, config: &RunConfig) -> Result<Ready, TrainError> {
    let (dataset, device) = (Arc::clone(&opened.dataset), opened.device);
    let shape = (dataset.channels(), config.train.image_size);
    let views = choose_augment_device(config.data.views_on, &config.augment, shape, device)?;
    let plan = config.resolve(&dataset, choose_precision(config.train.precision, device), views)?;
    let plan = plan.among(group.count(), group.sharing())?;
    tch::set_num_threads(plan.torch_threads as i32);
    let shape = (plan.channels as i64, config.train.image_size as i64);
    let (task, seed) = (&config.task, config.train.seed);
    let objective = objective(config, &dataset)?;
    let mut model = Model::for_task(
        task,
        plan.classes,
        &config.encoder,
        &config.head,
        shape,
        seed,
        device,
        plan.precision,
    )?;
    model.norm_momentum = config.train.batch_norm_momentum;
    if let Some(start) = &task.start {
        start_from(start, &model)?;
    }
    let optimizer = Optimizer::new(&config.optim, &model.params);
    Ok(Ready { dataset, plan, model, optimizer, objective })
}

/// Other images, another program, another precision or other views on one of the ranks would silently be another run.
fn same_everywhere(group: &ProcessGroup, plan: &Plan) -> Result<(), TrainError> {
    let precision = format!("{:?}", plan.precision).to_lowercase();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let own = [
        ("the images' fingerprints", plan.data_fingerprint.clone()),
        ("the versions of simclr", version),
        ("compute precisions", precision),
        ("the places where views are made", format!("{:?}", plan.views_on).to_lowercase()),
    ];
    let mut result = Ok(());
    for (what, here) in own {
        let first = group.broadcast_text(&here);
        if here != first && result.is_ok() {
            result = Err(DistError::Differ { what, here, first }.into());
        }
    }
    all_ok(group, result)
}

/// A run goes on with views of the loader where it began so, even where `auto` now finds a GPU that makes them. The other way
/// round nothing can be kept, and [`restore`] says so.
fn keep_views(group: &ProcessGroup, newest: Option<&Checkpoint>, plan: Plan) -> Plan {
    let was = newest.and_then(views_of);
    let cpu = group.broadcast_text(&(was == Some(AugmentDevice::Cpu)).to_string()) == "true";
    if cpu { Plan { views_on: AugmentDevice::Cpu, ..plan } } else { plan }
}

/// On rank 0: keeps other processes out of the run folder and finds what it holds.
fn hold(folder: &RunFolder) -> Result<Newest, TrainError> {
    let note = folder.hold()?;
    let (newest, mut notes) = folder.newest_checkpoint()?;
    notes.extend(note);
    Ok((newest, notes))
}

/// On rank 0: the state of the newest checkpoint, where there is one, and a run folder that is ready for the run.
fn resume(
    folder: &RunFolder,
    (newest, mut notes): Newest,
    (plan, dataset): (&Plan, &Dataset),
    model: &Model,
    optimizer: &mut Optimizer,
) -> Result<Resumed, TrainError> {
    let resumed = match &newest {
        Some((path, checkpoint)) => {
            let resumed = restore(path, checkpoint, plan, model, optimizer)?;
            notes.extend(images::check(folder, dataset)?);
            resumed
        }
        None => Resumed::default(),
    };
    folder.remove_partial_files()?;
    start::save(folder, plan, model.params.device())?;
    notes.extend(resumed.notes);
    Ok(Resumed { step: resumed.step, notes })
}

/// The parts of the set at `data` that are trained on.
fn parts(config: &RunConfig, data: &Path) -> Vec<Split> {
    if !config.data.parts.is_empty() {
        return config.data.parts.clone();
    }
    let is_unlabelled = config.task.objective == ObjectiveKind::Contrastive
        && Dataset::splits(data).contains(&Split::Unlabelled);
    let validation = config.task.validation.then_some(Split::Validation);
    let unlabelled = is_unlabelled.then_some(Split::Unlabelled);
    [Some(Split::Train), validation, unlabelled].into_iter().flatten().collect()
}

/// The images that are trained on: of the parts, or those of them that `task.images` lists.
fn training_images(config: &RunConfig, data: &Path) -> Result<Dataset, TrainError> {
    let (options, parts) = (config.data.open_options(), parts(config, data));
    let all = match parts[..] {
        [part] => Dataset::open(data, part, options)?,
        [Split::Train, Split::Validation] => Dataset::open_with_validation(data, options)?,
        _ => Dataset::open_parts(data, &parts, options)?,
    };
    let all = all.decoded_by(config.transform.jpeg).labelled(&config.data.labels, data, &parts)?;
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

pub(super) fn loader_config(plan: &Plan) -> LoaderConfig {
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
    let shuffle_views = plan.config.train.batch_norm == BatchNormScope::ChunkShuffled;
    plan.is_chunked().then_some(Chunking { images: plan.chunk(), shuffle_views, passes: plan.view_passes })
}

/// The update of a batch that goes through in one pass, and its images that could not be decoded.
#[expect(clippy::type_complexity, reason = "what a step returns, and the images")]
fn whole_step(
    setting: &Setting<'_>,
    recorder: &mut Recorder,
    optimizer: &mut Optimizer,
    (step, feed): (u64, &mut Feed),
    lr: f64,
) -> (Result<(Vec<usize>, Stepped), TrainError>, Vec<(usize, String)>) {
    let mut chunks = Chunks::new(step, feed);
    let made = chunks.next();
    let bad = std::mem::take(&mut chunks.bad);
    let update = |batch: Batch| {
        let views = feed.views(&batch, setting.shape, setting.model.params.device());
        let views = abort_group_on_error(setting.group, views)?;
        match recorder.step(setting, optimizer, &views, lr)? {
            Some(done) => Ok((batch.ids, done)),
            None => train_step_of(setting, optimizer, (&batch.ids, &views), lr),
        }
    };
    (all_ok(setting.group, made.map_err(TrainError::from)).and_then(update), bad)
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

/// What a rank tells the others about its part of a batch.
#[derive(Serialize, Deserialize)]
struct Part {
    bad: Vec<(usize, String)>,
    /// Seconds waited for data so far.
    waited: f64,
}

/// A run between its first and its last step.
struct Run<'a> {
    plan: &'a Plan,
    folder: &'a RunFolder,
    dataset: &'a Dataset,
    model: &'a Model,
    optimizer: Optimizer,
    objective: Objective,
    group: &'a ProcessGroup,
    buckets: GradientBuckets,
    recorder: Option<Recorder>,
    /// Rank 0's.
    record: Option<Record>,
    knn: Option<OnlineKnn>,
    /// When the last checkpoint was written, and the step of the newest one.
    saved: (Instant, Option<u64>),
    images: TrainedImages,
    clock: Clock,
    chance: ChanceMonitor,
    /// Step and images of the newest batch over all ranks, to name where numbers stop being numbers.
    last_batch: (u64, Vec<usize>),
    /// Images that no rank could decode so far.
    bad: HashSet<usize>,
}

impl Run<'_> {
    /// Starts the loader of this rank's part. To a GPU whole batches are sent ahead; chunks would lie there until the second
    /// pass.
    fn feed(&self, dataset: &Arc<Dataset>, first_step: u64) -> Result<Feed, TrainError> {
        let (plan, group) = (self.plan, self.group);
        let mut loader = Loader::new(Arc::clone(dataset), plan.config.augment.clone(), loader_config(plan))?;
        if let Some(chunking) = chunking(plan) {
            loader = loader.chunked(chunking);
        }
        if plan.views_on == AugmentDevice::Device {
            loader = loader.deferred();
        }
        let batches = loader.part(group.rank(), group.count()).batches(first_step, plan.total_steps)?;
        let device = self.model.params.device();
        if plan.is_chunked() || !device.is_cuda() {
            return Ok(Feed::Host(batches));
        }
        Feed::ahead(batches, (plan.channels, plan.config.train.image_size), device)
    }

    /// One update, its record, and what is due after it: health, online kNN, checkpoint. An error is one that all ranks know
    /// of; how rank 0's own work went is in the result.
    fn step(
        &mut self,
        step: u64,
        feed: &mut Feed,
        observer: &mut dyn Observer,
    ) -> Result<Result<(), TrainError>, TrainError> {
        let (plan, config) = (self.plan, &self.plan.config);
        let (images, done) = self.update(step, feed, observer)?;
        if let Some((what, value)) = done.non_finite() {
            let error = self.non_finite(what, value).unwrap_or_else(|error| error);
            return all_ok(self.group, Err(error));
        }
        let steps_done = step + 1;
        let health_due =
            steps_done.is_multiple_of(config.train.health_every) || steps_done == plan.total_steps;
        let health =
            (health_due && config.task.objective == ObjectiveKind::Contrastive).then(|| self.health(&done));
        // Every rank's wait is a wait of all; the last one to have its data shows.
        let part = Part { bad: Vec::new(), waited: feed.waited() };
        let parts = self.tell(&part);
        let waited = parts.iter().map(|part| part.waited).fold(0.0, f64::max);
        let (images_per_second, data_wait) = self.clock.tick(images, waited);
        let report = StepReport {
            step,
            total_steps: plan.total_steps,
            epoch: (step + 1) as f64 / plan.steps_per_epoch as f64,
            loss: done.loss,
            chance_loss: self.objective.chance(images),
            accuracy: done.accuracy,
            accuracy_of: config.task.objective.accuracy_name(),
            gradient_norm: done.gradient_norm,
            trust_ratio: health_due.then(|| self.optimizer.trust_ratio_range()).flatten(),
            lr: plan.schedule.at(step),
            images_per_second,
            data_wait,
        };
        Ok(self.write_down(&report, health.as_ref(), observer))
    }

    /// On rank 0: what a step came to, and what is due after it. It may fail there alone: no exchange follows but the one
    /// that asks how the step went.
    fn write_down(
        &mut self,
        report: &StepReport,
        health: Option<&Health>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        if let Some(record) = &mut self.record {
            record.metrics.step(report)?;
            observer.step(report);
            if let Some(health) = health {
                record.metrics.health(report.step, health)?;
                observer.health(health);
            }
            let warning = self.chance.observe(report.step, report.loss, report.chance_loss, self.plan);
            if let Some(warning) = warning {
                observer.message(&warning);
            }
        }
        self.due(report.step + 1, observer)
    }

    /// The update of one step, whole or in chunks. Returns the number of images whose loss it is, too.
    fn update(
        &mut self,
        step: u64,
        feed: &mut Feed,
        observer: &mut dyn Observer,
    ) -> Result<(usize, Stepped), TrainError> {
        let (plan, train) = (self.plan, &self.plan.config.train);
        let (lr, shape) = (plan.schedule.at(step), (plan.channels, train.image_size));
        let setting = Setting {
            model: self.model,
            objective: &self.objective,
            over: train.batch_norm,
            shape,
            group: self.group,
            buckets: &self.buckets,
        };
        let (done, bad) = if plan.is_chunked() {
            let mut chunks = Chunks::new(step, feed);
            let large = LargeStep { setting, passes: plan.view_passes, seed: train.seed };
            (large.run(&mut chunks, &mut self.optimizer, lr), std::mem::take(&mut chunks.bad))
        } else {
            seed_module(self.model, train.seed, step, self.group.rank() as u64);
            let recorder = self.recorder.get_or_insert_with(|| Recorder::new(&setting, train.record_step));
            whole_step(&setting, recorder, &mut self.optimizer, (step, feed), lr)
        };
        self.recorder.iter_mut().filter_map(Recorder::note).for_each(|note| observer.message(&note));
        let failed = feed.failed_images().to_vec();
        // An error has been agreed on, so all are here, with and without.
        self.meet([bad, failed].concat(), observer)?;
        let (ids, done) = done.inspect_err(|_| drop(self.flush()))?;
        let images = ids.len();
        self.last_batch = (step, ids);
        Ok((images, done))
    }

    /// What all ranks have to say about their parts.
    fn tell(&self, own: &Part) -> Vec<Part> {
        let text = serde_json::to_vec(own).expect("numbers and texts are JSON");
        let part = |text: &Vec<u8>| serde_json::from_slice(text).expect("every rank writes a part");
        self.group.all_gather_bytes(&text).iter().map(part).collect()
    }

    /// Lists the images that any rank could not decode. A loader sees those of its own parts alone; the limit is on all.
    fn meet(&mut self, bad: Vec<(usize, String)>, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let bad: Vec<_> =
            self.tell(&Part { bad, waited: 0.0 }).into_iter().flat_map(|part| part.bad).collect();
        if bad.is_empty() {
            return Ok(());
        }
        let noted = self.note_bad(&bad, observer).map_err(TrainError::from);
        all_ok(self.group, noted)?;
        self.bad.extend(bad.iter().map(|(id, _)| *id));
        let (allowed, seen) = (self.plan.config.data.max_bad_share, self.dataset.len());
        if self.group.count() == 1 || self.bad.len() <= allowed_failures(allowed, seen) {
            return Ok(());
        }
        let first = bad.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        all_ok(self.group, Err(DataError::TooManyBad { bad: self.bad.len(), seen, allowed, first }.into()))
    }

    /// Figures of the whole batch.
    fn health(&self, done: &Stepped) -> Health {
        let scale = if self.plan.config.loss.scale == LossScale::Official { 2.0 } else { 1.0 };
        let h = self.group.all_gather_rows(&done.h);
        let z = BatchShards::new(self.group, done.counts.clone()).all_gather(&done.z);
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

    fn flush(&mut self) -> Result<(), std::io::Error> {
        self.record.as_mut().map_or(Ok(()), |record| record.metrics.flush())
    }

    /// On rank 0: writes the checkpoint of `step` unless it is there already. A state with values that are no numbers is an
    /// error and not written: the checkpoint before it is worth more.
    fn save(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.flush()?;
        if self.saved.1 == Some(step) || !self.group.is_first() {
            return Ok(());
        }
        let checkpoint = capture(self.plan, self.model, &self.optimizer, step);
        if let Some(value) = first_non_finite(&checkpoint) {
            return Err(self.non_finite("a weight", value)?);
        }
        let path = self.folder.checkpoint_file(step);
        checkpoint.save(&path)?;
        self.images.save(self.folder, self.dataset)?;
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
        if self.group.is_first() {
            self.folder.write(&name, &(names.join("\n") + "\n"))?;
        }
        self.flush()?;
        Ok(TrainError::NonFinite { what, value, step, dump: self.folder.path().join(name) })
    }
}
