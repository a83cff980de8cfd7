//! Facts and files of a run before its first step.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use simclr_data::Dataset;
use tch::Device;

use super::RunFolder;
use crate::{
    Plan, TrainError,
    checkpoint::write_atomically,
    config::{StepCount, Written},
    device::{Precision, describe, describe_kernels},
    dist::host,
    encoder::BatchNormScope,
    methods::Method,
    optim::{Optimizer, Scaling, ScheduleKind},
    params::Params,
    views::AugmentDevice,
};

/// Writes `plan.json`, `environment.json` and, last, `config.toml`, by which a folder is recognised as a run folder.
///
/// # Errors
/// A folder that cannot be written.
pub(super) fn save(folder: &RunFolder, plan: &Plan, device: Device) -> Result<(), TrainError> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let environment = json!({
        "simclr": env!("CARGO_PKG_VERSION"),
        "libtorch": libtorch_version(),
        "libtorch_folder": simclr_shim::libtorch_folder(),
        "device": describe(device),
        "kernels": describe_kernels(device),
        "precision": plan.precision,
        "augment_device": plan.augment_device,
        "torch_threads": plan.torch_threads,
        "loader_threads": plan.data_threads,
        "host": host(),
        "nvidia_driver": fs_err::read_to_string("/proc/driver/nvidia/version").ok(),
        "processes": plan.ranks,
        "started_unix_seconds": started,
    });
    write_atomically(&folder.plan_file(), format!("{:#}\n", json!(plan)).as_bytes())?;
    write_atomically(&folder.environment_file(), format!("{environment:#}\n").as_bytes())?;
    Ok(write_atomically(&folder.config_file(), plan.config.to_toml().as_bytes())?)
}

/// Writes `written.toml` of a new run.
///
/// # Errors
/// A folder that cannot be written.
pub(super) fn save_written(folder: &RunFolder, written: &Written, resumed: bool) -> Result<(), TrainError> {
    match written.to_toml().filter(|_| !resumed) {
        Some(text) => Ok(write_atomically(&folder.written_file(), text.as_bytes())?),
        None => Ok(()),
    }
}

/// From libtorch's `build-version` file, or else the version that torch-sys 0.24 requires.
fn libtorch_version() -> String {
    let version = simclr_shim::libtorch_folder()
        .parent()
        .map(|folder| fs_err::read_to_string(folder.join("build-version")));
    version.and_then(Result::ok).map_or_else(|| "2.11.0".into(), |text| text.trim().to_owned())
}

