//! Settings of a new run that are not written, chosen to fit this machine; memory and duration are reported before the first
//! step.
//!
//! 1. `train.batch` is the largest power of two that the set holds, where it holds fewer images than a batch.
//! 2. Where there is no GPU, `encoder.name` is `resnet18` and `train.image_size` follows from the work of the
//!    run and the size of the images ([`choice::side`]); `encoder.file` keeps both as they are.
//! 3. `train.chunk`: small steps are measured, and the batch goes through in one pass where that fits 80 % of
//!    the free memory, else in chunks in lock step, else (`train.batch_norm`) in chunks with statistics of
//!    their own.
//! 4. Where none of this fits, `train.image_size` goes down; at the end the run is refused.
//!
//! Rank 0 chooses for all. What it measures is a model of its own, and images that the first step needs in any
//! case: a run of a configuration with all keys written is the same to the last bit.

mod choice;
pub(super) mod machine;
pub(super) mod measure;

use simclr_data::rng::Key;
use tch::Device;

use self::choice::{Line, Needs, Open, Pace, Way, way};
use self::measure::{Loading, Steps};
use super::{
    online_knn,
    setup::{OpenedData, Prepared, prepare},
};
use crate::{
    Plan, RunConfig, TrainError,
    config::{KEPT_VIEWS, Written},
    device::trim_memory,
    dist::{ProcessGroup, all_ok},
    encoder::{BatchNormScope, EncoderName},
};

/// Share of the free memory that a run may take.
const SHARE: f64 = 0.8;
/// A run over fewer images in all is over before it pays to measure it, where it fits in any case.
const WORTH: f64 = 2000.0;
/// No encoder of ours keeps more bytes for the backward pass than so many times those of its input (ResNet-50
/// with a stem for small images: 2500).
const MOST_KEPT: f64 = 4000.0;
/// Images whose size is looked at.
const LOOKED_AT: usize = 8;
/// Copies of weights and optimizer state on their way into a checkpoint.
const COPIES: f64 = 2.0;
/// The straight line through two small steps came out 5 to 8 % below the peak of runs (ResNet-18, 128 px, 256
/// images).
const MARGIN: f64 = 1.1;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// The configuration of a run for this machine, and what is stated about it: (name, value) as
/// [`super::Observer::start`] has it.
pub(super) struct AutoConfigured {
    pub(super) config: RunConfig,
    pub(super) facts: Vec<(String, String)>,
}

/// Chooses what is not `written`. All ranks call it together.
pub(super) fn auto_configure(
    group: &ProcessGroup,
    opened: &OpenedData,
    written: &Written,
) -> Result<AutoConfigured, TrainError> {
    let here =
        (group.is_first() && *written != Written::EVERYTHING).then(|| Selection::new(group, opened, written));
    let done = all_ok(group, here.map(Selection::run).transpose())?;
    if done.is_some() {
        // The measured model is gone; its memory is for the run's.
        trim_memory(opened.device);
    }
    let (config, facts) = done.map_or((opened.config.clone(), Vec::new()), |done| (done.config, done.facts));
    if group.count() == 1 {
        return Ok(AutoConfigured { config, facts });
    }
    Ok(AutoConfigured { config: RunConfig::of_toml(&group.broadcast_text(&config.to_toml()))?, facts })
}

/// The choice on its way.
struct Selection<'a> {
    group: &'a ProcessGroup,
    opened: &'a OpenedData,
    written: &'a Written,
    config: RunConfig,
    facts: Vec<(String, String)>,
}

impl<'a> Selection<'a> {
    fn new(group: &'a ProcessGroup, opened: &'a OpenedData, written: &'a Written) -> Self {
        Self { group, opened, written, config: opened.config.clone(), facts: Vec::new() }
    }

    fn run(mut self) -> Result<AutoConfigured, TrainError> {
        self.by_images();
        let chosen_side = self.by_device();
        let budget = Budget::now(self.group, &self.config, self.opened.device);
        if self.is_slight(&budget) {
            return Ok(self.done());
        }
        loop {
            let mut trial = prepare(self.group, self.opened, &self.config)?;
            let measured = Measured::of(&mut trial, &budget)?;
            match self.take_way(&trial.plan, &measured, &budget) {
                Ok(way) => {
                    self.say_memory(&trial.plan, &measured, way, &budget);
                    self.say_time(&trial.plan, &measured, way);
                    return Ok(self.done());
                }
                Err(refused) => {
                    let next = choice::smaller(self.config.train.image_size).filter(|_| chosen_side);
                    self.config.train.image_size = next.ok_or(refused)?;
                }
            }
        }
    }

