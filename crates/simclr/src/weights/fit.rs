//! The tensors of a file that fit a model, copied into it; the rest is counted and named.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{
    IMAGENET_MEAN, IMAGENET_STD, architecture, read,
    statement::{self, for_channels},
};
use crate::{
    ModelError, RunConfig, TrainError,
    checkpoint::{Checkpoint, ForeignTensors},
    model::Model,
};

/// Metadata of an exported encoder, and of a checkpoint of this program.
const CONFIGS: [&str; 2] = ["simclr.config", "simclr.section.config"];
/// Metadata of a checkpoint of this program.
const CHECKSUM: &str = "simclr.crc32c";
/// Convolutions of the images.
const FIRST: [&str; 3] = ["conv1.weight", "conv1.0.weight", "patch_embed.proj.weight"];
const POSITIONS: &str = "pos_embed";
/// Names that a message lists, at most.
const LISTED: usize = 4;

/// Initial weights: tensors, and what is known of the network that they belong to.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    stored: ForeignTensors,
    /// Of the network, if this program wrote the file and tensors are all of it.
    config: Option<RunConfig>,
    /// TorchScript module that the file names. It runs code, so that only the user or a run folder may choose it.
    module: Option<PathBuf>,
}

/// What [`Source::load_into`] copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fitted {
    /// Tensors of the model with values of the file.
    pub from_file: usize,
    /// Tensors of the model that keep their initial values.
    pub fresh: Vec<String>,
    /// Tensors of the file that the model does not have, or has with another shape.
    pub left_out: Vec<String>,
    /// Prefix of the encoder's names in the file.
    pub prefix: String,
    /// Changed tensors.
    pub notes: Vec<String>,
}

impl Source {
    /// Opens a file of weights: of another program, an export, or a checkpoint.
    ///
    /// # Errors
    /// See [`read`]; a damaged checkpoint.
    pub fn open(file: &Path) -> Result<Self, TrainError> {
        let stored = read(file)?;
        if stored.metadata(CHECKSUM).is_some() {
            Checkpoint::load(file)?;
        }
        let text = CONFIGS.iter().find_map(|key| stored.metadata(key));
        let parsed = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let config = parsed.and_then(|value| RunConfig::deserialize(value).ok());
        let module = config.as_ref().and_then(|config| config.encoder.file.clone());
        let config = config.filter(|_| module.is_none());
        Ok(Self { path: file.to_owned(), stored, config, module })
    }

