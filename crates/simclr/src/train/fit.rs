//! A run from set-up to its last checkpoint: steps, records, evaluations.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use simclr_data::{DataError, Dataset, error::allowed_failures};

use super::{
    Observer, RunFolder, StepReport,
    auto_config::{AutoConfigured, auto_configure},
    clock::Clock,
    journal::Journal,
    online_knn::OnlineKnn,
    setup::{self, Prepared},
    start,
    state::{Resumed, broadcast},
};
use crate::{
    Plan, RunConfig, TrainError,
    config::{ReadLoss, Written},
    dist::{BatchShards, GradientBuckets, ProcessGroup, all_ok, all_ok_with},
    exec::{DevicePrefetcher, Executor, Launched, StepId, StepOutput, executor},
    health::Health,
    losses::AllGather,
    methods::Method,
    optim::Optimizer,
};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// After `total_steps` steps.
    Finished,
    /// By `stop`, with a checkpoint from which the run can be resumed.
    Stopped,
}

/// [`fit`] in one process, with no key left to choose for the machine.
///
/// # Errors
/// As [`fit`].
pub fn pretrain(
    config: &RunConfig,
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    fit(&ProcessGroup::alone(), (config, &Written::EVERYTHING), data, folder, observer, stop)
}

/// Trains on the images of `data`, from the newest checkpoint of `folder` if there is one. Every process of `group` calls this with
/// the same configuration and trains on its part of every batch; only rank 0 reads and writes `folder` and calls `observer`.
/// Keys that are not `written` are chosen for the machine.
///
/// # Errors
/// See [`TrainError`]; the last complete checkpoint is kept. If one rank fails, all return an error: the lowest failing rank its
/// own, the others [`TrainError::RemoteRank`].
pub fn fit(
    group: &ProcessGroup,
    (config, written): (&RunConfig, &Written),
    data: &Path,
    folder: &RunFolder,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    group.set_timeouts(&config.dist);
    let mut opened = all_ok(group, setup::open(group, config, data))?;
    let newest = all_ok(group, if group.is_first() { setup::hold(folder) } else { Ok(Default::default()) })?;
    opened.augment_on = setup::augment_on(group, newest.0.as_ref(), config);
    opened.resumed = group.broadcast_text(&newest.0.is_some().to_string()) == "true";
    let transport = group.connect_gpus(opened.device);
    let AutoConfigured { config, facts } = auto_configure(group, &opened, written)?;
    let Prepared { dataset, plan, mut method, mut optimizer, initial } =
        all_ok(group, setup::prepare(group, &opened, &config))?;
    let device = method.params().device();
    let _stream = all_ok(group, setup::stream(group, &plan, device))?;

    setup::check_ranks_agree(group, &plan)?;
    let resumed = if group.is_first() {
        start::save_written(folder, written, opened.resumed)
            .and_then(|()| setup::resume(folder, newest, (&plan, &*dataset), &mut *method, &mut optimizer))
    } else {
        Ok(Resumed::default())
    };
    let resumed = broadcast(group, &mut *method, &mut optimizer, all_ok(group, resumed)?);

    if group.is_first() {
        let own = start::facts(&plan, &dataset, &*method, &optimizer, device);
        let initial = initial.map(|text| ("initial weights".to_owned(), text));
        observer.start(&[own, initial.into_iter().collect(), facts].concat());
        let transport = transport.map(|text| format!("tensors between processes: {text}"));
        let read_loss = read_at_once(group, &plan);
        for text in transport.iter().chain(&read_loss).chain(&resumed.notes).chain(written.notices()) {
            observer.message(text);
        }
    }
    let journal = group.is_first().then(|| journal(folder, &plan, &dataset, resumed.step)).transpose();
    let run = Run {
        journal: all_ok(group, journal)?,
        knn: OnlineKnn::new(&plan, &dataset).filter(|_| group.is_first()),
        clock: Clock::default(),
        failed: HashSet::new(),
        deferred: None,
        gradients: GradientBuckets::configured(&plan.config.dist, method.params(), group),
        plan: &plan,
        dataset: &dataset,
        method,
        optimizer,
        group,
    };
    run.steps(resumed.step, observer, stop)
}

