//! Import of encoder weights into a run folder, for evaluation, embedding, fine-tuning and export like a trained run:
//! safetensors and files of torch.save under torchvision's or timm's names, and checkpoints of google-research/simclr, with their head.

use std::path::Path;

use serde_json::{Value, json};
use simclr_data::{Dataset, RangeChoice, Split};
use tch::{Device, Tensor};

use super::{
    frozen_encoder::{hash_tensors, load_encoder},
    official::OfficialCheckpoint,
};
use crate::{
    EvalError, RunConfig,
    checkpoint::{Checkpoint, write_atomically},
    device::Precision,
    model::Model,
    params::load_weights,
    train::RunFolder,
    weights::{self, Source},
};

/// Keys of `[data]` that [`resolved`] takes from the images if they are `auto`.
const LEFT_OPEN: [&str; 2] = ["range", "pages"];

/// `config` with the range of values and the rule for pages that `auto` resolves to on the images at `data`, by a sample as at the
/// start of a run; and the channels C of an image.
///
/// # Errors
/// Images that cannot be opened, or a range of another number of channels.
pub fn resolved(mut config: RunConfig, data: &Path) -> Result<(RunConfig, usize), EvalError> {
    let set = Dataset::open(data, Split::Train, config.data.open_options())?;
    let (set, range) = set.decoded_by(config.transform.jpeg).with_range(&config.data.range)?;
    config.data.range = RangeChoice::Set(range);
    config.data.pages = set.decoding().pages;
    config.data.path = Some(data.to_owned());
    Ok((config, set.channels()))
}

/// The configuration for an import of `file`: `overrides`, and of an official checkpoint what its shapes determine and its
/// preprocessing where they leave it open, with a note.
///
/// # Errors
/// Invalid overrides, or such that contradict the checkpoint; a damaged checkpoint.
pub fn configure(file: &Path, overrides: &[String]) -> Result<(RunConfig, Option<String>), EvalError> {
    let config = RunConfig::load(None, overrides)?;
    let Some(official) = OfficialCheckpoint::find(file, config.encoder.import_ema)? else {
        return Ok((config, None));
    };
    Ok((official.configure(overrides)?, Some(official.describe())))
}

/// The configuration for an import of `file`, which names its architecture, to be compared with `run` on images of `channels`
/// channels: the network of the file, the range of values of `run`, and its image size if the file does not determine one.
///
/// # Errors
/// See [`configure`] and [`Source::open`].
pub fn configure_like(file: &Path, run: &RunConfig, channels: usize) -> Result<RunConfig, EvalError> {
    let size = format!("train.image_size={}", run.train.image_size);
    let mut config = match OfficialCheckpoint::find(file, run.encoder.import_ema)? {
        Some(official) => official.configure(&[size])?,
        None => {
            let source = Source::open(file).map_err(Box::new)?;
            let keys = source.keys(channels).0.into_iter().map(|(key, value)| format!("{key}={value}"));
            RunConfig::load(None, &std::iter::once(size).chain(keys).collect::<Vec<_>>())?
        }
    };
    (config.data.range, config.data.pages) = (run.data.range.clone(), run.data.pages);
    Ok(config)
}

/// Writes a finished run of zero steps with the encoder of `file`, and the head of an official checkpoint, into `folder`. `config`
/// holds the architecture, the image size and the input statistics. Other tensors of the file (counters, optimizer) are ignored.
///
/// # Errors
/// A file that is neither safetensors nor an official checkpoint, lacks a tensor of the architecture, or has one of another shape.
pub fn import(file: &Path, config: &RunConfig, channels: i64, folder: &RunFolder) -> Result<(), EvalError> {
    let weights = read_weights(file, config, channels)?;
    let mut checkpoint = Checkpoint::default();
    let owned = weights.model.params.named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    checkpoint.tensors.extend(
        owned.chain(weights.classifier.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))),
    );
    let source = file_name(file);
    checkpoint.sections.insert("state".into(), json!({ "step": 0, "imported_from": source }));
    checkpoint.save(&folder.checkpoint_file(0))?;
    let plan = json!({
        "channels": channels, "total_steps": 0, "imported_from": source, "weights": weights.digest(),
        "imported_head": weights.has_head,
    });
    write_atomically(&folder.plan_file(), format!("{plan:#}\n").as_bytes())?;
    // Written last: a folder with this file is a run.
    Ok(write_atomically(&folder.config_file(), config.to_toml().as_bytes())?)
}

