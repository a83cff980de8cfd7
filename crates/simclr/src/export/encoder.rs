//! Export of a run's encoder to a safetensors file that torchvision's model of the same name loads (except its `fc`), with
//! metadata on the expected input. The file is read back and verified.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use simclr_data::output;
use tch::{Kind, Tensor};

use crate::{
    EvalError, ModelError, RunConfig,
    checkpoint::{DTYPES, ForeignTensors, encode, write_atomically},
    device::DeviceChoice,
    encoder::{EncoderConfig, Padding},
    eval::features::{FrozenEncoder, load_encoder_on},
    head::HeadKind,
    params::load_weights,
    train::RunFolder,
    weights,
};

/// Result of [`export_encoder`].
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
    /// The metadata, sorted by key.
    pub metadata: BTreeMap<String, String>,
    /// Largest difference between features of the run's encoder and of the one rebuilt from the file.
    pub difference: f64,
}

/// Largest difference between features that counts as equal: the rebuilt encoder runs the same operations.
const TOLERANCE: f64 = 1e-6;

/// Output of [`export_encoder`], and the only kind of file it replaces.
pub const EXPORTED: output::Kind = output::Kind { name: "an exported encoder", is_earlier: is_exported };

/// Metadata key that identifies exported encoders.
const ARCHITECTURE: &str = "simclr.architecture";

/// Metadata key of the steps done, and of those planned.
const STEP: &str = "simclr.step";
const TOTAL_STEPS: &str = "simclr.total_steps";
/// Metadata key of architecture and input as JSON, see [`config_of`].
const CONFIG: &str = "simclr.config";

/// Bytes of a header, at most (the format's limit).
const LONGEST_HEADER: u64 = 100_000_000;

/// Prefix of parameter names in this program, absent in torchvision's.
const PREFIX: &str = "encoder.";

/// Writes the encoder of the newest checkpoint of `run` to `out` (atomically) and verifies the file. Only an earlier export
/// is replaced.
///
/// # Errors
/// No checkpoint, a file that cannot be written or must not be replaced, or a rebuilt encoder
/// with other features than the run's.
pub fn export_encoder(run: &RunFolder, out: &Path) -> Result<Exported, EvalError> {
    let _held = RunFolder::around(out, Some(run)).map_err(Box::new)?;
    output::check(out, EXPORTED, None)?;
    write(&load_encoder_on(run, Some(DeviceChoice::Cpu))?, out)
}

/// Writes `frozen` to `out` after verification.
pub(super) fn write(frozen: &FrozenEncoder, out: &Path) -> Result<Exported, EvalError> {
    let metadata = metadata(frozen);
    let tensors = tensors(frozen);
    let bytes = serialise(&tensors, &metadata)?;
    // Verified before anything at `out` is replaced; afterwards only the bytes on disk are compared.
    let difference = verify(frozen, &bytes, out)?;
    write_atomically(out, &bytes)?;
    if fs_err::read(out)? != bytes {
        let reason = "the file read back differs from what was written";
        return Err(EvalError::encoding(format!("`{}`", out.display()), reason));
    }
    Ok(Exported {
        path: out.to_owned(),
        bytes: bytes.len() as u64,
        tensors: tensors.len(),
        metadata,
        difference,
    })
}

fn is_exported(path: &Path) -> bool {
    // A classifier is an encoder with more, and is not replaced by one.
    let is_encoder =
        |metadata: &Value| metadata[ARCHITECTURE].is_string() && metadata["simclr.classes"].is_null();
    header(path).is_ok_and(|header| is_encoder(&header["__metadata__"]))
}

/// The header of a safetensors file.
pub(super) fn header(path: &Path) -> std::io::Result<serde_json::Value> {
    let mut file = fs_err::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(LONGEST_HEADER)).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

