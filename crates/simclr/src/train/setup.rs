//! Set-up of a run before its first step: images, plan, method, optimizer, state of the newest checkpoint.

use std::{path::Path, sync::Arc, time::Instant};

use simclr_data::{Chunking, Dataset, Loader, LoaderConfig, RangeChoice, Split, dataset};
use simclr_shim::stream::StreamGuard;
use tch::{Device, Kind, Tensor};

use super::{
    RunFolder, images, init, memory_floor,
    run_folder::Newest,
    start,
    state::{Resumed, augments_on_cpu, restore},
    trained_classifier::TrainedClassifier,
};
use crate::{
    ConfigError, DistError, ModelError, Plan, RunConfig, TrainError,
    checkpoint::Checkpoint,
    config::TrainConfig,
    device::{choose_device, choose_precision},
    dist::{GradientBuckets, ProcessGroup, all_ok},
    encoder::BatchNormScope,
    exec::{DevicePrefetcher, NormConfig, StepContext},
    methods::{
        Classifier, Distillation, Method, Moco, MocoV3, Momentum, MomentumEncoder, SimClr, SimClrMomentum,
    },
    model::Model,
    optim::Optimizer,
    task::MethodKind,
    views::{AugmentDevice, AugmentDeviceChoice, choose_augment_device},
};

/// The images of a run and the device that it computes on.
pub(super) struct OpenedData {
    /// As given, with the canonical path of the images and their range of values.
    pub config: RunConfig,
    pub dataset: Arc<Dataset>,
    pub device: Device,
    /// `data.augment_on`, or that of the run to be resumed.
    pub augment_on: AugmentDeviceChoice,
    /// Before the images were listed.
    pub started: Instant,
    /// Whether the weights are those of a checkpoint of the run, so that `task.init_from` is not read.
    pub resumed: bool,
}

/// A run of one process with its initial weights.
pub(super) struct Prepared {
    pub dataset: Arc<Dataset>,
    pub plan: Plan,
    pub method: Box<dyn Method>,
    pub optimizer: Optimizer,
    /// What was loaded from `task.init_from`.
    pub initial: Option<String>,
}

pub(super) fn open(group: &ProcessGroup, config: &RunConfig, data: &Path) -> Result<OpenedData, TrainError> {
    let started = Instant::now();
    // Stored with the run, so that it is resumed on the same images.
    let mut config = config.clone();
    config.data.path = Some(dataset::canonical(data)?);
    config.data.labels = config.data.labels.canonical()?;
    config.distill.teacher = config.distill.teacher.map(fs_err::canonicalize).transpose()?;
    // A resumed run does not need the file.
    config.task.init_from = config.task.init_from.map(|path| path.canonicalize().unwrap_or(path));
    let (dataset, range) = training_images(&config, data)?.with_range(&config.data.range)?;
    config.data.range = RangeChoice::Set(range);
    config.data.pages = dataset.decoding().pages;
    let device = choose_device(config.train.device, group.local_rank())?;
    let augment_on = config.data.augment_on;
    Ok(OpenedData { config, dataset: Arc::new(dataset), device, augment_on, started, resumed: false })
}

pub(super) fn prepare(
    group: &ProcessGroup,
    opened: &OpenedData,
    config: &RunConfig,
) -> Result<Prepared, TrainError> {
    let dataset = Arc::clone(&opened.dataset);
    let mut plan = plan(group, opened, config)?;
    tch::set_num_threads(plan.torch_threads as i32);
    memory_floor::check(&plan, opened.device)?;
    let teacher = teacher(&plan, opened.device)?;
    if let Some(teacher) = &teacher {
        plan.classes = teacher.class_names.len();
        plan.class_names.clone_from(&teacher.class_names);
    }
    let online = model(&plan, opened.device)?;
    let initial = config.task.init_from.as_deref().filter(|_| !opened.resumed);
    let contrastive = config.task.objective.is_contrastive();
    let initial = initial.map(|path| init::load(path, &online, contrastive)).transpose()?;
    let method = method(online, &plan, &dataset, teacher)?;
    let optimizer = Optimizer::new(&config.optim, method.params()).with_precision(plan.precision);
    Ok(Prepared { dataset, plan, method, optimizer, initial })
}

fn plan(group: &ProcessGroup, opened: &OpenedData, config: &RunConfig) -> Result<Plan, TrainError> {
    let shape = (opened.dataset.channels(), config.train.image_size);
    let augment = choose_augment_device(opened.augment_on, shape, opened.device)?;
    let precision = choose_precision(config.train.precision, opened.device);
    Ok(config.resolve(&opened.dataset, precision, augment)?.among(group.count(), group.sharing())?)
}