    /// The checkpoint `file` of a run of `config`.
    ///
    /// # Errors
    /// See [`Source::open`].
    pub fn of_run(file: &Path, config: RunConfig) -> Result<Self, TrainError> {
        Ok(Self { config: Some(config), module: None, ..Self::open(file)? })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is a checkpoint, with tensors of the head.
    pub fn is_checkpoint(&self) -> bool {
        self.stored.metadata(CHECKSUM).is_some()
    }

    /// Keys of the configuration under which the weights fit images of `channels` channels, and the source of the input statistics.
    pub fn keys(&self, channels: usize) -> (Vec<(String, Value)>, &'static str) {
        let (mut keys, (mean, std), source) = match &self.config {
            Some(config) => {
                let encoder = &config.encoder;
                (self.own_keys(config), (encoder.input_mean.clone(), encoder.input_std.clone()), "the run's")
            }
            None => {
                let keys = architecture::keys(&self.stored).into_iter();
                let keys = keys.map(|(key, value)| (key.to_owned(), value)).collect();
                let imagenet = || {
                    ((IMAGENET_MEAN.to_vec(), IMAGENET_STD.to_vec()), "ImageNet's, not stated by the file")
                };
                let (statistics, source) = statement::find(&self.path).unwrap_or_else(imagenet);
                (keys, statistics, source)
            }
        };
        keys.push(("encoder.input_mean".into(), json!(for_channels(&mean, channels))));
        keys.push(("encoder.input_std".into(), json!(for_channels(&std, channels))));
        (keys, source)
    }

    /// The encoder and the size of its images; of a checkpoint the head, too.
    fn own_keys(&self, config: &RunConfig) -> Vec<(String, Value)> {
        let written = json!(config);
        let sections = if self.is_checkpoint() { &["encoder", "head"][..] } else { &["encoder"] };
        let mut keys = vec![("train.image_size".to_owned(), json!(config.train.image_size))];
        for section in sections {
            let entries = written[section].as_object().into_iter().flatten();
            let entries = entries.filter(|(key, value)| !value.is_null() && !key.starts_with("input_"));
            keys.extend(entries.map(|(key, value)| (format!("{section}.{key}"), value.clone())));
        }
        keys
    }

    /// Copies into `model` what fits: the encoder, and from a checkpoint the head if all of it fits.
    ///
    /// # Errors
    /// [`ModelError::Weights`] if less than half of the encoder's tensors fit.
    pub fn load_into(&self, model: &Model) -> Result<Fitted, ModelError> {
        let wanted: HashSet<&str> = encoder_of(model).map(|(name, _)| name).collect();
        let prefix = architecture::prefix(&self.stored, &wanted);
        let mut fitted = Fitted { prefix: prefix.to_owned(), ..Fitted::default() };
        let mut copies = Vec::new();
        for (name, target) in encoder_of(model) {
            match self.stored.get(&format!("{prefix}{name}")).and_then(|stored| adapted(name, stored, target))
            {
                Some((value, note)) => {
                    copies.push((target.shallow_clone(), value));
                    fitted.notes.extend(note);
                }
                None => fitted.fresh.push(format!("encoder.{name}")),
            }
        }
        if 2 * copies.len() < wanted.len() || copies.is_empty() {
            return Err(self.misfit(copies.len(), wanted.len(), prefix, model));
        }
        for part in ["head.", "classifier."] {
            self.add_part(part, model, &mut copies, &mut fitted);
        }
        fitted.from_file = copies.len();
        fitted.left_out = self.left_out(prefix, &fitted.fresh, model);
        tch::no_grad(|| copies.iter_mut().for_each(|(target, value)| target.copy_(value)));
        Ok(fitted)
    }

    /// Adds the tensors below `part` of a checkpoint if all of them fit.
    fn add_part(&self, part: &str, model: &Model, copies: &mut Vec<(Tensor, Tensor)>, fitted: &mut Fitted) {
        let targets: Vec<_> = model.params.named().filter(|(name, _)| name.starts_with(part)).collect();
        let own = |(name, target): &(&str, &Tensor)| {
            let stored = self.stored.get(name).filter(|_| self.is_checkpoint())?;
            (stored.size() == target.size()).then(|| (target.shallow_clone(), stored.shallow_clone()))
        };
        match targets.iter().map(own).collect::<Option<Vec<_>>>() {
            Some(pairs) => copies.extend(pairs),
            None => fitted.fresh.extend(targets.iter().map(|(name, _)| (*name).to_owned())),
        }
    }

    /// Names of the file without a use: of a checkpoint those of head and classifier only, because the others are the state of its
    /// optimizer.
    fn left_out(&self, prefix: &str, fresh: &[String], model: &Model) -> Vec<String> {
        let encoder = encoder_of(model).filter(|(name, _)| !fresh.contains(&format!("encoder.{name}")));
        let mut used: HashSet<String> = encoder.map(|(name, _)| format!("{prefix}{name}")).collect();
        if self.is_checkpoint() {
            let others = model.params.named().filter(|(name, _)| !fresh.iter().any(|fresh| fresh == name));
            used.extend(others.map(|(name, _)| name.to_owned()));
        }
        let matters = |name: &&str| {
            let part = name.starts_with("head.") || name.starts_with("classifier.");
            !name.ends_with("num_batches_tracked") && (part || !self.is_checkpoint())
        };
        let names = self.stored.names().filter(matters).filter(|name| !used.contains(*name));
        names.map(str::to_owned).collect()
    }

    fn misfit(&self, fitting: usize, wanted: usize, prefix: &str, model: &Model) -> ModelError {
        let differs = encoder_of(model).find_map(|(name, target)| {
            let shape =
                self.stored.shape(&format!("{prefix}{name}")).filter(|shape| *shape != target.size())?;
            Some(format!("; `{prefix}{name}` has shape {shape:?}, expected {:?}", target.size()))
        });
        let has = || self.stored.names().next().map(|name| format!("; the file has `{name}`, ..."));
        let module = self.module.as_ref().map(|module| {
            format!(
                "; the file is of the TorchScript module `{}`, which only encoder.file may choose",
                module.display()
            )
        });
        let detail = module.or(differs).or_else(has).unwrap_or_default();
        let encoder = model.encoder.describe();
        let reason = format!(
            "{fitting} of the {wanted} tensors of the encoder ({encoder}) fit, expected at least half{detail}"
        );
        ModelError::Weights { path: self.path.clone(), reason }
    }
}

fn encoder_of(model: &Model) -> impl Iterator<Item = (&str, &Tensor)> {
    model.params.named().filter_map(|(name, tensor)| Some((name.strip_prefix("encoder.")?, tensor)))
}

/// `stored` in the shape of `target`, with a note if it was changed; `None` if it does not fit.
fn adapted(name: &str, stored: &Tensor, target: &Tensor) -> Option<(Tensor, Option<String>)> {
    let (from, to) = (stored.size(), target.size());
    if !stored.is_floating_point() {
        return None;
    }
    if from == to {
        return Some((stored.shallow_clone(), None));
    }
    if let (true, &[a, channels, h, w], &[b, wanted, i, j]) = (FIRST.contains(&name), &from[..], &to[..])
        && (a, h, w) == (b, i, j)
        && channels > 0
    {
        let how = if wanted == 1 { "summed" } else { "repeated" };
        let note = format!("{name} {how} from {channels} to {wanted} channels");
        return Some((first_kernel(stored, channels, wanted), Some(note)));
    }
    if let (POSITIONS, &[1, a, width], &[1, b, same]) = (name, &from[..], &to[..])
        && width == same
    {
        let (before, after) = ((a - 1).isqrt(), (b - 1).isqrt());
        let squares = before > 0 && before * before == a - 1 && after * after == b - 1;
        let note = format!("{name} resized from {before} x {before} to {after} x {after} patches");
        return squares.then(|| (resized(stored, before, after), Some(note)));
    }
    None
}

/// A kernel `[out, from, k, k]` for images of `to` channels, as timm's `adapt_input_conv`: for one channel the sum over the channels, so
/// that a grey image has the response of three equal channels; otherwise the channels in turn, times `from / to`.
fn first_kernel(kernel: &Tensor, from: i64, to: i64) -> Tensor {
    let kernel = kernel.to_kind(Kind::Float);
    if to == 1 {
        return kernel.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    }
    let turns = (to + from - 1) / from;
    kernel.repeat([1, turns, 1, 1]).narrow(1, 0, to) * (from as f64 / to as f64)
}

/// Positions `[1, 1 + before^2, width]` for `after^2` patches, as timm's `resample_abs_pos_embed`: bicubic with antialiasing; that of the
/// class token is kept.
fn resized(positions: &Tensor, before: i64, after: i64) -> Tensor {
    let positions = positions.to_kind(Kind::Float);
    let width = positions.size()[2];
    let patches = positions.narrow(1, 1, before * before);
    let grid = patches.reshape([1, before, before, width]).permute([0, 3, 1, 2]).contiguous();
    let grid = grid.internal_upsample_bicubic2d_aa([after, after], false, None, None);
    let patches = grid.permute([0, 2, 3, 1]).reshape([1, after * after, width]);
    Tensor::cat(&[positions.narrow(1, 0, 1), patches], 1)
}

impl std::fmt::Display for Fitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors from the file", self.from_file)?;
        if !self.prefix.is_empty() && self.prefix != "encoder." {
            write!(f, " (names below `{}`)", self.prefix)?;
        }
        write!(f, ", {} fresh{}", self.fresh.len(), listed(&self.fresh, ": "))?;
        f.write_str(&listed(&self.left_out, "; left out: "))?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// The first names behind `before`, and the number of the others.
fn listed(names: &[String], before: &str) -> String {
    if names.is_empty() {
        return String::new();
    }
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{before}{}{more}", names[..names.len().min(LISTED)].join(", "))
}