/// Checks that `folder` holds the weights of `file`, imported with the options of `config`, except for the path of the images and
/// what [`resolved`] took from the images.
///
/// # Errors
/// [`EvalError::OtherWeights`] for another run, other weights or other options; a file that cannot be read.
pub fn check_imported(file: &Path, config: &RunConfig, folder: &RunFolder) -> Result<(), EvalError> {
    let refused = |reason: String| EvalError::OtherWeights { path: folder.path().to_owned(), reason };
    let held = load_encoder(folder)?;
    let given = file_name(file);
    let Some(source) = imported_from(folder)? else {
        let step = held.origin().step;
        return Err(refused(format!(
            "it holds a run trained here, at step {step}, not the weights `{given}`"
        )));
    };
    let differences = differences(held.config(), config);
    if !differences.is_empty() {
        let reason = format!("it holds `{source}` with other options: {}", differences.join("; "));
        return Err(refused(reason));
    }
    let weights = read_weights(file, config, held.channels())?;
    let (was, is) = (digest(held.model(), weights.has_head), weights.digest());
    if was != is {
        return Err(refused(format!("it holds the weights `{source}` ({was}), given were `{given}` ({is})")));
    }
    Ok(())
}

/// File name of the imported weights of `folder`; none for a trained run.
fn imported_from(folder: &RunFolder) -> Result<Option<String>, EvalError> {
    let text = fs_err::read_to_string(folder.plan_file())?;
    let plan: Value = serde_json::from_str(&text).unwrap_or_default();
    Ok(plan["imported_from"].as_str().map(str::to_owned))
}

/// Keys with different values, except for the path of the images and what `is` leaves open.
fn differences(was: &RunConfig, is: &RunConfig) -> Vec<String> {
    let (was, is) = (json!(was), json!(is));
    let mut found = Vec::new();
    for (section, keys) in was.as_object().into_iter().flatten() {
        for (key, was) in keys.as_object().into_iter().flatten() {
            let is = &is[section][key];
            let is_open = section == "data" && LEFT_OPEN.contains(&&key[..]) && is == "auto";
            if was != is && !is_open && (&section[..], &key[..]) != ("data", "path") {
                found.push(format!("{section}.{key} was {was}, is {is}"));
            }
        }
    }
    found
}

/// Weights of a file.
struct Weights {
    model: Model,
    has_head: bool,
    /// Of a supervised classifier, under the names of fine-tuned runs.
    classifier: Vec<(String, Tensor)>,
}

impl Weights {
    fn digest(&self) -> String {
        digest(&self.model, self.has_head)
    }
}

/// A model of `config` with the weights of `file`.
fn read_weights(file: &Path, config: &RunConfig, channels: i64) -> Result<Weights, EvalError> {
    let shape = (channels, config.train.image_size as i64);
    let model =
        Model::new(&config.encoder, &config.head, shape, config.train.seed, Device::Cpu, Precision::F32)?;
    if let Some(official) = OfficialCheckpoint::find(file, config.encoder.import_ema)? {
        official.load_into(&model)?;
        return Ok(Weights { model, has_head: official.has_head(), classifier: official.classifier()? });
    }
    read_tensors(file, &model)?;
    Ok(Weights { model, has_head: false, classifier: Vec::new() })
}

/// Copies the encoder of a file of tensors into `model`.
fn read_tensors(file: &Path, model: &Model) -> Result<(), EvalError> {
    let stored = weights::read(&weights::file_of(file)?)?;
    let wanted = encoder_of(model).map(|(name, _)| name).collect();
    let prefix = weights::prefix(&stored, &wanted);
    // Half precision is widened when the values are copied.
    Ok(load_weights(encoder_of(model), |name, shape| stored.tensor(&format!("{prefix}{name}"), shape))?)
}

fn encoder_of(model: &Model) -> impl Iterator<Item = (&str, &Tensor)> {
    model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)))
}

/// 16 hex digits over the weights of the encoder, and of the head.
fn digest(model: &Model, with_head: bool) -> String {
    let mut hash = blake3::Hasher::new();
    hash_tensors(&mut hash, encoder_of(model));
    if with_head {
        hash_tensors(&mut hash, model.params.named().filter(|(name, _)| name.starts_with("head.")));
    }
    hash.finalize().to_hex()[..16].to_owned()
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