/// A notice where `train.read_loss` cannot have its effect.
fn read_at_once(group: &ProcessGroup, plan: &Plan) -> Option<String> {
    let ignored = group.count() > 1 && plan.config.train.read_loss == ReadLoss::NextStep;
    ignored
        .then(|| "train.read_loss: each step is waited for, because there are several processes".to_owned())
}

fn journal<'a>(
    folder: &'a RunFolder,
    plan: &Plan,
    dataset: &'a Dataset,
    first_step: u64,
) -> Result<Journal<'a>, TrainError> {
    let mut journal = Journal::open(folder, dataset, first_step)?;
    if first_step == 0 {
        journal.views(plan)?;
    }
    Ok(journal)
}

/// Values that the ranks exchange after a step.
#[derive(Serialize, Deserialize)]
struct RankReport {
    /// Images that failed to decode.
    failed: Vec<(usize, String)>,
    /// Total seconds waited for data.
    waited: f64,
}

/// A launched step before its records are written.
struct Unrecorded {
    step: u64,
    launched: Launched,
    /// Seconds that the slowest rank had waited for data.
    waited: f64,
}

/// A run between its first and its last step.
struct Run<'a> {
    plan: &'a Plan,
    dataset: &'a Arc<Dataset>,
    method: Box<dyn Method>,
    optimizer: Optimizer,
    group: &'a ProcessGroup,
    gradients: GradientBuckets,
    /// `Some` on rank 0.
    journal: Option<Journal<'a>>,
    /// `Some` on rank 0 if online kNN is configured.
    knn: Option<OnlineKnn>,
    clock: Clock,
    /// Images that failed to decode on any rank.
    failed: HashSet<usize>,
    /// The previous step, if `train.read_loss` defers its record.
    deferred: Option<Unrecorded>,
}

