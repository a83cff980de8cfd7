//! A run folder to a frozen encoder, and images `[B, C, S, S]` to features h `[n, F]` in `f32`. The only place that
//! freezes: batch norm on running statistics, no gradients, nothing written.

use std::{path::PathBuf, sync::mpsc::sync_channel};

use serde::{Deserialize, Serialize};
use simclr_data::{
    DataError, Dataset, EvalPixels, EvalReader,
    augment::{EvalTransform, TransformChange},
    decode::Decoding,
    error::allowed_failures,
};
use tch::{Device, Kind, Tensor};

use crate::{
    EvalError, ModelError, RunConfig,
    device::{Precision, choose_device, to_device},
    encoder::Mode,
    model::Model,
    train::RunFolder,
};

/// Raw pixels are averaged down to at most this side: 3 x 32 x 32 numbers stay tractable for a linear classifier.
pub const RAW_SIDE: i64 = 32;

/// A model whose weights no longer change. Computes in `f32`, whatever the run computed in: that is what an exported
/// encoder's user will do.
#[derive(Debug)]
pub struct FrozenEncoder {
    model: Model,
    config: RunConfig,
    channels: i64,
    origin: Origin,
}

/// Where a frozen encoder's weights come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// Checkpoint file; none for fresh weights.
    pub checkpoint: Option<PathBuf>,
    /// Training steps done.
    pub step: u64,
    /// Training steps planned, where the run folder says so.
    pub total_steps: Option<u64>,
    /// A sentence for each newer checkpoint that is damaged.
    pub passed_over: Vec<String>,
    /// What the run leaves open, and what is taken for it.
    pub assumed: Option<String>,
}

/// Loads the newest checkpoint of `run`.
///
/// # Errors
/// No run or no checkpoint there, a damaged one, or one whose tensors do not fit the run's configuration.
pub fn load_encoder(run: &RunFolder) -> Result<FrozenEncoder, EvalError> {
    let (config, assumed) = RunConfig::load_run(&run.config_file(), &[])?;
    let missing = || crate::CheckpointError::Missing { folder: run.path().to_owned() };
    let (newest, passed_over) = run.newest_checkpoint()?;
    let (path, checkpoint) = newest.ok_or_else(missing)?;
    let plan = read_plan(run)?;
    let channels = plan["channels"].as_i64().filter(|channels| *channels > 0);
    let channels = channels.unwrap_or(config.data.channels.max(1) as i64);
    let frozen = FrozenEncoder::random_init(&config, channels, config.train.seed)?;
    let place = path.display().to_string();
    load_weights(frozen.model.params.named(), &place, |name| {
        checkpoint.tensors.get(name).map(Tensor::shallow_clone)
    })?;
    let step = checkpoint.sections.get("state").and_then(|state| state["step"].as_u64()).unwrap_or(0);
    let origin = Origin {
        checkpoint: Some(path),
        step,
        total_steps: plan["total_steps"].as_u64(),
        passed_over,
        assumed,
    };
    Ok(FrozenEncoder { origin, ..frozen })
}

/// The run's `plan.json`, for facts that the configuration leaves open (channels, number of steps).
fn read_plan(run: &RunFolder) -> Result<serde_json::Value, EvalError> {
    let path = run.path().join("plan.json");
    let text = fs_err::read_to_string(&path)?;
    serde_json::from_str(&text).map_err(|error| EvalError::Refused(format!("`{}`: {error}", path.display())))
}

/// Copies a stored tensor into each of `targets`, whose names and shapes must agree.
///
/// # Errors
/// The first name that `stored` lacks, or whose shape differs; `place` says where from.
pub fn load_weights<'a>(
    targets: impl Iterator<Item = (&'a str, &'a Tensor)>,
    place: &str,
    stored: impl Fn(&str) -> Option<Tensor>,
) -> Result<(), ModelError> {
    let _guard = tch::no_grad_guard();
    for (name, target) in targets {
        let missing =
            || ModelError::Names { place: place.into(), reason: format!("tensor `{name}` is missing") };
        let value = stored(name).ok_or_else(missing)?;
        if value.size() != target.size() {
            let (expected, got) = (target.size(), value.size());
            return Err(ModelError::Shape { place: place.into(), name: name.into(), expected, got });
        }
        target.shallow_clone().f_copy_(&value)?;
    }
    Ok(())
}

