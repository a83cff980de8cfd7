//! Keys of a new run that the user did not set, chosen to fit this machine; memory and duration are reported before the first step.
//!
//! 1. `train.batch`: if the set has fewer images than a batch, the largest power of two that it holds.
//! 2. `train.image_size` is at most the size of the images; without a GPU it follows from the number of images over all epochs as well
//!    ([`choice::cpu_image_size`]), and `encoder.name` is `resnet18`. Not if `encoder.file` is set.
//! 3. The paper's settings for small images and small batches ([`paper`]).
//! 4. `train.chunk` and `train.batch_norm`: small steps are measured; the batch passes in one pass if that fits into 80 % of the
//!    free memory, else in chunks with global batch norm, else in chunks with batch norm over each.
//! 5. If none of these fits, `train.image_size` is reduced if it was chosen for a CPU; finally the run is refused.
//!
//! 6. `train.minutes` is replaced by the `train.epochs` that fit into it, from steps that all ranks measure.
//! 7. `optim.warmup_epochs` is a tenth of a run of fewer than 100 epochs.
//!
//! Rank 0 chooses the other keys for all ranks. The reported duration is that of steps of all ranks, if they are short. The measurement
//! uses a model of its own, so it does not change the results of the run.

mod choice;
mod forecast;
pub(super) mod measure;
mod paper;
mod time_budget;
mod unmeasured;

pub use unmeasured::choose_views;

use serde::{Deserialize, Serialize};
use tch::Device;

use self::choice::{BatchMode, Constraints, MemoryModel, MemoryNeeds, StepTime, best_mode};
use self::forecast::Forecast;
use self::measure::{LoaderCosts, StepCosts};
use self::unmeasured::Unmeasured;
use super::{
    machine::{self, GIB, gib},
    setup::{OpenedData, Prepared, prepare},
};
use crate::{
    Plan, RunConfig, TrainError,
    config::{KEPT_VIEWS, Written},
    device::trim_memory,
    dist::{ProcessGroup, all_ok},
    encoder::BatchNormScope,
};

/// Share of the free memory that a run may take.
const FREE_MEMORY_SHARE: f64 = 0.8;
/// Runs over fewer images, summed over epochs, are not measured if an upper bound on their memory fits.
const MIN_MEASURED_IMAGES: f64 = 2000.0;
/// Upper bound on the bytes kept for the backward pass per byte of input (ResNet-50 with the CIFAR stem: 2500).
const MAX_ACTIVATION_RATIO: f64 = 4000.0;
/// Copies of weights and optimizer state while a checkpoint is written.
const CHECKPOINT_COPIES: f64 = 2.0;
/// The linear model came out 5 to 8 % below the peak of whole runs (ResNet-18, 128 px, 256 images).
const MEMORY_MARGIN: f64 = 1.1;

/// The configuration of a run for this machine, and facts for [`super::Observer::start`].
pub(super) struct AutoConfigured {
    pub(super) config: RunConfig,
    pub(super) facts: Vec<(String, String)>,
}

/// Chooses the keys that are not `written`. A collective operation.
///
/// # Errors
/// [`TrainError::Memory`] if no choice fits; errors of the measured steps.
pub(super) fn auto_configure(
    group: &ProcessGroup,
    opened: &OpenedData,
    written: &Written,
) -> Result<AutoConfigured, TrainError> {
    let needed = *written != Written::EVERYTHING || opened.config.train.minutes > 0.0;
    let selection = (group.is_first() && needed).then(|| Selection::new(group, opened, written));
    let done = all_ok(group, selection.map(Selection::run).transpose())?;
    if done.is_some() {
        // Returns the memory of the measured model.
        trim_memory(opened.device);
    }
    let selected =
        done.unwrap_or_else(|| Selected { config: opened.config.clone(), facts: Vec::new(), forecast: None });
    let Selected { mut config, mut facts, forecast } = selected;
    if group.count() > 1 {
        config = RunConfig::of_toml(&group.broadcast_text(&config.to_toml()))?;
    }
    if config.train.minutes > 0.0 {
        let found = time_budget::affordable(group, opened, &config)?;
        (config.train.epochs, config.train.minutes) = (found.epochs, 0.0);
        facts.push(("time".into(), found.text));
        trim_memory(opened.device);
    } else {
        let forecast = with_communication(group, opened, &config, forecast)?;
        facts.extend(forecast.map(|forecast| ("time".to_owned(), forecast.to_string())));
    }
    if group.is_first() {
        let warm_up = paper::short_warm_up(&mut config, written);
        facts.extend(warm_up.map(|text| ("warm-up".to_owned(), text)));
        let without_effect = written.without_effect(&config).join("\n");
        facts.extend((!without_effect.is_empty()).then(|| ("without effect".to_owned(), without_effect)));
    }
    config.optim.warmup_epochs = of_first_rank(group, &config.optim.warmup_epochs);
    Ok(AutoConfigured { config, facts })
}