/// The encoder's tensors under torchvision's names, on the CPU, sorted by name.
pub(super) fn tensors(frozen: &FrozenEncoder) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in frozen.model().params.named() {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        if let Some(norm) = name.strip_suffix("running_var") {
            // PyTorch's batch norm stores a counter; with a fixed momentum nothing reads it.
            let counter = || Tensor::zeros([0i64; 0], (Kind::Int64, tch::Device::Cpu));
            tensors.entry(format!("{norm}num_batches_tracked")).or_insert_with(counter);
        }
        tensors.insert(name.to_owned(), tensor.detach().to_device(tch::Device::Cpu).contiguous());
    }
    tensors
}

/// Architecture, input size and input statistics.
pub(super) fn metadata(frozen: &FrozenEncoder) -> BTreeMap<String, String> {
    let config = &frozen.config().encoder;
    let origin = frozen.origin();
    let entries = [
        ("format", "pt".into()),
        ("simclr.version", env!("CARGO_PKG_VERSION").into()),
        (ARCHITECTURE, architecture(config)),
        ("simclr.description", frozen.model().encoder.describe()),
        ("simclr.width", config.width.to_string()),
        ("simclr.stem", stem(config, frozen.image_size()).into()),
        ("simclr.padding", padding(config.padding).into()),
        ("simclr.sk_ratio", config.sk_ratio.to_string()),
        ("simclr.resnet_d", json!(config.effective_resnet_d()).as_str().unwrap_or_default().into()),
        ("simclr.image_size", frozen.image_size().to_string()),
        ("simclr.channels", frozen.channels().to_string()),
        ("simclr.input_range", "[0, 1]".into()),
        ("simclr.transform", json!(frozen.transform()).to_string()),
        ("simclr.input_mean", numbers(&config.input_mean, "0")),
        ("simclr.input_std", numbers(&config.input_std, "1")),
        ("simclr.feature_dim", frozen.feature_dim().to_string()),
        (STEP, origin.step.to_string()),
        (CONFIG, config_of(frozen).to_string()),
    ];
    let mut metadata: BTreeMap<String, String> =
        entries.into_iter().map(|(key, value)| (key.into(), value)).collect();
    if let Some(total) = origin.total_steps {
        metadata.insert(TOTAL_STEPS.into(), total.to_string());
    }
    metadata
}

/// One value for each channel, or one for all.
fn numbers(values: &[f64], otherwise: &str) -> String {
    let texts: Vec<String> = values.iter().map(f64::to_string).collect();
    if texts.is_empty() { otherwise.into() } else { texts.join(",") }
}

fn architecture(config: &EncoderConfig) -> String {
    match &config.file {
        Some(file) => format!("torchscript:{}", file.file_name().unwrap_or_default().to_string_lossy()),
        None => config.name.as_str().into(),
    }
}

/// The stem as built, as `auto` depends on the image size.
fn stem(config: &EncoderConfig, size: usize) -> &'static str {
    match (!config.is_resnet(), config.imagenet_stem(size as i64)) {
        (true, _) => "none",
        (false, true) => "imagenet",
        (false, false) => "cifar",
    }
}

fn padding(padding: Padding) -> &'static str {
    match padding {
        Padding::Symmetric => "symmetric",
        Padding::Same => "same",
    }
}

pub(super) fn serialise(
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, EvalError> {
    let raw = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), dtype(name, tensor)?, shape(tensor), bytes_of(tensor))));
    let raw = raw.collect::<Result<Vec<_>, EvalError>>()?;
    let views = raw.iter().map(|(name, dtype, shape, bytes)| {
        TensorView::new(*dtype, shape.clone(), bytes)
            .map(|view| (*name, view))
            .map_err(|error| other(name, error))
    });
    let views = views.collect::<Result<Vec<_>, EvalError>>()?;
    encode(views, metadata).map_err(|error| other("encoder", error))
}

fn dtype(name: &str, tensor: &Tensor) -> Result<Dtype, EvalError> {
    let found = DTYPES.iter().find(|(kind, _)| *kind == tensor.kind());
    let unknown = || other(name, format!("tensors of {:?} cannot be exported", tensor.kind()));
    found.map(|(_, dtype)| *dtype).ok_or_else(unknown)
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().into_iter().map(|side| side as usize).collect()
}