impl Run<'_> {
    fn steps(
        mut self,
        first_step: u64,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        let total_steps = self.plan.total_steps;
        let device = self.method.params().device();
        let batches = setup::batches(self.group, self.plan, self.dataset, device, first_step);
        let mut batches = all_ok(self.group, batches)?;
        let passes = self.plan.is_chunked().then_some(self.plan.view_passes);
        let context = setup::step_context(self.plan, self.group, &*self.method, &self.gradients);
        let mut executor = executor(&context, passes, self.plan.config.train.cuda_graph);
        for step in first_step..total_steps {
            let launched = self.update(step, &mut *executor, &mut batches, observer)?;
            let mut done = self.record_or_defer(launched, observer)?;
            let stop_here = stop.load(Ordering::Relaxed);
            if stop_here && done.is_ok() {
                done = self.record_deferred(observer)?;
            }
            let (_, stops) = all_ok_with(self.group, done, |()| stop_here.to_string())?;
            if stops.iter().any(|stop| stop == "true") && step + 1 < total_steps {
                all_ok(self.group, self.save(step + 1, observer))?;
                return Ok(Outcome::Stopped);
            }
        }
        all_ok(self.group, self.save(total_steps, observer))?;
        Ok(Outcome::Finished)
    }

    /// Records the previous step if it was deferred, and this step unless it is deferred until the next one has been launched.
    /// The outer error is common to all ranks; the inner one is rank 0's own.
    fn record_or_defer(
        &mut self,
        step: Unrecorded,
        observer: &mut dyn Observer,
    ) -> Result<Result<(), TrainError>, TrainError> {
        let defers = match self.plan.config.train.read_loss {
            ReadLoss::Auto => matches!(step.launched, Launched::Unread(_)),
            ReadLoss::EachStep => false,
            ReadLoss::NextStep => true,
        };
        let deferred = defers && self.group.count() == 1 && !self.is_due(step.step);
        let previous = self.record_deferred(observer)?;
        if previous.is_err() {
            return Ok(previous);
        }
        if deferred {
            self.deferred = Some(step);
            return Ok(Ok(()));
        }
        let steps_done = step.step + 1;
        let recorded = self.record(step, observer)?;
        Ok(recorded.and_then(|()| self.evaluate_and_save(steps_done, observer)))
    }

    fn record_deferred(&mut self, observer: &mut dyn Observer) -> Result<Result<(), TrainError>, TrainError> {
        self.deferred.take().map_or(Ok(Ok(())), |step| self.record(step, observer))
    }

    /// Whether health, online kNN, a checkpoint or the end needs the values of this step and the weights after it.
    fn is_due(&self, step: u64) -> bool {
        self.is_health_due(step) || self.due_knn(step + 1).is_some() || self.is_checkpoint_due()
    }

    fn is_health_due(&self, step: u64) -> bool {
        let is_last = step + 1 == self.plan.total_steps;
        is_last || (step + 1).is_multiple_of(self.plan.config.train.health_every)
    }

    /// The online kNN, if it is due after `steps_done` steps.
    fn due_knn(&self, steps_done: u64) -> Option<&OnlineKnn> {
        self.knn.as_ref().filter(|knn| knn.is_due(steps_done))
    }

    fn is_checkpoint_due(&self) -> bool {
        let interval = Duration::from_secs_f64(60.0 * self.plan.config.train.checkpoint_minutes);
        self.journal.as_ref().is_some_and(|journal| journal.since_checkpoint() >= interval)
    }

    /// Waits for a step and writes its records.
    fn record(
        &mut self,
        Unrecorded { step, launched, waited }: Unrecorded,
        observer: &mut dyn Observer,
    ) -> Result<Result<(), TrainError>, TrainError> {
        // Only a replay has to be waited for, and can fail here; replays run in one process.
        let output = launched.wait()?;
        if let Some((what, value)) = output.non_finite() {
            return all_ok(self.group, Err(self.non_finite(what, value, step, &output.ids)));
        }
        let health_due = self.is_health_due(step);
        let health = (health_due && self.method.traits().has_pairs).then(|| self.health(&output));
        let report = self.report(step, &output, waited, health_due);
        let Some(journal) = &mut self.journal else { return Ok(Ok(())) };
        journal.last_batch = (step, output.ids);
        Ok(journal.step(&report, health.as_ref(), self.plan, observer))
    }

    /// Launches one update and lists the images of its batch that failed to decode.
    fn update(
        &mut self,
        step: u64,
        executor: &mut dyn Executor,
        batches: &mut DevicePrefetcher,
        observer: &mut dyn Observer,
    ) -> Result<Unrecorded, TrainError> {
        let id = StepId { step, lr: self.plan.schedule.at(step) };
        self.method.before_step(step);
        let context = setup::step_context(self.plan, self.group, &*self.method, &self.gradients);
        let launched = executor.launch(&context, &mut self.optimizer, id, batches);
        if let Some(notice) = executor.take_notice() {
            observer.message(&notice);
        }
        // A collective: steps fail on all ranks or on none, so all ranks reach this.
        let own = RankReport { failed: batches.take_failed(), waited: batches.waited() };
        let reports = self.all_gather(&own);
        let waited = reports.iter().map(|report| report.waited).fold(0.0, f64::max);
        self.record_failed(reports, observer)?;
        if launched.is_err() {
            drop(self.record_deferred(observer));
            drop(self.flush());
        }
        let launched = launched?;
        if let Some((z, counts)) = launched.embeddings() {
            self.method.after_step(step, z, &BatchShards::new(self.group, counts));
        }
        Ok(Unrecorded { step, launched, waited })
    }

    fn report(&mut self, step: u64, output: &StepOutput, waited: f64, health_due: bool) -> StepReport {
        let images = output.ids.len();
        let (images_per_second, data_wait) = self.clock.tick(images, waited);
        StepReport {
            step,
            total_steps: self.plan.total_steps,
            epoch: (step + 1) as f64 / self.plan.steps_per_epoch as f64,
            loss: output.loss,
            chance_loss: self.method.chance_loss(images),
            accuracy: output.accuracy,
            accuracy_of: self.plan.config.task.objective.accuracy_name(),
            gradient_norm: output.gradient_norm,
            trust_ratio: health_due.then(|| self.optimizer.trust_ratio_range()).flatten(),
            lr: self.plan.schedule.at(step),
            images_per_second,
            data_wait,
        }
    }

    /// Online kNN and checkpoint after `steps_done` steps, on rank 0. May fail on rank 0 alone, because the caller's next
    /// collective compares results.
    fn evaluate_and_save(&mut self, steps_done: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if let Some(knn) = self.due_knn(steps_done) {
            let accuracy = knn.accuracy(self.method.model(), self.dataset)?;
            if let (Some(journal), Some(accuracy)) = (&mut self.journal, accuracy) {
                journal.online_knn(steps_done, accuracy, self.plan, observer)?;
            }
            self.clock.restart();
        }
        if self.is_checkpoint_due() { self.save(steps_done, observer) } else { Ok(()) }
    }

    fn all_gather(&self, own: &RankReport) -> Vec<RankReport> {
        let bytes = serde_json::to_vec(own).expect("the report has JSON types only");
        let parse =
            |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("every rank sends a serialized report");
        self.group.all_gather_bytes(&bytes).iter().map(parse).collect()
    }

    /// Lists images that failed to decode on any rank and checks `data.max_bad_share` over all ranks; a loader checks it for its own
    /// part only.
    fn record_failed(
        &mut self,
        reports: Vec<RankReport>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let failed: Vec<_> = reports.into_iter().flat_map(|report| report.failed).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let listed = self.journal.as_mut().map_or(Ok(()), |journal| journal.failed(&failed, observer));
        all_ok(self.group, listed)?;
        self.failed.extend(failed.iter().map(|(id, _)| *id));
        let allowed = self.plan.config.data.max_bad_share;
        let seen = self.dataset.len();
        if self.group.count() == 1 || self.failed.len() <= allowed_failures(allowed, seen) {
            return Ok(());
        }
        let first = failed.first().map(|(_, reason)| reason.clone()).unwrap_or_default();
        let bad = self.failed.len();
        all_ok(self.group, Err(DataError::TooManyBad { bad, seen, allowed, first }.into()))
    }

    /// Over the embeddings of all ranks.
    fn health(&self, output: &StepOutput) -> Health {
        let h = self.group.all_gather_rows(&output.h);
        let z = BatchShards::new(self.group, output.counts.clone()).all_gather(&output.z);
        let losses = [output.loss, self.method.chance_loss(output.ids.len())];
        let per_anchor = losses.map(|loss| loss / self.method.loss_scale());
        let pairs = self.method.positive_pairs(&z);
        Health::of(&h, &pairs, per_anchor, output.accuracy, self.plan.config.chance_decides())
    }

    /// Writes the checkpoint of `step`, on rank 0.
    fn save(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        journal.save(step, self.plan, &*self.method, &self.optimizer, observer)
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        self.journal.as_mut().map_or(Ok(()), Journal::flush)
    }

    fn non_finite(&mut self, what: &'static str, value: f64, step: u64, ids: &[usize]) -> TrainError {
        let Some(journal) = &mut self.journal else {
            return TrainError::NonFinite { what, value, step, dump: std::path::PathBuf::new() };
        };
        journal.last_batch = (step, ids.to_vec());
        journal.non_finite(what, value).unwrap_or_else(|error| error)
    }
}