/// `forecast` of rank 0, from steps of all ranks if there are several and steps are short. A collective operation.
fn with_communication(
    group: &ProcessGroup,
    opened: &OpenedData,
    config: &RunConfig,
    forecast: Option<Forecast>,
) -> Result<Option<Forecast>, TrainError> {
    if !of_first_rank(group, &forecast.is_some_and(|forecast| forecast.wants_measurement())) {
        return Ok(forecast);
    }
    let step = time_budget::mean_step_seconds(group, opened, config)?;
    trim_memory(opened.device);
    Ok(forecast.map(|forecast| forecast.of_all_ranks(step)))
}

/// `own` of rank 0, so that all ranks compute with the same numbers.
fn of_first_rank<T: Serialize + for<'a> Deserialize<'a>>(group: &ProcessGroup, own: &T) -> T {
    let text = group.broadcast_text(&serde_json::json!(own).to_string());
    serde_json::from_str(&text).expect("rank 0 sends JSON of the same type")
}

/// What [`Selection`] found.
struct Selected {
    config: RunConfig,
    facts: Vec<(String, String)>,
    /// `None` with `train.minutes`, and for a short run, which is not measured.
    forecast: Option<Forecast>,
}

struct Selection<'a> {
    group: &'a ProcessGroup,
    opened: &'a OpenedData,
    written: &'a Written,
    config: RunConfig,
    facts: Vec<(String, String)>,
    unmeasured: Unmeasured,
}

impl<'a> Selection<'a> {
    fn new(group: &'a ProcessGroup, opened: &'a OpenedData, written: &'a Written) -> Self {
        Self {
            group,
            opened,
            written,
            config: opened.config.clone(),
            facts: Vec::new(),
            unmeasured: Unmeasured::default(),
        }
    }

    fn run(mut self) -> Result<Selected, TrainError> {
        let OpenedData { dataset, device, .. } = self.opened;
        self.unmeasured =
            Unmeasured::choose(&mut self.config, self.written, dataset, *device, self.group.count())?;
        let text = self.unmeasured.taken_over.describe();
        self.facts.extend(text.map(|text| ("taken over".to_owned(), text)));
        let budget = Budget::new(self.group, &self.config, self.opened.device);
        if self.is_trivial(&budget) {
            return Ok(self.done(None));
        }
        loop {
            let mut trial = prepare(self.group, self.opened, &self.config)?;
            let measured = Measured::of(&mut trial, &budget)?;
            match self.choose_mode(&trial.plan, &measured, &budget) {
                Ok(mode) => {
                    self.report_memory(&trial.plan, &measured, mode, &budget);
                    let forecast = self.forecast_of(&trial.plan, &measured, mode);
                    return Ok(self.done(forecast));
                }
                Err(error) => {
                    let next = choice::smaller_size(self.config.train.image_size);
                    let next = next.filter(|_| self.unmeasured.size_may_shrink);
                    self.config.train.image_size = next.ok_or(error)?;
                    self.unmeasured.of_paper = paper::settings(&mut self.config, self.written);
                }
            }
        }
    }

    fn done(self, forecast: Option<Forecast>) -> Selected {
        let chosen = self.chosen().map(|text| ("chosen".to_owned(), text));
        let facts = chosen.into_iter().chain(self.facts).collect();
        Selected { facts, config: self.config, forecast }
    }

    /// Chosen keys with reasons; `None` if all have their defaults.
    fn chosen(&self) -> Option<String> {
        let was = &self.opened.config;
        let is = &self.config;
        let mut texts = Vec::new();
        let is_chosen = |key: &str| !self.unmeasured.taken_over.has(key);
        if was.encoder.name != is.encoder.name && is_chosen("encoder.name") {
            let was = was.encoder.name.as_str();
            let is = is.encoder.name.as_str();
            texts.push(format!("encoder.name = {is}: {was} is very slow without a GPU"));
        }
        if was.train.image_size != is.train.image_size && is_chosen("train.image_size") {
            let why = match self.opened.device.is_cuda() {
                true => "by the size of the images",
                false => "for a CPU, by the size and the number of the images",
            };
            texts.push(format!("train.image_size = {}: {why}", is.train.image_size));
        }
        if was.train.batch != is.train.batch {
            let images = self.opened.dataset.len();
            texts.push(format!("train.batch = {}: the set has {images} images", is.train.batch));
        }
        if was.train.chunk != is.train.chunk {
            texts.push(format!("train.chunk = {}: fits into the memory", is.train.chunk));
        }
        if was.train.batch_norm != is.train.batch_norm {
            let norm = is.train.batch_norm.as_str();
            texts.push(format!("train.batch_norm = {norm}: global batch norm does not fit into the memory"));
        }
        texts.extend(self.unmeasured.of_paper.iter().cloned());
        (!texts.is_empty()).then(|| texts.join("\n") + "\nkeys that you set are never changed")
    }