/// Pairs (name, value) for [`super::Observer::start`].
pub(super) fn facts(
    plan: &Plan,
    dataset: &Dataset,
    method: &dyn Method,
    optimizer: &Optimizer,
    device: Device,
) -> Vec<(String, String)> {
    let config = &plan.config;
    let precision = match plan.precision {
        Precision::Bf16 => "bf16 compute, f32 weights, statistics and loss",
        Precision::F32 => "f32",
    };
    let labels = match dataset.classes().len() {
        _ if !plan.labelled => "no labels".to_owned(),
        classes if !config.task.objective.is_contrastive() => format!("{classes} classes"),
        classes => format!("{classes} classes (labels are used by the online kNN only)"),
    };
    let mut facts = vec![
        (
            "data",
            format!(
                "{} images, {} channels, {labels}, fingerprint {}",
                plan.images, plan.channels, plan.data_fingerprint
            ),
        ),
        ("device", format!("{}, {precision}, {} loader threads", describe(device), plan.data_threads)),
        ("encoder", method.model().encoder.describe()),
        ("head", method.describe_head(config)),
        ("loss", method.describe_loss(config)),
        ("batch", batch(plan)),
        ("evaluated on", plan.transform().to_string()),
        ("learning rate", learning_rate(plan)),
        ("steps", steps(plan)),
        ("groups", optimizer.group_table().to_owned()),
    ];
    if let Some(kernels) = describe_kernels(device) {
        let views = match plan.augment_device {
            AugmentDevice::Cpu => "the loader threads",
            AugmentDevice::Device => "the GPU",
        };
        facts.insert(2, ("kernels", format!("{kernels}; augmentation on {views}")));
    }
    if !plan.view_sizes.is_empty() {
        let sizes = plan.view_sizes.iter().map(|(step, size)| format!("{size} px from step {step}"));
        facts.push(("views", sizes.collect::<Vec<_>>().join(", ")));
    }
    facts.extend(config.differs_from_official().map(|text| ("recipe", text)));
    let notes = config.augment.notes(plan.channels).into_iter();
    let notes = notes.chain(config.cautions()).chain(note_on_frozen_encoder(method.params()));
    let notes = notes.chain(plan.transform().notes_on_images(dataset)).chain(dataset.notes().iter().cloned());
    facts.extend(notes.map(|note| ("note", note)));
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A TorchScript module saved for inference may have no trainable parameter.
fn note_on_frozen_encoder(params: &Params) -> Option<String> {
    let trained = params.params().iter().any(|param| param.name.starts_with("encoder."));
    (!trained && !params.frozen().is_empty())
        .then(|| "every parameter of the encoder has requires_grad=False: only the head is trained".into())
}

/// Size, processes, chunks and batch norm of a batch.
fn batch(plan: &Plan) -> String {
    let train = &plan.config.train;
    let part = train.batch.div_ceil(plan.ranks);
    let (per_process, unit) = match plan.ranks {
        1 => (String::new(), "batch"),
        ranks => (format!(" on {ranks} processes, up to {part} images each"), "process"),
    };
    let chunked = plan.is_chunked();
    let norm = match train.batch_norm {
        _ if !chunked && plan.ranks == 1 && train.batch_norm_groups > 1 => {
            &format!("in {} groups of them", train.batch_norm_groups)
        }
        _ if !chunked && plan.ranks == 1 => "over all of their views",
        BatchNormScope::Global if !chunked => "over all of their views on all processes",
        BatchNormScope::Global => "over the whole batch, synchronised over chunks",
        _ if !chunked => "over the views of each process, running statistics averaged",
        BatchNormScope::Chunk => "over the chunk",
        BatchNormScope::ChunkShuffled => "over the chunk, the two views of an image in different chunks",
    };
    if !chunked {
        return format!("{} images at once{per_process}, batch norm {norm}", train.batch);
    }
    let count = part.div_ceil(plan.chunk());
    let views = if plan.view_passes > 1 { "computed twice" } else { "kept between the passes" };
    format!(
        "{} images{per_process}, {count} chunks of up to {} per {unit}, encoded twice; batch norm {norm}; views {views}",
        train.batch,
        plan.chunk()
    )
}

/// Such as `19500 = 100 epochs of 195`.
fn steps(plan: &Plan) -> String {
    let train = &plan.config.train;
    match train.step_count {
        StepCount::FullBatches => {
            format!("{} = {} epochs of {}", plan.total_steps, train.epochs, plan.steps_per_epoch)
        }
        StepCount::Official => {
            format!("{} = {} x {} / {} + 1", plan.total_steps, plan.images, train.epochs, train.batch)
        }
    }
}

/// Rounded to four significant digits; the plan of the run has all of them.
fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Such as `lars, 0.3 x 512 / 256 = 0.6 after 976 steps of warm-up, then cosine to 0`.
fn learning_rate(plan: &Plan) -> String {
    let optim = &plan.config.optim;
    let batch = plan.config.train.batch;
    let schedule = &plan.schedule;
    let peak = four_digits(schedule.peak);
    let scaled = match optim.scaling {
        Scaling::Linear => format!("{} x {batch} / 256 = {peak}", optim.lr),
        Scaling::Sqrt => format!("{} x sqrt({batch}) = {peak}", optim.lr),
        Scaling::SqrtOf256 => format!("{} x sqrt({batch} / 256) = {peak}", optim.lr),
        Scaling::None => format!("{}", schedule.peak),
    };
    let after = match schedule.kind {
        ScheduleKind::Cosine => "then cosine to 0".into(),
        ScheduleKind::Linear => "then linear to 0".into(),
        ScheduleKind::StableDecay => {
            format!("then constant, linear to 0 in the last {} %", 100.0 * schedule.decay_share)
        }
        ScheduleKind::Constant => "then constant".into(),
        ScheduleKind::Steps => format!("then times {} at epochs {:?}", schedule.factor, optim.milestones),
    };
    format!("{:?}, {scaled} after {} steps of warm-up, {after}", optim.kind, schedule.warmup_steps)
        .to_lowercase()
}