    fn done(self) -> AutoConfigured {
        let chosen = self.chosen().map(|text| ("chosen".to_owned(), text));
        AutoConfigured { facts: chosen.into_iter().chain(self.facts).collect(), config: self.config }
    }

    /// What is not as it would be by default, and why.
    fn chosen(&self) -> Option<String> {
        let (was, is) = (&self.opened.config, &self.config);
        let mut texts = Vec::new();
        if was.encoder.name != is.encoder.name {
            let (is, was) = (is.encoder.name.as_str(), was.encoder.name.as_str());
            texts.push(format!("encoder.name = {is}: there is no GPU, and a CPU takes very long for {was}"));
        }
        if was.train.image_size != is.train.image_size {
            let why = "by the size of the images and the work of the run, for a CPU";
            texts.push(format!("train.image_size = {}: {why}", is.train.image_size));
        }
        if was.train.batch != is.train.batch {
            let images = self.opened.dataset.len();
            texts.push(format!("train.batch = {}: the set has {images} images", is.train.batch));
        }
        if was.train.chunk != is.train.chunk {
            texts.push(format!("train.chunk = {}: so much fits the memory", is.train.chunk));
        }
        if was.train.batch_norm != is.train.batch_norm {
            let norm = is.train.batch_norm.as_str();
            texts.push(format!("train.batch_norm = {norm}: over the whole batch it does not fit the memory"));
        }
        (!texts.is_empty()).then(|| texts.join("\n") + "\nany key that you set is kept as you set it")
    }

    fn by_images(&mut self) {
        let images = self.opened.dataset.len();
        let few = images >= 2 && images < self.config.train.batch;
        let fits = choice::batch(images) >= self.group.count();
        if few && fits && !self.written.has("train.batch") {
            self.config.train.batch = choice::batch(images);
        }
    }

    /// Returns whether the side of a view is one that this chose.
    fn by_device(&mut self) -> bool {
        let open = |key: &str| !self.written.has(key);
        if self.opened.device.is_cuda() || !open("encoder.file") || self.config.task.init_from.is_some() {
            return false;
        }
        if open("encoder.name") {
            self.config.encoder.name = EncoderName::Resnet18;
        }
        let short = open("train.image_size").then(|| self.median_side()).flatten();
        if let Some(short) = short {
            self.config.train.image_size =
                choice::side(self.opened.dataset.len(), self.config.train.epochs, short);
        }
        short.is_some()
    }

    /// Median of the shorter sides of the first images of the first epoch; none where they cannot be decoded.
    fn median_side(&self) -> Option<usize> {
        let (dataset, seed) = (&self.opened.dataset, self.config.train.seed);
        let order = Key::order(seed, 0).stream().permutation(dataset.len());
        let images = order.into_iter().take(LOOKED_AT).filter_map(|id| dataset.decode(id).ok());
        let mut sides: Vec<_> = images.map(|image| image.width.min(image.height)).collect();
        sides.sort_unstable();
        sides.get(sides.len() / 2).copied()
    }

    /// Whether the run is short and fits in any case.
    fn is_slight(&self, budget: &Budget) -> bool {
        let (train, encoder) = (&self.config.train, &self.config.encoder);
        let input = (self.opened.dataset.channels() * train.image_size * train.image_size * 4) as f64;
        let views = (self.config.task.objective.views() * train.batch) as f64;
        let most = GIB + views * input * MOST_KEPT * encoder.width.max(1.0);
        let images = self.opened.dataset.len() as f64 * train.epochs;
        encoder.file.is_none() && images < WORTH && most < budget.bytes
    }

    /// Puts the best way that fits into the configuration.
    fn take_way(&mut self, plan: &Plan, measured: &Measured, budget: &Budget) -> Result<Way, TrainError> {
        let part = plan.config.train.batch.div_ceil(plan.ranks);
        let train = &mut self.config.train;
        if self.written.has("train.chunk") {
            return Ok(way_of(plan));
        }
        let Some(needs) = &measured.needs else { return Ok(Way::Whole) };
        let open = Open {
            chunks: !self.config.task.frozen,
            norm: train.batch_norm,
            norm_open: !self.written.has("train.batch_norm"),
            objective: self.config.task.objective,
        };
        let found = way(needs, &open, part, budget.bytes);
        let way = found.map_err(|(way, needed)| refusal(&plan.config, way, needed, budget))?;
        match way {
            Way::Whole => {}
            Way::LockStep(chunk) => train.chunk = chunk,
            Way::Chunks(chunk) => {
                train.chunk = chunk;
                if train.batch_norm == BatchNormScope::Global {
                    train.batch_norm = BatchNormScope::ChunkShuffled;
                }
            }
        }
        Ok(way)
    }