    /// Whether the number of epochs follows from `train.minutes`.
    fn has_time_budget(&self) -> bool {
        self.config.train.minutes > 0.0
    }

    /// Whether the run is short and an upper bound on its memory fits.
    fn is_trivial(&self, budget: &Budget) -> bool {
        let RunConfig { train, encoder, .. } = &self.config;
        let input = (self.opened.dataset.channels() * train.image_size * train.image_size * 4) as f64;
        let views = (self.config.task.objective.views() * train.batch) as f64;
        let max_bytes = GIB + views * input * MAX_ACTIVATION_RATIO * encoder.width.max(1.0);
        let images = self.opened.dataset.len() as f64 * train.epochs;
        !self.has_time_budget()
            && encoder.file.is_none()
            && images < MIN_MEASURED_IMAGES
            && max_bytes < budget.bytes
    }

    /// Sets chunk and batch norm of the best mode that fits, unless `train.chunk` is written.
    fn choose_mode(
        &mut self,
        plan: &Plan,
        measured: &Measured,
        budget: &Budget,
    ) -> Result<BatchMode, TrainError> {
        let part = plan.config.train.batch.div_ceil(plan.ranks);
        let train = &mut self.config.train;
        if self.written.has("train.chunk") {
            return Ok(configured_mode(plan));
        }
        let Some(needs) = &measured.needs else { return Ok(BatchMode::Whole) };
        let constraints = Constraints {
            chunks: !self.config.task.frozen && train.batch_norm_groups == 1,
            norm: train.batch_norm,
            norm_is_free: !self.written.has("train.batch_norm"),
            objective: self.config.task.objective,
        };
        let mode = best_mode(needs, &constraints, part, budget.bytes)
            .map_err(|(mode, needed)| out_of_memory(&plan.config, mode, needed, budget))?;
        match mode {
            BatchMode::Whole => {}
            BatchMode::GlobalNorm(chunk) => train.chunk = chunk,
            BatchMode::ChunkNorm(chunk) => {
                train.chunk = chunk;
                if train.batch_norm == BatchNormScope::Global {
                    train.batch_norm = BatchNormScope::ChunkShuffled;
                }
            }
        }
        Ok(mode)
    }

    fn report_memory(&mut self, plan: &Plan, measured: &Measured, mode: BatchMode, budget: &Budget) {
        let Some(needs) = &measured.needs else { return };
        let needed = needs.peak(mode, plan.config.train.batch.div_ceil(plan.ranks));
        let [few, more] = measured.steps.images;
        let limit = &budget.text;
        let mut text =
            format!("peak {} of {limit}; estimated from steps over {few} and {more} images", gib(needed));
        if needed > budget.bytes {
            text += "\nabove the limit, but train.chunk is set: the system may kill the run";
        }
        self.facts.push(("memory".into(), text));
    }

    fn forecast_of(&self, plan: &Plan, measured: &Measured, mode: BatchMode) -> Option<Forecast> {
        if self.has_time_budget() {
            return None;
        }
        let resolved = self.config.resolve(&self.opened.dataset, plan.precision, plan.augment_device).ok()?;
        let forecast = Forecast::new(&resolved, plan.ranks, measured, mode, &self.opened.dataset);
        let chosen = self.opened.device == Device::Cpu && !self.written.has("encoder.name");
        Some(if chosen { forecast.with_recipe_for_cpus(self.config.train.image_size) } else { forecast })
    }
}

fn configured_mode(plan: &Plan) -> BatchMode {
    match plan.config.train.batch_norm {
        _ if !plan.is_chunked() => BatchMode::Whole,
        BatchNormScope::Global => BatchMode::GlobalNorm(plan.chunk()),
        _ => BatchMode::ChunkNorm(plan.chunk()),
    }
}

