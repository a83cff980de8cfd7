//! TOML file and `--set eval.key=value` overrides to an [`EvalConfig`]; unknown keys are refused, with near names.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::options::EvalConfig;
use crate::{ConfigError, config::load};

/// A key of the section `[eval]`.
#[derive(Debug, Clone, Copy)]
pub struct EvalKey {
    /// With its section.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
}

const fn key(name: &'static str, help: &'static str) -> EvalKey {
    EvalKey { name, help }
}

/// All keys of the section `[eval]`.
pub const KEYS: [EvalKey; 34] = [
    key("eval.protocols", "retrieval, linear-sgd, finetune, supervised, transfer-finetune, or all"),
    key("eval.knn_k", "neighbours of kNN; 0: 200 from 50,000 training images on, else 20"),
    key("eval.knn_temperature", "temperature of the kNN votes"),
    key("eval.retrieval_k", "neighbours of the retrieval"),
    key("eval.label_fractions", "fractions of the labels, one column each"),
    key("eval.labels_per_class", "labels per class, one column each, instead of the fractions below 1"),
    key("eval.label_lists", "files of image names instead of drawn subsets of the nearest size"),
    key("eval.draws", "class-balanced subsets for each column with few labels"),
    key("eval.layers", "h, z (the projection) or head.K (K-th dense layer of the head), one row each"),
    key("eval.random_inits", "random-init controls"),
    key("eval.seed", "seed of subsets and hold-outs"),
    key("eval.transform.crop", "whole, or the share of the shorter side of a central square [run's]"),
    key("eval.transform.interpolation", "bicubic or bilinear [run's]"),
    key(
        "eval.transform.antialias",
        "true: shrinking uses all source pixels; false: as tf.image.resize [run's]",
    ),
    key("eval.transform.jpeg", "zune, libjpeg (as Pillow) or libjpeg-fast (as TensorFlow) [run's]"),
    key("eval.trained.batch", "protocols that train: images per step, at most [256; v2: 1024]"),
    key(
        "eval.trained.epochs",
        "protocols that train: epochs [60 below 5 % of the labels, else 30; linear: 90]",
    ),
    key("eval.trained.seeds", "seeds of models trained with all labels"),
    key("eval.trained.finetune_recipe", "v1: SGD, 0.05 x batch / 256; v2: LARS, 0.005 x sqrt(batch)"),
    key("eval.trained.finetune_rates", "base learning rates, compared on a fifth [v1: 0.05,0.5; v2: 0.005]"),
    key("eval.trained.sweep_below", "most labels for which several rates are compared"),
    key("eval.trained.finetune_draws", "fine-tuned subsets of each column with few labels"),
    key("eval.trained.head_layers", "layers of the projection head below the classifier, one row each"),
    key("eval.trained.linear_rates", "linear-sgd: base learning rates for 256 images, compared on a fifth"),
    key("eval.trained.linear_decays", "linear-sgd: weight decays, compared on a fifth"),
    key("eval.trained.linear_optim", "linear-sgd: sgd or lars"),
    key("eval.transfer", "other labelled sets, PATH or PATH:METRIC (top-1, mean-per-class or map-11)"),
    key("eval.transfer_finetune.batch", "images per step, at most"),
    key("eval.transfer_finetune.steps", "steps of each training"),
    key("eval.transfer_finetune.rates", "learning rates [7 from 1e-4 to 1e-1]"),
    key("eval.transfer_finetune.decays", "weight decays, divided by the rate [0 and 7 from 1e-6 to 1e-3]"),
    key("eval.transfer_finetune.fresh_steps", "steps from fresh weights [twice the steps]"),
    key(
        "eval.transfer_finetune.fresh_rates",
        "rates from fresh weights [rates if given, else 7 from 1e-3 to 1]",
    ),
    key(
        "eval.transfer_finetune.fresh_decays",
        "decays from fresh weights [decays if given, else 8 from 1e-5 to 10^-1.5]",
    ),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    eval: EvalConfig,
}

impl EvalKey {
    /// The default as TOML; none for unset keys and empty lists.
    pub fn default_value(&self) -> Option<String> {
        let default = default_value(self.name)?;
        let empty = default.as_array().is_some_and(Vec::is_empty);
        (!empty).then(|| default.to_string())
    }
}

/// The default of `key`; none if it is unset.
fn default_value(key: &str) -> Option<Value> {
    let default = Value::try_from(EvalConfig::default()).expect("options are tables of plain values");
    let mut path = key.strip_prefix("eval.")?.split('.');
    path.try_fold(&default, |table, name| table.get(name)).cloned()
}