/// The teacher of a distillation.
fn teacher(plan: &Plan, device: Device) -> Result<Option<TrainedClassifier>, TrainError> {
    let config = &plan.config;
    if config.task.objective != MethodKind::Distillation {
        return Ok(None);
    }
    let path = config.distill.teacher.as_deref().expect("validated: distillation has a teacher");
    let teacher = TrainedClassifier::load(&RunFolder::open(path)?, device, plan.precision)?;
    teacher.check_input(plan)?;
    Ok(Some(teacher))
}

/// The network of `plan` with its random initial weights.
fn model(plan: &Plan, device: Device) -> Result<Model, ModelError> {
    let RunConfig { task, encoder, head, train, moco, .. } = &plan.config;
    let shape = (plan.channels as i64, train.image_size as i64);
    let model =
        Model::for_task(task, plan.classes, encoder, head, shape, train.seed, device, plan.precision)?;
    let predicts = task.objective == MethodKind::MocoV3;
    Ok(if predicts { model.with_predictor(head, moco.predictor_hidden) } else { model })
}

/// The momentum encoder of `online`.
fn momentum_encoder(online: &Model, plan: &Plan) -> Result<MomentumEncoder, ModelError> {
    let RunConfig { encoder, head, train, moco, .. } = &plan.config;
    let (shape, device) = ((plan.channels as i64, train.image_size as i64), online.params.device());
    let target = Model::new(encoder, head, shape, train.seed, device, plan.precision)?;
    Ok(MomentumEncoder::new(target, online, Momentum::new(moco, plan.total_steps)))
}

/// The method that trains `online`.
fn method(
    online: Model,
    plan: &Plan,
    dataset: &Dataset,
    teacher: Option<TrainedClassifier>,
) -> Result<Box<dyn Method>, TrainError> {
    let config = &plan.config;
    let RunConfig { task, loss, moco, .. } = config;
    let TrainConfig { seed, batch, batch_norm_groups, .. } = config.train;
    Ok(match task.objective {
        MethodKind::Contrastive => Box::new(SimClr::new(online, loss.clone())),
        MethodKind::SimclrMomentum => {
            let encoder = momentum_encoder(&online, plan)?;
            Box::new(SimClrMomentum::new(online, encoder, moco, loss.clone(), seed))
        }
        MethodKind::Moco => {
            let encoder = momentum_encoder(&online, plan)?;
            let method = Moco::new(online, encoder, moco, loss.temperature, seed);
            let shuffled = moco.shuffle && batch_norm_groups > 1;
            Box::new(if shuffled { method.shuffled(batch, seed) } else { method })
        }
        MethodKind::MocoV3 => {
            let encoder = momentum_encoder(&online, plan)?;
            Box::new(MocoV3::new(online, encoder, loss.temperature))
        }
        MethodKind::Supervised => {
            Box::new(Classifier::new(online, labels(dataset)?, dataset.classes().len()))
        }
        MethodKind::Distillation => {
            let teacher = teacher.expect("distillation has a teacher");
            let labels = teacher.labels_of(dataset, &config.distill)?;
            Box::new(Distillation::new(online, teacher.model, &config.distill, labels, plan.classes))
        }
    })
}

/// The class of every image.
///
/// # Errors
/// An image without a label.
fn labels(dataset: &Dataset) -> Result<Vec<i64>, TrainError> {
    let labels = dataset.labels().ok_or_else(|| ConfigError::Value {
        key: "task.objective".into(),
        value: "supervised".into(),
        expected: "a data set with a label for every image".into(),
    })?;
    Ok(labels.into_iter().map(i64::from).collect())
}

/// The parts of the set at `data` to train on.
fn parts(config: &RunConfig, data: &Path) -> Vec<Split> {
    if !config.data.parts.is_empty() {
        return config.data.parts.clone();
    }
    let unlabelled =
        config.task.objective.is_contrastive() && Dataset::splits(data).contains(&Split::Unlabelled);
    let validation = config.task.include_validation.then_some(Split::Validation);
    let unlabelled = unlabelled.then_some(Split::Unlabelled);
    [Some(Split::Train), validation, unlabelled].into_iter().flatten().collect()
}

/// The images of [`parts`], or those of them that `task.subset` lists.
fn training_images(config: &RunConfig, data: &Path) -> Result<Dataset, TrainError> {
    let options = config.data.open_options();
    let parts = parts(config, data);
    let all = match parts[..] {
        [part] => Dataset::open(data, part, options)?,
        [Split::Train, Split::Validation] => Dataset::open_with_validation(data, options)?,
        _ => Dataset::open_parts(data, &parts, options)?,
    };
    let all = all.decoded_by(config.transform.jpeg).labelled(&config.data.labels, data, &parts)?;
    Ok(match &config.task.subset {
        Some(list) => all.subset(&all.listed(list)?),
        None => all,
    })
}

