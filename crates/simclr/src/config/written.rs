//! The configuration as written by the user, before anything is chosen for the machine.

use std::path::Path;

use toml::{Table, Value};

use super::load::{from_text, leaves};
use crate::ConfigError;

/// The keys that the user set, in a file or by an override. A new run may choose the others for the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// `None`: all keys.
    table: Option<Table>,
    /// Renamed keys.
    notices: Vec<String>,
}

/// A key that was written differently at two times; `None` where it was not written.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenChange {
    /// Such as `optim.lr`.
    pub key: String,
    /// Earlier value, as TOML.
    pub was: Option<String>,
    /// Later value, as TOML.
    pub is: Option<String>,
}

impl std::fmt::Display for WrittenChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        write!(f, "{} was {}, is {}", self.key, text(&self.was), text(&self.is))
    }
}

impl Written {
    /// All keys, so that nothing is chosen for the machine.
    pub const EVERYTHING: Self = Self { table: None, notices: Vec::new() };

    pub(super) fn new(table: Table, notices: Vec<String>) -> Self {
        Self { table: Some(table), notices }
    }

    /// Whether `key`, such as `train.chunk`, was set.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_none() || self.value(key).is_some()
    }

    /// A value that is no section.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        let (last, path) = key.rsplit_once('.').map_or((key, None), |(path, last)| (last, Some(path)));
        let mut table = self.table.as_ref()?;
        for name in path.into_iter().flat_map(|path| path.split('.')) {
            table = table.get(name)?.as_table()?;
        }
        table.get(last).filter(|value| value.as_table().is_none_or(Table::is_empty))
    }

    /// A message for each key that was set under a former name.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The keys with their values; `None` for [`Written::EVERYTHING`].
    pub fn to_toml(&self) -> Option<String> {
        let table = self.table.as_ref()?;
        Some(toml::to_string_pretty(table).expect("a table that was parsed from TOML"))
    }

    /// Parses the output of [`Written::to_toml`] from `path`.
    ///
    /// # Errors
    /// Not TOML.
    pub fn of_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Ok(Self::new(from_text(path, text)?, Vec::new()))
    }

    /// Keys with other values than `before`.
    pub fn changes_since(&self, before: &Self) -> Vec<WrittenChange> {
        let keys = |written: &Self| written.table.as_ref().map_or(Vec::new(), |table| leaves(table, ""));
        let mut all = [keys(before), keys(self)].concat();
        all.sort();
        all.dedup();
        let text = |written: &Self, key: &str| written.value(key).map(Value::to_string);
        let change = |key: String| {
            let (was, is) = (text(before, &key), text(self, &key));
            (was != is).then_some(WrittenChange { key, was, is })
        };
        all.into_iter().filter_map(change).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunConfig;

    fn written(overrides: &[&str]) -> Written {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        RunConfig::load_written(None, &overrides).unwrap().1
    }

    #[test]
    fn keys_survive_the_file() {
        let before = written(&["optim.lr=0.1", "augment.crop_scale=[0.2,1.0]", "train.epochs=2"]);
        assert!(
            before.has("optim.lr")
                && !before.has("optim.kind")
                && !before.has("optim.lr.x")
                && !before.has("optim")
        );
        let after = Written::of_toml(Path::new("a"), &before.to_toml().unwrap()).unwrap();
        assert_eq!(after, before);
        assert_eq!(after.changes_since(&before), []);
        assert!(Written::EVERYTHING.has("optim.kind") && Written::EVERYTHING.to_toml().is_none());
    }

    #[test]
    fn changes_name_key_and_values() {
        let before = written(&["optim.lr=0.1", "train.epochs=2"]);
        let changes = written(&["optim.lr=0.2", "train.batch=8"]).changes_since(&before);
        let texts: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["optim.lr was 0.1, is 0.2", "train.batch was not set, is 8", "train.epochs was 2, is not set"]
        );
    }
}