    fn say_memory(&mut self, plan: &Plan, measured: &Measured, way: Way, budget: &Budget) {
        let Some(needs) = &measured.needs else { return };
        let needed = needs.of(way, plan.config.train.batch.div_ceil(plan.ranks));
        let [few, more] = measured.steps.images;
        let (needs, limit) = (gib(needed), &budget.text);
        let mut text = format!("{needs} at the peak, of {limit}; from steps over {few} and {more} images");
        if needed > budget.bytes {
            text += "\nmore than that, and train.chunk is set: the system may end the run";
        }
        self.facts.push(("memory".into(), text));
    }

    fn say_time(&mut self, plan: &Plan, measured: &Measured, way: Way) {
        let resolved = self.config.resolve(&self.opened.dataset, plan.precision, plan.augment_device);
        let Ok(resolved) = resolved else { return };
        let forecast = Forecast::new(&resolved, plan.ranks, measured, way, &self.opened.dataset);
        self.facts.push(("time".into(), forecast.to_string()));
    }
}

/// How the batch goes through the encoder by the configuration as it is.
fn way_of(plan: &Plan) -> Way {
    match plan.config.train.batch_norm {
        _ if !plan.is_chunked() => Way::Whole,
        BatchNormScope::Global => Way::LockStep(plan.chunk()),
        _ => Way::Chunks(plan.chunk()),
    }
}

fn refusal(config: &RunConfig, way: Way, needed: f64, budget: &Budget) -> TrainError {
    let (train, name) = (&config.train, config.encoder.name.as_str());
    let how = match way {
        Way::Whole => "in one pass".to_owned(),
        Way::LockStep(chunk) => format!("in chunks of {chunk} in lock step"),
        Way::Chunks(chunk) => format!("in chunks of {chunk}"),
    };
    let encoder = if config.encoder.file.is_some() { "the module" } else { name };
    let what = format!("a step of {encoder} over {} images of {} px {how}", train.batch, train.image_size);
    TrainError::Memory { what, needed: gib(needed), limit: budget.text.clone() }
}

/// Memory that a process may take.
struct Budget {
    bytes: f64,
    /// For people.
    text: String,
}

impl Budget {
    fn now(group: &ProcessGroup, config: &RunConfig, device: Device) -> Self {
        let asked = config.train.memory_gib;
        if asked > 0.0 {
            return Self { bytes: asked * GIB, text: format!("{asked} GiB (train.memory_gib)") };
        }
        let sharing = if device.is_cuda() { 1 } else { group.on_this_machine() };
        match machine::free_on(device) {
            Some(free) => {
                let bytes = SHARE * free / sharing as f64;
                let each = if sharing > 1 { format!(" for {sharing} processes") } else { String::new() };
                let percent = 100.0 * SHARE;
                let text = format!("{} ({percent:.0} % of {} free{each})", gib(bytes), gib(free));
                Self { bytes, text }
            }
            None => Self { bytes: f64::INFINITY, text: "an unknown amount".into() },
        }
    }
}

/// What small steps and a few images took.
struct Measured {
    steps: Steps,
    loading: Loading,
    /// None where the system does not tell.
    needs: Option<Needs>,
    pace: Pace,
    /// Where a step in lock step was measured.
    lock_step: Option<Pace>,
}

impl Measured {
    fn of(trial: &mut Prepared, budget: &Budget) -> Result<Self, TrainError> {
        let steps = measure::steps(trial, 1, budget.bytes)?;
        let loading = measure::loading(trial);
        let pace = measure::pace(trial, &steps, &loading);
        let mut measured = Self { needs: None, lock_step: None, pace, loading, steps };
        measured.needs = steps.memory.map(|whole| measured.needs_of(trial, whole));
        let Some(needs) = &mut measured.needs else { return Ok(measured) };
        let train = &trial.plan.config.train;
        let part = train.batch.div_ceil(trial.plan.ranks);
        let fits = needs.of(Way::Whole, part) <= budget.bytes && !trial.plan.is_chunked();
        let possible = train.batch_norm == BatchNormScope::Global && trial.method.stages().is_some();
        if !fits && possible && !trial.plan.config.task.frozen && trial.dataset.len() >= 8 && part >= 4 {
            let lock_step = measure::steps(trial, 2, budget.bytes)?;
            needs.lock_step = lock_step.memory.map(|line| line.times(MARGIN));
            measured.lock_step = Some(measure::pace(trial, &lock_step, &measured.loading));
        }
        Ok(measured)
    }