/// Checks that all ranks have the images, version, precision and augmentation device of rank 0. A collective operation.
///
/// # Errors
/// [`DistError::Differ`].
pub(super) fn check_ranks_agree(group: &ProcessGroup, plan: &Plan) -> Result<(), TrainError> {
    let own = [
        ("the images' fingerprints", plan.data_fingerprint.clone()),
        ("the versions of simclr", env!("CARGO_PKG_VERSION").to_owned()),
        ("compute precisions", format!("{:?}", plan.precision).to_lowercase()),
        ("augmentation devices", format!("{:?}", plan.augment_device).to_lowercase()),
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

/// `data.augment_on`, but the CPU for a resumed run that augments there, even if `auto` now finds a GPU. The reverse is impossible
/// without a GPU; [`restore`] then adds a note. A collective operation.
pub(super) fn augment_on(
    group: &ProcessGroup,
    newest: Option<&Checkpoint>,
    config: &RunConfig,
) -> AugmentDeviceChoice {
    let on_cpu = newest.is_some_and(augments_on_cpu);
    let on_cpu = group.broadcast_text(&on_cpu.to_string()) == "true";
    if on_cpu { AugmentDeviceChoice::Cpu } else { config.data.augment_on }
}

/// Locks the run folder and loads its newest checkpoint, on rank 0.
pub(super) fn hold(folder: &RunFolder) -> Result<Newest, TrainError> {
    let note = folder.hold()?;
    let (newest, mut notes) = folder.newest_checkpoint()?;
    notes.extend(note);
    Ok((newest, notes))
}

/// Restores the newest checkpoint, if there is one, and writes the files of the run folder, on rank 0.
pub(super) fn resume(
    folder: &RunFolder,
    (newest, mut notes): Newest,
    (plan, dataset): (&Plan, &Dataset),
    method: &mut dyn Method,
    optimizer: &mut Optimizer,
) -> Result<Resumed, TrainError> {
    let resumed = match &newest {
        Some(checkpoint) => {
            let resumed = restore(checkpoint, plan, method, optimizer)?;
            notes.extend(images::check(folder, dataset)?);
            resumed
        }
        None => Resumed::default(),
    };
    folder.remove_partial_files()?;
    start::save(folder, plan, method.params().device())?;
    notes.extend(resumed.notes);
    Ok(Resumed { step: resumed.step, notes })
}

pub(super) fn loader_config(plan: &Plan) -> LoaderConfig {
    let config = &plan.config;
    LoaderConfig {
        views: config.task.objective.views(),
        batch: config.train.batch,
        size: config.train.image_size,
        size_changes: plan.view_sizes.clone(),
        seed: config.train.seed,
        threads: plan.data_threads,
        prefetch: config.data.prefetch,
        max_bad_share: config.data.max_bad_share,
    }
}

pub(super) fn step_context<'a>(
    plan: &Plan,
    group: &'a ProcessGroup,
    method: &'a dyn Method,
    gradients: &'a GradientBuckets,
) -> StepContext<'a> {
    let train = &plan.config.train;
    let (scope, momentum) = (train.batch_norm, train.batch_norm_momentum);
    let norm = NormConfig { scope, momentum, groups: train.batch_norm_groups };
    StepContext { method, norm, group, gradients, seed: train.seed }
}

/// Starts the loader of this rank's part at `first_step`. Whole batches are copied to a GPU ahead of the steps; chunks stay in host
/// memory, because the second pass reads them again.
pub(super) fn batches(
    group: &ProcessGroup,
    plan: &Plan,
    dataset: &Arc<Dataset>,
    device: Device,
    first_step: u64,
) -> Result<DevicePrefetcher, TrainError> {
    let mut loader = Loader::new(Arc::clone(dataset), plan.config.augment.clone(), loader_config(plan))?;
    if plan.is_chunked() {
        let shuffle_views = plan.config.train.batch_norm == BatchNormScope::ChunkShuffled;
        loader = loader.chunked(Chunking { images: plan.chunk(), shuffle_views, passes: plan.view_passes });
    }
    if plan.augment_device == AugmentDevice::Device {
        loader = loader.deferred();
    }
    let batches = loader.part(group.rank(), group.count()).batches(first_step, plan.total_steps)?;
    if plan.is_chunked() || !device.is_cuda() {
        return Ok(DevicePrefetcher::on_demand(batches, plan.channels, device));
    }
    DevicePrefetcher::ahead(batches, plan.channels, device)
}

/// A CUDA stream for this thread if it launches all work: the default stream can neither be captured nor overlap with copies.
/// Not with several ranks and without NCCL, where the gradients' thread reads on the default stream what this thread wrote.
pub(super) fn stream(
    group: &ProcessGroup,
    plan: &Plan,
    device: Device,
) -> Result<Option<StreamGuard>, TrainError> {
    simclr_shim::stream::set_deterministic(plan.config.train.deterministic);
    let on_device = Tensor::empty([0], (Kind::Float, device));
    let launches_all = (group.count() == 1 || group.has_nccl()) && !plan.is_chunked();
    Ok(launches_all.then(|| StreamGuard::new(&on_device)).transpose()?)
}