impl FrozenEncoder {
    /// The control: the same architecture with fresh weights drawn from `seed`.
    ///
    /// # Errors
    /// An encoder that cannot be built, or a device that is not there.
    pub fn random_init(config: &RunConfig, channels: i64, seed: u64) -> Result<Self, EvalError> {
        let device = choose_device(config.train.device, 0)?;
        let sides = (channels, config.train.image_size as i64);
        let model = Model::new(&config.encoder, &config.head, sides, seed, device, Precision::F32)?;
        let origin =
            Origin { checkpoint: None, step: 0, total_steps: None, passed_over: Vec::new(), assumed: None };
        Ok(Self { model, config: config.clone(), channels, origin })
    }

    /// The model; its parameters and buffers are what must not change.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The run's configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// C.
    pub fn channels(&self) -> i64 {
        self.channels
    }

    /// How its images are decoded.
    pub fn decoding(&self) -> Decoding {
        let (jpeg, range) = (self.config.transform.jpeg, self.config.data.value_range());
        Decoding { channels: self.channels as usize, jpeg, range, pages: self.config.data.pages }
    }

    /// S.
    pub fn image_size(&self) -> usize {
        self.config.train.image_size
    }

    /// What it sees of an image.
    pub fn transform(&self) -> EvalTransform {
        let transform = self.config.transform.to(self.image_size(), self.channels as usize);
        transform.of_range(self.config.data.value_range())
    }

    /// The same encoder on images that are cut and resized as `change` says.
    ///
    /// # Errors
    /// A share out of range.
    pub fn with_transform(mut self, change: &TransformChange) -> Result<Self, EvalError> {
        self.config.transform = self.config.transform.changed(change);
        self.config.transform.validate()?;
        Ok(self)
    }

    /// F.
    pub fn feature_dim(&self) -> i64 {
        self.model.encoder.feature_dim()
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.model.params.device()
    }

    /// Where the weights come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// 32 hex digits over architecture and weights, batch-norm statistics and head included: which encoder features are of.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(serde_json::json!(self.config.encoder).to_string().as_bytes());
        if let Some(module) = self.config.encoder.file.as_ref().and_then(|file| fs_err::read(file).ok()) {
            hash.update(blake3::hash(&module).as_bytes());
        }
        hash_tensors(&mut hash, self.model.params.named());
        hash.finalize().to_hex()[..32].to_owned()
    }

    /// Whether any weight or batch-norm statistic of the encoder is another in `model`.
    pub fn differs(&self, model: &Model) -> bool {
        let ours = self.model.params.named().filter(|(name, _)| name.starts_with("encoder."));
        let theirs: std::collections::HashMap<_, _> = model.params.named().collect();
        ours.into_iter().any(|(name, tensor)| theirs.get(name).is_none_or(|other| !other.equal(tensor)))
    }

    /// h `[B, F]` of `images` `[B, C, S, S]`, on the CPU.
    ///
    /// # Errors
    /// A TorchScript module that fails on this batch.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor, EvalError> {
        let _guard = tch::no_grad_guard();
        Ok(self.model.encoder.forward(images, &Mode::Eval, Precision::F32)?.to_device(Device::Cpu))
    }
}

/// Adds names, types, shapes and values.
pub(super) fn hash_tensors<'a>(
    hash: &mut blake3::Hasher,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) {
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        hash.update(format!("{name} {:?} {:?}", tensor.kind(), tensor.size()).as_bytes());
        hash.update(&bytes);
    }
}

/// How images are read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// What the encoder sees of an image.
    pub transform: EvalTransform,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads.
    pub threads: usize,
    /// Share of images that may fail to decode.
    pub max_bad_share: f64,
    /// Where pixels go.
    pub device: Device,
}

impl ReadOptions {
    /// As the run of `frozen` reads; 0 `threads` = all processors.
    pub fn of(frozen: &FrozenEncoder, batch: usize, threads: usize) -> Self {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            transform: frozen.transform(),
            batch: batch.max(1),
            threads: if threads == 0 { all() } else { threads },
            max_bad_share: frozen.config.data.max_bad_share,
            device: frozen.device(),
        }
    }
}

/// An image that could not be decoded and was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadImage {
    /// Its name in the data set.
    pub name: String,
    /// What the decoder said.
    pub reason: String,
}

/// What was read.
#[derive(Debug)]
pub struct Extracted {
    /// One `[n, ..]` tensor for each extractor.
    pub features: Vec<Tensor>,
    /// Index in the data set of each row.
    pub indices: Vec<usize>,
    /// Images left out.
    pub bad: Vec<BadImage>,
}

/// Receives (images done, images in all).
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// h of the images `indices`, `[n, F]` `f32`.
///
/// # Errors
/// See [`stream`].
pub fn features(
    frozen: &FrozenEncoder,
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    extract(dataset, indices, options, &[&|pixels| frozen.forward(pixels)], progress)
}