    fn needs_of(&self, trial: &Prepared, whole: Line) -> Needs {
        let (plan, model) = (&trial.plan, trial.method.model());
        let on_gpu = model.params.device().is_cuda();
        let numbers: usize = model.params.named().map(|(_, tensor)| tensor.numel()).sum();
        let state: usize = trial.optimizer.state().iter().map(|(_, tensor)| tensor.numel()).sum();
        let checkpoint = COPIES * 4.0 * (numbers + state) as f64;
        let side = plan.config.train.image_size;
        let views = plan.config.task.objective.views() * plan.channels * side * side * 4;
        Needs {
            whole: whole.times(MARGIN),
            lock_step: None,
            // On a GPU the loader's memory is another one.
            rest: if on_gpu { 0.0 } else { self.loading.bytes + checkpoint },
            views: if on_gpu { 0.0 } else { views as f64 },
            prefetch: plan.config.data.prefetch,
            kept_views: KEPT_VIEWS as f64,
        }
    }
}

/// How long a run takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Forecast {
    seconds: f64,
    epochs: f64,
    images_per_second: f64,
    /// Share of the loader in the work of a step.
    loading: f64,
}

impl Forecast {
    fn new(plan: &Plan, group: usize, measured: &Measured, way: Way, dataset: &simclr_data::Dataset) -> Self {
        // A batch in chunks goes forward twice; a backward pass is worth two forward.
        const TWICE: f64 = 4.0 / 3.0;
        let part = plan.config.train.batch.div_ceil(group);
        let mut pace = measured.pace;
        match way {
            Way::Whole => {}
            Way::LockStep(_) => pace = measured.lock_step.unwrap_or(pace),
            Way::Chunks(_) => {
                (pace.step, pace.loader) = (TWICE * pace.step, plan.view_passes as f64 * pace.loader)
            }
        }
        let step = pace.of_step(part);
        let steps = step * plan.total_steps as f64;
        // Images of the online kNN are decoded, and go forward once, one view of each.
        let knn = online_knn::images(plan, dataset) as f64;
        let views = plan.config.task.objective.views() as f64;
        let knn = knn * (measured.pace.loader + measured.pace.step / (3.0 * views));
        Self {
            seconds: steps + knn,
            epochs: plan.config.train.epochs,
            images_per_second: plan.config.train.batch as f64 / step,
            loading: pace.loader * part as f64 / step,
        }
    }
}

impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.seconds / 3600.0;
        let (epochs, rate, percent) = (self.epochs, self.images_per_second, 100.0 * self.loading.min(1.0));
        write!(f, "about {} for {epochs} epochs at ", duration(hours))?;
        write!(f, "{rate:.*} images/s, ", usize::from(rate < 10.0))?;
        write!(f, "decoding and views {percent:.0} % of the work")?;
        if hours > 24.0 {
            write!(f, "\nsmaller --epochs, --image-size or --encoder (conv-c3) shorten it")?;
        }
        if hours > 1.0 && self.loading > 0.5 {
            write!(f, "\n`simclr pack --size 256` makes the images cheap to decode")?;
        }
        Ok(())
    }
}

/// `5.3 h`, or `2.1 min`.
fn duration(hours: f64) -> String {
    match hours {
        hours if hours >= 100.0 => format!("{hours:.0} h"),
        hours if hours >= 1.0 => format!("{hours:.1} h"),
        hours => format!("{:.1} min ({hours:.2} h)", 60.0 * hours),
    }
}

fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_written_for_people() {
        assert_eq!(duration(5.26), "5.3 h");
        assert_eq!(duration(0.03), "1.8 min (0.03 h)");
        assert_eq!(duration(1234.4), "1234 h");
        let forecast = Forecast { seconds: 36_000.0, epochs: 100.0, images_per_second: 7.06, loading: 0.75 };
        let text = forecast.to_string();
        assert!(
            text.starts_with("about 10.0 h for 100 epochs at 7.1 images/s, decoding and views 75 %"),
            "{text}"
        );
        assert!(text.contains("simclr pack") && !text.contains("--epochs"), "{text}");
        assert!(Forecast { seconds: 1e6, ..forecast }.to_string().contains("--epochs"));
    }

    #[test]
    fn a_refusal_names_what_is_needed_and_what_there_is() {
        let budget = Budget { bytes: GIB, text: "1.0 GiB (80 % of 1.2 GiB free)".into() };
        let refused = refusal(&RunConfig::default(), Way::Chunks(32), 2.5 * GIB, &budget);
        assert_eq!(
            refused.to_string(),
            "memory: a step of resnet50 over 256 images of 224 px in chunks of 32 needs 2.5 GiB, expected at most \
             1.0 GiB (80 % of 1.2 GiB free)"
        );
        assert!(refused.hint().is_some_and(|hint| hint.contains("--batch")));
    }
}