fn out_of_memory(config: &RunConfig, mode: BatchMode, needed: f64, budget: &Budget) -> TrainError {
    let train = &config.train;
    let how = match mode {
        BatchMode::Whole => "in one pass".to_owned(),
        BatchMode::GlobalNorm(chunk) => format!("in chunks of {chunk} with global batch norm"),
        BatchMode::ChunkNorm(chunk) => format!("in chunks of {chunk}"),
    };
    let encoder = if config.encoder.file.is_some() { "the module" } else { config.encoder.name.as_str() };
    let what = format!("a step of {encoder} over {} images of {} px {how}", train.batch, train.image_size);
    TrainError::Memory { what, needed: gib(needed), limit: budget.text.clone() }
}

/// Memory that a process may use.
struct Budget {
    bytes: f64,
    /// Amount and origin, human-readable.
    text: String,
}

impl Budget {
    fn new(group: &ProcessGroup, config: &RunConfig, device: Device) -> Self {
        let configured = config.train.memory_gib;
        if configured > 0.0 {
            return Self { bytes: configured * GIB, text: format!("{configured} GiB (train.memory_gib)") };
        }
        let sharing = if device.is_cuda() { 1 } else { group.on_this_machine() };
        match machine::free_on(device) {
            Some(free) => {
                let bytes = FREE_MEMORY_SHARE * free / sharing as f64;
                let each = if sharing > 1 { format!(" for {sharing} processes") } else { String::new() };
                let percent = 100.0 * FREE_MEMORY_SHARE;
                let text = format!("{} ({percent:.0} % of {} free{each})", gib(bytes), gib(free));
                Self { bytes, text }
            }
            None => Self { bytes: f64::INFINITY, text: "an unknown amount".into() },
        }
    }
}

/// Costs of small steps and of decoding.
struct Measured {
    steps: StepCosts,
    loader: LoaderCosts,
    /// `None` if the system does not report memory.
    needs: Option<MemoryNeeds>,
    time: StepTime,
    /// With global batch norm over chunks, if that was measured.
    global_norm_time: Option<StepTime>,
}

impl Measured {
    fn of(trial: &mut Prepared, budget: &Budget) -> Result<Self, TrainError> {
        let steps = measure::steps(trial, 1, budget.bytes)?;
        let loader = measure::loader(trial);
        let time = measure::step_time(trial, &steps, &loader);
        let mut measured = Self { needs: None, global_norm_time: None, time, loader, steps };
        measured.needs = steps.memory.map(|whole| measured.needs_of(trial, whole));
        let Some(needs) = &mut measured.needs else { return Ok(measured) };
        let train = &trial.plan.config.train;
        let part = train.batch.div_ceil(trial.plan.ranks);
        let fits = needs.peak(BatchMode::Whole, part) <= budget.bytes && !trial.plan.is_chunked();
        let possible = train.batch_norm == BatchNormScope::Global && trial.method.stages().is_some();
        if !fits && possible && !trial.plan.config.task.frozen && trial.dataset.len() >= 8 && part >= 4 {
            let costs = measure::steps(trial, 2, budget.bytes)?;
            needs.global_norm = costs.memory.map(|model| model.scaled(MEMORY_MARGIN));
            measured.global_norm_time = Some(measure::step_time(trial, &costs, &measured.loader));
        }
        Ok(measured)
    }

    fn needs_of(&self, trial: &Prepared, whole: MemoryModel) -> MemoryNeeds {
        let plan = &trial.plan;
        let model = trial.method.model();
        let on_gpu = model.params.device().is_cuda();
        let weights: usize = model.params.named().map(|(_, tensor)| tensor.numel()).sum();
        let state = trial.optimizer.state().into_iter().chain(trial.method.state());
        let state: usize = state.map(|(_, tensor)| tensor.numel()).sum();
        let checkpoint = CHECKPOINT_COPIES * 4.0 * (weights + state) as f64;
        let side = plan.config.train.image_size;
        let views = plan.config.task.objective.views() * plan.channels * side * side * 4;
        MemoryNeeds {
            whole: whole.scaled(MEMORY_MARGIN),
            global_norm: None,
            // On a GPU, loader and checkpoint use host memory.
            rest: if on_gpu { 0.0 } else { self.loader.bytes + checkpoint },
            views: if on_gpu { 0.0 } else { views as f64 },
            prefetch: plan.config.data.prefetch,
            kept_views: KEPT_VIEWS as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_states_need_and_limit() {
        let budget = Budget { bytes: GIB, text: "1.0 GiB (80 % of 1.2 GiB free)".into() };
        let error = out_of_memory(&RunConfig::default(), BatchMode::ChunkNorm(32), 2.5 * GIB, &budget);
        assert_eq!(
            error.to_string(),
            "memory: a step of resnet50 over 256 images of 224 px in chunks of 32 needs 2.5 GiB, expected at most \
             1.0 GiB (80 % of 1.2 GiB free)"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("--batch")));
    }
}
