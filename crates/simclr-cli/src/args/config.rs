//! Where a configuration comes from: a file or recipe, `--set`, and flags for the most used keys.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;
use simclr::{
    ConfigError, RunConfig,
    config::{Written, recipes},
};

use crate::failure::Failure;

/// Sources of a configuration.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Configuration file, such as configs/cifar10_resnet18.toml
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Built-in recipe, such as cifar10-resnet18; `simclr config --recipes` lists them
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub recipe: Option<String>,
    /// Override any key (`simclr config` lists them): one or several KEY=VALUE; may be given many times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Architecture, such as resnet18 or conv-c3 (encoder.name)
    #[arg(long)]
    pub encoder: Option<String>,
    /// Epochs (train.epochs)
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Images per step, N (train.batch)
    #[arg(long)]
    pub batch: Option<usize>,
    /// Images per forward pass, for batches that do not fit into memory (train.chunk)
    #[arg(long)]
    pub chunk: Option<usize>,
    /// auto, cpu or cuda (train.device)
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch and of the loader (train.threads, data.threads)
    #[arg(long)]
    pub threads: Option<usize>,
    /// Side of a view in pixels (train.image_size)
    #[arg(long)]
    pub image_size: Option<usize>,
    /// Seed of weights, order and augmentation (train.seed)
    #[arg(long)]
    pub seed: Option<u64>,
}

/// A flag, and the keys of the configuration that it sets, with their value in TOML.
pub type Flag = (&'static str, &'static str, Option<String>);

impl ConfigArguments {
    /// The file of --config, or the embedded one of --recipe.
    fn file(&self) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.recipe.as_deref().map(recipes::path).transpose()?.or_else(|| self.config.clone()))
    }

    /// Whether a file or a recipe is given.
    pub(super) fn has_file(&self) -> bool {
        self.config.is_some() || self.recipe.is_some()
    }

    pub(super) fn flags(&self) -> Vec<Flag> {
        vec![
            ("--encoder", "encoder.name", quoted(self.encoder.as_ref())),
            ("--epochs", "train.epochs", text(self.epochs)),
            ("--chunk", "train.chunk", text(self.chunk)),
            ("--image-size", "train.image_size", text(self.image_size)),
            ("--seed", "train.seed", text(self.seed)),
            ("--batch", "train.batch", text(self.batch)),
            ("--device", "train.device", quoted(self.device.as_ref())),
            ("--threads", "train.threads", text(self.threads)),
            ("--threads", "data.threads", text(self.threads)),
        ]
    }

    /// The configuration and the keys that were set: the file, overridden by `--set`, overridden by flags.
    pub fn load(&self) -> Result<(RunConfig, Written), Failure> {
        self.load_with(&[])
    }

    /// [`ConfigArguments::load`] with `more` flags.
    pub fn load_with(&self, more: &[Flag]) -> Result<(RunConfig, Written), Failure> {
        let flags = [self.flags(), more.to_vec()].concat();
        let all: Vec<String> = self.set.iter().cloned().chain(overrides(&flags)).collect();
        let file = self.file()?;
        RunConfig::load_written(file.as_deref(), &all).map_err(|error| of_flag(error, &flags))
    }
}

/// `key=value` of the flags that were given.
pub fn overrides(flags: &[Flag]) -> Vec<String> {
    flags.iter().filter_map(|(_, key, value)| Some(format!("{key}={}", value.as_ref()?))).collect()
}

/// `error` with the name of the flag that set the value, if a flag did.
pub fn of_flag(error: ConfigError, flags: &[Flag]) -> Failure {
    let given = || flags.iter().filter_map(|(flag, key, value)| Some((flag, *key, value.as_ref()?)));
    match &error {
        ConfigError::Value { key, value, expected } => {
            if let Some((flag, ..)) = given().find(|(_, own, _)| own == key) {
                return Failure::user(format!("{flag} {value}: expected {expected}"), error.hint());
            }
        }
        ConfigError::Parse { message, .. } => {
            // Alone, the value of a flag that causes the error causes it again.
            let causes = |(_, key, value): &(_, &str, &String)| {
                let alone = RunConfig::load(None, &[format!("{key}={value}")]);
                matches!(alone, Err(ConfigError::Parse { message: own, .. }) if own == *message)
            };
            if let Some((flag, _, value)) = given().find(causes) {
                return Failure::user(format!("{flag} {}: {message}", value.trim_matches('"')), error.hint());
            }
        }
        _ => {}
    }
    error.into()
}

pub(super) fn text(value: Option<impl std::fmt::Display>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// Text in quotes, so that TOML does not parse it as a number or date.
pub(super) fn quoted(value: Option<&String>) -> Option<String> {
    value.map(|value| toml_string(value))
}

/// `text` as a string of TOML: as in JSON, but that DEL must be escaped (TOML 1.0, String).
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// `--set a.b=1 c.d=2` as `--set a.b=1 --set c.d=2`: words of this form behind a setting are settings, too.
pub fn several_settings(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut found: Vec<OsString> = Vec::new();
    let mut behind_setting = false;
    for word in words {
        let is_flag = found.last().is_some_and(|last| last == "--set");
        let more = behind_setting && !is_flag && is_setting(&word);
        if more {
            found.push("--set".into());
        }
        behind_setting = more || is_flag || word.to_string_lossy().starts_with("--set=");
        found.push(word);
    }
    found
}

/// `section.key=...`
fn is_setting(word: &OsString) -> bool {
    let word = word.to_string_lossy();
    let Some((key, _)) = word.split_once('=') else { return false };
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    key.contains('.') && key.split('.').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_any_characters_are_read_back_from_toml() {
        let all: String = ('\0'..='\u{2100}').collect();
        for text in [&all[..], "1e3", "", "a\"b\\c'd", "\u{200b}\u{1f600}\u{feff}"] {
            let read: toml::Table = format!("key = {}", toml_string(text)).parse().unwrap();
            assert_eq!(read["key"].as_str(), Some(text));
        }
    }

    #[test]
    fn several_settings_follow_one_flag() {
        let expand = |words: &str| {
            let words = several_settings(words.split(' ').map(OsString::from));
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            expand("evaluate --set eval.draws=1 eval.seed=2 RUN"),
            "evaluate --set eval.draws=1 --set eval.seed=2 RUN"
        );
        assert_eq!(expand("x --set=a.b=1 c.d=2 e.f=3"), "x --set=a.b=1 --set c.d=2 --set e.f=3");
        for same in
            ["x --set a.b=1 runs/a.b=2", "x --set a.b=1 --run c.d=2", "x a.b=1", "x --set a.b=1 ./a.b=1"]
        {
            assert_eq!(expand(same), same);
        }
    }
}