impl EvalConfig {
    /// Reads the section `[eval]` of a TOML file (none: the defaults), then applies `overrides` such as `eval.draws=3`. Lists
    /// may be written as `1,5,20`. Ranges: [`EvalConfig::validate`].
    ///
    /// # Errors
    /// Unknown keys with near names, wrong types.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        let table = path.map_or(Ok(Table::new()), load::read)?;
        let keys: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        let overrides: Vec<String> = overrides.iter().map(|text| as_list(text)).collect();
        let table = load::merged::<File>(table, path, &overrides, &keys)?;
        let mut config = load::typed::<File>(table.clone(), &overrides)?.eval;
        let written = |key: &str| table.get("eval").is_some_and(|eval| eval.get(key).is_some());
        if written("labels_per_class") && !written("label_fractions") {
            config.label_fractions = vec![1.0];
        }
        Ok(config)
    }
}

/// `key=a,b` as `key=["a", "b"]` if the key is a list and the value is not one yet.
fn as_list(text: &str) -> String {
    let Some((key, value)) = text.split_once('=') else { return text.to_owned() };
    let is_list = default_value(key.trim()).is_some_and(|default| default.is_array());
    if !is_list || value.trim_start().starts_with('[') {
        return text.to_owned();
    }
    let item = |item: &str| {
        let item = item.trim();
        let plain = item.parse::<f64>().is_ok() || item.starts_with('"');
        if plain { item.to_owned() } else { Value::String(item.to_owned()).to_string() }
    };
    let items: Vec<String> = value.split(',').filter(|item| !item.trim().is_empty()).map(item).collect();
    format!("{key}=[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::options::{Metric, Protocol};

    fn load(text: &str, overrides: &[&str]) -> Result<EvalConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.toml");
        fs_err::write(&path, text).unwrap();
        let overrides: Vec<_> = overrides.iter().map(|&text| text.to_owned()).collect();
        EvalConfig::load(Some(&path), &overrides)
    }

    /// Every field of the configuration is a listed key, and every listed key is a field.
    #[test]
    fn keys_are_complete() {
        let default = Table::try_from(EvalConfig::default()).unwrap();
        let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        for leaf in load::leaves(&default, "eval").iter().filter(|leaf| !leaf.starts_with("eval.linear.")) {
            assert!(names.contains(&&leaf[..]) || leaf == "eval.transform", "{leaf}");
        }
        for name in names {
            let error = load("", &[&format!("{name}=true")])
                .map_or_else(|error| error.to_string(), |_| String::new());
            assert!(!error.contains("unknown field") && !error.contains("unknown key"), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_and_overrides_are_merged() {
        let text = "[eval]\ndraws = 2\nprotocols = ['finetune']\n[eval.trained]\nhead_layers = [0, 1]\n";
        let config =
            load(text, &["eval.layers=h,z,head.1", "eval.transfer=pets:mean-per-class,dtd"]).unwrap();
        assert_eq!((config.draws, &config.protocols[..]), (2, &[Protocol::Finetune][..]));
        assert_eq!((config.trained.head_layers, config.layers.len()), (vec![0, 1], 3));
        let sets: Vec<_> = config.transfer.iter().map(|set| set.metric).collect();
        assert_eq!(sets, [Metric::MeanPerClass, Metric::Top1]);
        let rates = load("", &["eval.trained.finetune_rates=0.05"]).unwrap().trained.finetune_rates;
        assert_eq!(rates, [0.05]);
        assert_eq!(EvalConfig::load(None, &[]).unwrap(), EvalConfig::default());
    }

    #[test]
    fn labels_per_class_replace_the_default_fractions() {
        let config = load("", &["eval.labels_per_class=1,5"]).unwrap();
        assert_eq!((config.label_fractions, config.labels_per_class), (vec![1.0], vec![1, 5]));
        let both = load("", &["eval.labels_per_class=1,5", "eval.label_fractions=0.5,1"]).unwrap();
        assert_eq!(both.label_fractions, [0.5, 1.0]);
    }

    #[test]
    fn wrong_keys_and_values_are_refused() {
        for (text, near) in [("eval.drawz=1", "`eval.draws`"), ("eval.trained.rate=1", "rate")] {
            let error = load("", &[text]).unwrap_err();
            assert!(error.hint().is_some_and(|hint| hint.contains(near)), "{error} {:?}", error.hint());
        }
        assert!(load("[eval]\nseed = 1\ndraws = 'x'\n", &[]).unwrap_err().to_string().contains("line 3"));
        let error = load("", &["eval.draws=0"]).unwrap().validate().unwrap_err().to_string();
        assert!(error.starts_with("eval.draws = 0: expected at least one draw"), "{error}");
        assert!(load("[optim]\nlr = 1\n", &[]).is_err(), "the file holds [eval] only");
    }
}