/// The elements of a contiguous tensor, little endian as all platforms of libtorch are.
fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Rebuilds the encoder from `bytes` and compares features of a fixed batch.
fn verify(frozen: &FrozenEncoder, bytes: &[u8], out: &Path) -> Result<f64, EvalError> {
    let stored = ForeignTensors::parse(out, bytes)?;
    // Of a TorchScript encoder, the module that the run has loaded already.
    let rebuilt = restore(&stored, stored_config(&stored)?, frozen.config().train.device)?;
    let images = fixed_batch(frozen.channels(), frozen.image_size() as i64).to_device(frozen.device());
    let difference = (frozen.forward(&images)? - rebuilt.forward(&images)?).abs().max().double_value(&[]);
    if difference <= TOLERANCE {
        Ok(difference)
    } else {
        Err(other(
            &out.display().to_string(),
            format!("features of the exported encoder differ by {difference}, expected at most {TOLERANCE}"),
        ))
    }
}

/// Loads an encoder that [`export_encoder`] wrote, without its run folder. Features are equal to the run's. It has no head, so h is
/// its only layer.
///
/// # Errors
/// A file of another program, or of a version that did not store the configuration; a TorchScript encoder, as its module runs code;
/// a device that is not available.
pub fn load_exported(file: &Path) -> Result<FrozenEncoder, EvalError> {
    rebuild(file, &fs_err::read(file)?, DeviceChoice::Auto)
}

/// Architecture and input transform from the metadata, weights from the tensors. No code runs.
pub(super) fn rebuild(file: &Path, bytes: &[u8], device: DeviceChoice) -> Result<FrozenEncoder, EvalError> {
    let stored = ForeignTensors::parse(file, bytes)?;
    let config = stored_config(&stored)?;
    weights::refuse_module(file, &config)?;
    restore(&stored, config, device)
}

fn stored_config(stored: &ForeignTensors) -> Result<RunConfig, EvalError> {
    let place = stored.path().display().to_string();
    let missing =
        || other(&place, format!("expected an encoder exported by this version, got no `{CONFIG}` in it"));
    let text = stored.metadata(CONFIG).ok_or_else(missing)?;
    let config: RunConfig = serde_json::from_str(text).map_err(|error| other(&place, error))?;
    config.validate()?;
    Ok(config)
}

fn restore(
    stored: &ForeignTensors,
    mut config: RunConfig,
    device: DeviceChoice,
) -> Result<FrozenEncoder, EvalError> {
    config.head.kind = HeadKind::None;
    config.train.device = device;
    let frozen = FrozenEncoder::random_init(&config, config.data.channels as i64, 0)?;
    let own = frozen.model().params.named();
    let own = own.filter_map(|(name, tensor)| Some((name.strip_prefix(PREFIX)?, tensor)));
    load_weights(own, |name, shape| stored.tensor(name, shape))?;
    let number = |key: &str| stored.metadata(key).and_then(|text| text.parse().ok());
    Ok(frozen.of_file(stored.path(), number(STEP).unwrap_or(0), number(TOTAL_STEPS)))
}

/// The part of the configuration that [`rebuild`] needs.
fn config_of(frozen: &FrozenEncoder) -> Value {
    let RunConfig { encoder, transform, data, train, .. } = frozen.config();
    json!({
        "encoder": encoder,
        "transform": transform,
        "data": { "range": data.range, "pages": data.pages, "channels": frozen.channels() },
        "train": { "image_size": train.image_size },
    })
}

/// Eight deterministic images `[8, C, S, S]` in `[0, 1]`.
pub(super) fn fixed_batch(channels: i64, size: i64) -> Tensor {
    let numbers = Tensor::arange(8 * channels * size * size, (Kind::Double, tch::Device::Cpu));
    // Multiples of the golden ratio, modulo 1, fill the range evenly (Weyl 1916).
    (numbers * 0.618_033_988_749_894_9).frac().to_kind(Kind::Float).view([8, channels, size, size])
}

fn other(place: &str, error: impl std::fmt::Display) -> EvalError {
    ModelError::File { path: place.into(), reason: error.to_string() }.into()
}
