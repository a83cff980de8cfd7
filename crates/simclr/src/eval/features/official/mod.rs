//! Checkpoints of google-research/simclr, TF1 and TF2: the architecture that they hold, and their weights under the names here.

mod architecture;
mod variables;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use architecture::Architecture;
use serde_json::{Value, json};
use tch::Tensor;
use variables::{Norm, SHADOW, Variables};

use crate::{
    BundleError, ConfigError, EvalError, RunConfig,
    checkpoint::ForeignTensors,
    model::Model,
    params::load_weights,
    tensor_bundle::{self, Bundle},
};

/// An official checkpoint.
#[derive(Debug)]
pub struct OfficialCheckpoint {
    prefix: PathBuf,
    bundle: Bundle,
    architecture: Architecture,
    variables: Variables,
}

/// A key of the configuration and its value for a checkpoint.
type Setting = (&'static str, Value);

impl OfficialCheckpoint {
    /// The checkpoint that `path` is or holds (see [`tensor_bundle::find`]); `None` if there is none. `averaged`: with the moving
    /// averages of its weights.
    ///
    /// # Errors
    /// A damaged checkpoint, or one of another model; `averaged` without averages.
    pub fn find(path: &Path, averaged: bool) -> Result<Option<Self>, EvalError> {
        let Some(prefix) = tensor_bundle::find(path) else { return Ok(None) };
        let bundle = Bundle::open(&prefix)?;
        let other = |reason: String| BundleError::OtherModel { path: prefix.clone(), reason };
        let variables = variables::find(&bundle, averaged)?;
        let variables =
            variables.ok_or_else(|| other("no layers of the official model were found".into()))?;
        if averaged && !variables.convs.iter().all(|name| name.ends_with(SHADOW)) {
            return Err(other(format!("it has no moving averages (`...{SHADOW}`)")).into());
        }
        let shapes: Vec<&[i64]> =
            variables.convs.iter().map(|name| bundle.shape(name).unwrap_or_default()).collect();
        let architecture = Architecture::identify(&shapes, variables.pools).map_err(other)?;
        let norms = architecture.layers().iter().filter(|(_, norm)| norm.is_some()).count();
        if norms != variables.norms.len() {
            let reason = format!("{} batch norms, expected {norms}", variables.norms.len());
            return Err(other(reason).into());
        }
        Ok(Some(Self { prefix, bundle, architecture, variables }))
    }

    /// Whether it holds a projection head.
    pub fn has_head(&self) -> bool {
        !self.variables.head.is_empty()
    }

    /// What its shapes determine, such as `encoder.name = "resnet50", ...`.
    pub fn describe(&self) -> String {
        let settings: Vec<String> =
            self.settings().iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("a checkpoint of google-research/simclr: {}", settings.join(", "))
    }

    /// The configuration of `overrides`, with the keys that they leave open as the checkpoint needs them.
    ///
    /// # Errors
    /// Invalid overrides, or such that contradict the shapes of the checkpoint.
    pub fn configure(&self, overrides: &[String]) -> Result<RunConfig, ConfigError> {
        let text = |(key, value): &Setting| format!("{key}={value}");
        let settings = self.settings();
        let mut all: Vec<String> = settings.iter().chain(&self.preprocessing(overrides)?).map(text).collect();
        all.extend_from_slice(overrides);
        let config = RunConfig::load(None, &all)?;
        let written = json!(config);
        for (key, expected) in settings {
            let value = key.split('.').fold(&written, |at, name| &at[name]);
            if *value != expected {
                let expected = format!("{expected}, that of `{}`", self.prefix.display());
                return Err(ConfigError::Value { key: key.into(), value: value.to_string(), expected });
            }
        }
        Ok(config)
    }

    /// Keys that the shapes of the checkpoint determine.
    fn settings(&self) -> Vec<Setting> {
        let Architecture { name, width, stem, sk_ratio, pools, bottleneck, .. } = &self.architecture;
        let mut settings = vec![
            ("encoder.name", json!(name)),
            ("encoder.width", json!(width)),
            ("encoder.stem", json!(stem)),
            ("encoder.sk_ratio", json!(sk_ratio)),
            ("encoder.resnet_d", json!(if *pools { "official" } else { "off" })),
        ];
        if !bottleneck {
            settings.push(("encoder.shortcut", json!("projection")));
        }
        let outputs: Vec<i64> = self.variables.head.iter().map(|(kernel, _)| self.outputs(kernel)).collect();
        if let Some(out) = outputs.last() {
            let features = self.features();
            let hidden = outputs.first().filter(|hidden| outputs.len() > 1 && **hidden != features);
            settings.extend([
                ("head.kind", json!(if outputs.len() > 1 { "nonlinear" } else { "linear" })),
                ("head.layers", json!(outputs.len().max(2))),
                ("head.hidden", json!(hidden.copied().unwrap_or(0))),
                ("head.out", json!(out)),
                ("head.norm", json!("all")),
            ]);
        }
        settings
    }

    /// The official way from an image to the input (`data_util.py`, `preprocess_for_eval`; `data.py` does not crop images up to 32 px).
    fn preprocessing(&self, overrides: &[String]) -> Result<Vec<Setting>, ConfigError> {
        let size = RunConfig::load(None, overrides)?.train.image_size;
        let crop = if size <= 32 { json!("whole") } else { json!(0.875) };
        Ok(vec![
            ("encoder.padding", json!("same")),
            ("transform.crop", crop),
            ("transform.interpolation", json!("bicubic")),
            ("transform.antialias", json!(false)),
        ])
    }

    fn outputs(&self, kernel: &str) -> i64 {
        self.bundle.shape(kernel).and_then(|shape| shape.last()).copied().unwrap_or(0)
    }

    /// F.
    fn features(&self) -> i64 {
        let base = (512.0 * self.architecture.width) as i64;
        if self.architecture.bottleneck { 4 * base } else { base }
    }

    /// Copies the weights into `model`, of a configuration by [`OfficialCheckpoint::configure`].
    ///
    /// # Errors
    /// A damaged file, or tensors of other shapes than the model's.
    pub fn load_into(&self, model: &Model) -> Result<(), EvalError> {
        let read = |(name, key): (String, &str)| Ok((name, self.read(key)?));
        let tensors = self.names().into_iter().map(read).collect::<Result<BTreeMap<_, _>, BundleError>>()?;
        let stored = ForeignTensors::of(&self.prefix, tensors);
        let is_stored = |name: &str| !name.starts_with("head.") || self.has_head();
        let targets = model.params.named().filter(|(name, _)| is_stored(name));
        Ok(load_weights(targets, |name, shape| stored.tensor(name, shape))?)
    }

    /// Weight `[classes, in]` and bias of the supervised classifier under the names of fine-tuned runs.
    ///
    /// # Errors
    /// A damaged file.
    pub fn classifier(&self) -> Result<Vec<(String, Tensor)>, EvalError> {
        let Some((kernel, bias)) = &self.variables.classifier else { return Ok(Vec::new()) };
        Ok(vec![
            ("classifier.weight".to_owned(), self.read(kernel)?.contiguous()),
            ("classifier.bias".to_owned(), self.read(bias)?),
        ])
    }

    /// A tensor in PyTorch's layout: `[out, in, height, width]` of a convolution, `[out, in]` of a dense layer.
    fn read(&self, key: &str) -> Result<Tensor, BundleError> {
        let tensor = self.bundle.tensor(key)?;
        Ok(match tensor.dim() {
            4 => tensor.permute([3, 2, 0, 1]),
            2 => tensor.tr(),
            _ => tensor,
        })
    }

    /// Names here and keys of the checkpoint.
    fn names(&self) -> Vec<(String, &str)> {
        let mut found = Vec::new();
        let mut norms = self.variables.norms.iter();
        for ((conv, norm), kernel) in self.architecture.layers().iter().zip(&self.variables.convs) {
            found.push((format!("encoder.{conv}.weight"), kernel.as_str()));
            let norm = norm.as_ref().and_then(|norm| Some((norm, norms.next()?)));
            found.extend(
                norm.into_iter().flat_map(|(norm, held)| norm_names(&format!("encoder.{norm}"), held)),
            );
        }
        for (index, (kernel, norm)) in self.variables.head.iter().enumerate() {
            found.push((format!("head.{}.weight", 2 * index), kernel.as_str()));
            found.extend(norm_names(&format!("head.{}", 2 * index + 1), norm));
        }
        found
    }
}

fn norm_names<'a>(name: &str, norm: &'a Norm) -> Vec<(String, &'a str)> {
    let mut found = vec![
        (format!("{name}.weight"), norm.weight.as_str()),
        (format!("{name}.running_mean"), norm.running_mean.as_str()),
        (format!("{name}.running_var"), norm.running_var.as_str()),
    ];
    found.extend(norm.bias.as_ref().map(|bias| (format!("{name}.bias"), bias.as_str())));
    found
}