/// The pixels of the evaluation view, `[n, C * side * side]` `f32`, averaged down to [`RAW_SIDE`] where larger.
///
/// # Errors
/// See [`stream`].
pub fn raw_pixels(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    extract(dataset, indices, options, &[&|pixels| Ok(flat_pixels(pixels))], progress)
}

/// C * side * side: numbers of an image in [`flat_pixels`], as the run of `frozen` reads it.
pub fn pixel_dim(frozen: &FrozenEncoder) -> i64 {
    let side = (frozen.image_size() as i64).min(RAW_SIDE);
    frozen.channels() * side * side
}

/// Pixels `[B, C, S, S]` to rows `[B, C * side * side]`.
pub fn flat_pixels(pixels: &Tensor) -> Tensor {
    let size = pixels.size();
    let side = size[2].min(RAW_SIDE);
    let pooled =
        if side < size[2] { pixels.adaptive_avg_pool2d([side, side]) } else { pixels.shallow_clone() };
    pooled.contiguous().view([size[0], -1]).to_device(Device::Cpu)
}

/// Pixels `[B, C, S, S]` to rows `[B, ..]`.
pub type Extractor<'a> = dyn Fn(&Tensor) -> Result<Tensor, EvalError> + 'a;

/// Reads every image once and hands each batch to all `extractors`.
///
/// # Errors
/// See [`stream`].
pub fn extract(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    extractors: &[&Extractor<'_>],
    progress: &mut Progress<'_>,
) -> Result<Extracted, EvalError> {
    let mut rows: Vec<Vec<Tensor>> = extractors.iter().map(|_| Vec::new()).collect();
    let mut kept = Vec::with_capacity(indices.len());
    let mut each = |pixels: &Tensor, chunk: &[usize]| {
        kept.extend_from_slice(chunk);
        for (rows, extractor) in rows.iter_mut().zip(extractors) {
            rows.push(extractor(pixels)?);
        }
        Ok(())
    };
    let bad = stream(dataset, indices, options, &mut each, progress)?;
    if kept.is_empty() {
        return Err(EvalError::Refused("no image could be read".into()));
    }
    Ok(Extracted { features: rows.iter().map(|rows| Tensor::cat(rows, 0)).collect(), indices: kept, bad })
}

/// Receives pixels `[B, C, S, S]` and the indices of its rows.
pub type Receiver<'a> = dyn FnMut(&Tensor, &[usize]) -> Result<(), EvalError> + 'a;

/// Decodes `indices` in order, one batch ahead of `each`, which receives pixels `[B, C, S, S]` on the device and the
/// indices of its rows. Returns the images that could not be decoded.
///
/// # Errors
/// More bad images than allowed, an operating-system error, or what `each` returns.
pub fn stream(
    dataset: &Dataset,
    indices: &[usize],
    options: &ReadOptions,
    each: &mut Receiver<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<BadImage>, EvalError> {
    let size = options.transform.size as i64;
    let shape = |rows: usize| [rows as i64, dataset.channels() as i64, size, size];
    let reader = EvalReader::new(dataset, &options.transform, options.threads)?;
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            for chunk in indices.chunks(options.batch) {
                if sender.send(reader.read(chunk)).is_err() {
                    break;
                }
            }
        });
        let (mut done, mut bad) = (0, Vec::new());
        for chunk in receiver {
            let EvalPixels { ids, pixels, failed: unreadable } = chunk;
            done += ids.len() + unreadable.len();
            let named = |(index, reason): (usize, String)| BadImage {
                name: dataset.samples()[index].name.clone(),
                reason,
            };
            bad.extend(unreadable.into_iter().map(named));
            check_bad(&bad, indices.len(), options.max_bad_share)?;
            if !ids.is_empty() {
                each(&to_device(&pixels, shape(ids.len()), options.device), &ids)?;
            }
            progress(done, indices.len());
        }
        Ok(bad)
    })
}

pub(super) fn check_bad(bad: &[BadImage], seen: usize, allowed: f64) -> Result<(), EvalError> {
    match bad.first() {
        Some(first) if bad.len() > allowed_failures(allowed, seen) => {
            let first = first.reason.clone();
            Err(DataError::TooManyBad { bad: bad.len(), seen, allowed, first }.into())
        }
        _ => Ok(()),
    }
}

/// The rows of `labels` that `indices` name, as a tensor `[n]` i64.
pub fn label_tensor(labels: &[i64], indices: &[usize]) -> Tensor {
    let picked: Vec<i64> = indices.iter().map(|&index| labels[index]).collect();
    Tensor::from_slice(&picked).to_kind(Kind::Int64)
}
