//! [`RunConfig`] from a TOML file and `--set` overrides. Unknown keys are errors with suggestions.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use simclr_data::{
    RangeChoice, ValueRange,
    augment::{SecondView, TransformConfig},
};
use toml::{Table, Value};

use super::{
    RunConfig, Written,
    compat::{rename_former_keys, rename_override},
    recipes, trust,
};
use crate::ConfigError;

/// Keys that are unset by default and therefore missing in the default configuration.
const OPTIONAL_KEYS: [&str; 7] = [
    "data.path",
    "distill.labelled",
    "distill.teacher",
    "encoder.file",
    "optim.eps",
    "task.init_from",
    "task.subset",
];

/// Jaro-Winkler similarity from which a key is suggested.
const MIN_SIMILARITY: f64 = 0.8;

impl RunConfig {
    /// Reads a TOML file (`None`: the defaults), then applies `overrides` such as `optim.lr=0.5`.
    ///
    /// # Errors
    /// A file that cannot be read, invalid TOML, unknown keys, wrong types, values out of range.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        Ok(Self::load_written(path, overrides)?.0)
    }

    /// [`RunConfig::load`], and the keys that were set.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load_written(path: Option<&Path>, overrides: &[String]) -> Result<(Self, Written), ConfigError> {
        let mut table = path.map_or(Ok(Table::new()), read)?;
        let overrides = with_one_duration(&mut table, overrides);
        let mut written = table.clone();
        let config = Self::of_table(table, path, &overrides)?;
        let mut notices = rename_former_keys(&mut written);
        for text in &overrides {
            let (text, notice) = rename_override(text);
            set(&mut written, &text)?;
            notices.extend(notice);
        }
        let written = Written::new(written, notices);
        if config.train.minutes > 0.0 && written.has("train.epochs") {
            return Err(ConfigError::Value {
                key: "train.epochs".into(),
                value: config.train.epochs.to_string(),
                expected: format!("not set, as train.minutes = {} is", config.train.minutes),
            });
        }
        Ok((config, written))
    }

    /// Reads the `config.toml` of a run. If it is from before runs recorded `[transform]` or `data.range`, the values of that time
    /// apply; the note states the transform.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load_run(path: &Path, overrides: &[String]) -> Result<(Self, Option<String>), ConfigError> {
        let table = read(path)?;
        let records_transform = table.contains_key("transform");
        let records_range = table.get("data").is_some_and(|data| data.get("range").is_some());
        let mut config = Self::of_table(table, Some(path), &[])?;
        trust::check(&config, path)?;
        let mut note = None;
        if !records_transform {
            let size = config.train.image_size;
            config.transform = TransformConfig::of_an_older_run(size);
            let transform = config.transform.to(size, 0);
            note = Some(format!("the run records no [transform]; using that of older versions: {transform}"));
        }
        if !records_range {
            config.data.range = RangeChoice::Set(ValueRange::Full);
        }
        if overrides.is_empty() {
            return Ok((config, note));
        }
        Ok((Self::of_table(config.to_table(), None, overrides)?, note))
    }

    fn of_table(table: Table, path: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        let table = merged::<Self>(table, path, overrides, &known_keys())?;
        let config: Self = typed(table, overrides)?;
        config.validate()?;
        Ok(config)
    }

    /// Parses the output of [`RunConfig::to_toml`] of rank 0.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn of_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = from_text(Path::new("rank 0"), text)?;
        config.validate()?;
        Ok(config)
    }

    /// With all defaults.
    pub(super) fn to_table(&self) -> Table {
        Table::try_from(self).expect("TOML can represent every configuration")
    }

    /// With all defaults.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("TOML can represent every configuration")
    }
}

/// Of `train.epochs` and `train.minutes`, the one that `overrides` set last counts: the other is removed from the `table` of the file and from
/// the overrides, of which the rest is returned. So a recipe of ten minutes with `--epochs 4` has 4 epochs.
fn with_one_duration(table: &mut Table, overrides: &[String]) -> Vec<String> {
    let is_set = |text: &String, key: &str| text.split_once('=').is_some_and(|(name, _)| name.trim() == key);
    let off = |text: &String| text.split_once('=').is_some_and(|(_, value)| value.trim().parse() == Ok(0.0));
    let (epochs, minutes) = ("train.epochs", "train.minutes");
    let last =
        overrides.iter().rev().find(|text| is_set(text, epochs) || is_set(text, minutes) && !off(text));
    let Some(last) = last else { return overrides.to_vec() };
    let other = if is_set(last, epochs) { minutes } else { epochs };
    if let Some(Value::Table(train)) = table.get_mut("train") {
        train.remove(&other["train.".len()..]);
    }
    overrides.iter().filter(|text| !is_set(text, other)).cloned().collect()
}

/// `table`, read from the file `path`, with `overrides`; all keys must be `known`.
pub(crate) fn merged<T: DeserializeOwned>(
    mut table: Table,
    path: Option<&Path>,
    overrides: &[String],
    known: &[String],
) -> Result<Table, ConfigError> {
    rename_former_keys(&mut table);
    refuse_unknown(path.unwrap_or(Path::new("--set")), &table, known)?;
    // Reading the file alone first: its errors then carry line and column.
    if let Some(path) = path {
        from_text::<T>(path, &recipes::read(path)?)?;
    }
    for text in overrides {
        set(&mut table, &rename_override(text).0)?;
    }
    refuse_unknown(Path::new("--set"), &table, known)?;
    Ok(table)
}

/// Errors name the one of `overrides` that has them alone, too.
pub(crate) fn typed<T: DeserializeOwned>(table: Table, overrides: &[String]) -> Result<T, ConfigError> {
    let message = match Value::Table(table).try_into() {
        Ok(value) => return Ok(value),
        Err(error) => error.message().to_owned(),
    };
    let causes = |text: &&String| {
        let mut alone = Table::new();
        let error =
            set(&mut alone, &rename_override(text).0).ok().and(Value::Table(alone).try_into::<T>().err());
        error.is_some_and(|error| error.message() == message)
    };
    let path = overrides.iter().find(causes).map_or("--set".into(), |text| format!("--set {text}").into());
    Err(ConfigError::Parse { path, message })
}

pub(crate) fn read(path: &Path) -> Result<Table, ConfigError> {
    parse(path, &recipes::read(path)?)
}

fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| parse_error(path, text, &error))
}

pub(super) fn from_text<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| parse_error(path, text, &error))
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    ConfigError::Parse { path: path.to_owned(), message: format!("{place}{}", error.message()) }
}

/// Applies `section.key=value`. A value that is not valid TOML is a string, so that strings need no quotes in a shell.
///
/// # Errors
/// No `=`; a section that is a value.
fn set(table: &mut Table, text: &str) -> Result<(), ConfigError> {
    let error = |message: String| ConfigError::Parse { path: PathBuf::from("--set"), message };
    let (key, value) =
        text.split_once('=').ok_or_else(|| error(format!("`{text}`: expected section.key=value")))?;
    let value = value.trim();
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    let (sections, last) = key.trim().rsplit_once('.').unwrap_or(("", key.trim()));
    let mut target = table;
    for section in sections.split('.').filter(|section| !section.is_empty()) {
        let entry = target.entry(section).or_insert_with(|| Value::Table(Table::new()));
        target = entry
            .as_table_mut()
            .ok_or_else(|| error(format!("`{key}`: `{section}` is a value, not a section")))?;
    }
    target.insert(last.to_owned(), value);
    Ok(())
}

fn refuse_unknown(path: &Path, table: &Table, known: &[String]) -> Result<(), ConfigError> {
    for key in leaves(table, "") {
        if !known.contains(&key) && !known.iter().any(|known| known.starts_with(&format!("{key}."))) {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                near: suggestions(&key, known),
                key,
            });
        }
    }
    Ok(())
}

/// All keys with their sections, such as `train.batch`.
fn known_keys() -> Vec<String> {
    let mut keys = leaves(&RunConfig::default().to_table(), "");
    keys.extend(OPTIONAL_KEYS.map(str::to_owned));
    keys.extend(SecondView::KEYS.iter().map(|&key| key.to_owned()));
    keys
}

/// Dotted names of all values, and of empty sections, so that misspelt sections are detected.
pub(crate) fn leaves(table: &Table, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => keys.extend(leaves(inner, &key)),
            _ => keys.push(key),
        }
    }
    keys
}

/// Up to three keys that are similar to `key`, or have a last component similar to its last component.
fn suggestions(key: &str, known: &[String]) -> Vec<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |candidate: &String| {
        strsim::jaro_winkler(key, candidate).max(strsim::jaro_winkler(&last(key), &last(candidate)))
    };
    let mut scored: Vec<_> = known.iter().map(|candidate| (score(candidate), candidate)).collect();
    scored.retain(|(score, _)| *score >= MIN_SIMILARITY);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, key)| format!("`{key}`")).collect()
}

#[cfg(test)]
mod tests {
    use simclr_data::augment::EvalCrop;

    use super::*;

    fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs_err::write(&path, text).unwrap();
        let overrides: Vec<_> = overrides.iter().map(|&text| text.to_owned()).collect();
        RunConfig::load(Some(&path), &overrides)
    }

    #[test]
    fn to_toml_round_trips() {
        let config = load("[loss]\ntemperature = 0.5\n", &["optim.lr=0.7", "encoder.name=resnet18"]).unwrap();
        assert_eq!((config.loss.temperature, config.optim.lr), (0.5, 0.7));
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn the_duration_that_is_set_last_counts() {
        let minutes = "[train]\nminutes = 10\n";
        let durations = |text, overrides: &[&str]| {
            let train = load(text, overrides).unwrap().train;
            (train.epochs, train.minutes)
        };
        assert_eq!(durations(minutes, &["train.epochs=4"]), (4.0, 0.0));
        assert_eq!(durations("[train]\nepochs = 4\n", &["train.minutes=10"]).1, 10.0);
        assert_eq!(durations("[train]\nepochs = 4\nminutes = 0\n", &[]), (4.0, 0.0));
        assert_eq!(durations("", &["train.minutes=10", "train.epochs=4"]), (4.0, 0.0));
        assert_eq!(durations("", &["train.epochs=4", "train.minutes=10"]).1, 10.0);
        assert_eq!(durations(minutes, &["train.epochs=4", "train.minutes=0"]), (4.0, 0.0));
        let error = load("[train]\nminutes = 10\nepochs = 4\n", &[]).unwrap_err().to_string();
        assert_eq!(error, "train.epochs = 4: expected not set, as train.minutes = 10 is");
    }

    #[test]
    fn a_second_view_round_trips_and_needs_two_views() {
        let text = "[augment]\nblur = 1.0\n[augment.second_view]\nblur = 0.1\n";
        let config = load(text, &["augment.second_view.policy=autoaugment-imagenet"]).unwrap();
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
        let second = config.augment.second_view.as_ref().unwrap();
        assert_eq!((config.augment.blur, second.blur, second.flip), (1.0, Some(0.1), None));
        assert!(!RunConfig::default().to_toml().contains("second_view"));
        let error = load(text, &["task.objective=supervised"]).unwrap_err();
        assert!(error.to_string().starts_with("augment.second_view"), "{error}");
        // The filter of the resize is that of both views.
        let error = load("[augment.second_view]\nantialias = false\n", &[]).unwrap_err();
        assert!(matches!(error, ConfigError::UnknownKey { .. }), "{error}");
    }

    #[test]
    fn written_lists_the_keys_that_were_set() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs_err::write(&path, "[encoder]\nname = 'resnet50'\n").unwrap();
        let (config, written) = RunConfig::load_written(Some(&path), &["train.batch=64".to_owned()]).unwrap();
        let has = |key: &str| written.has(key);
        assert!(has("encoder.name") && has("train.batch"), "a default value that was set counts as written");
        assert!(!has("train.chunk") && !has("train.image_size") && !has("encoder"));
        fs_err::write(&path, config.to_toml()).unwrap();
        let (_, whole) = RunConfig::load_written(Some(&path), &[]).unwrap();
        assert!(["train.chunk", "train.image_size", "encoder.name"].iter().all(|key| whole.has(key)));
        assert!(Written::EVERYTHING.has("train.chunk"));
    }

    #[test]
    fn an_older_run_keeps_its_implicit_transform() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let read = |text: &str, overrides: &[&str]| {
            fs_err::write(&path, text).unwrap();
            let overrides: Vec<_> = overrides.iter().map(|&text| text.to_owned()).collect();
            let (config, note) = RunConfig::load_run(&path, &overrides).unwrap();
            (config.transform.crop, note)
        };
        let (crop, note) = read("[train]\nimage_size = 64\n", &[]);
        assert_eq!(crop, EvalCrop::Share(0.875));
        assert!(note.unwrap().contains("87.5 %"));
        assert_eq!(read("[train]\nimage_size = 32\n", &[]).0, EvalCrop::Whole);
        assert_eq!(read("", &["transform.crop=1"]).0, EvalCrop::Share(1.0));
        let recorded = read("[transform]\ncrop = 'whole'\n[train]\nimage_size = 64\n", &[]);
        assert_eq!(recorded, (EvalCrop::Whole, None));
        assert_eq!(read(&RunConfig::default().to_toml(), &[]), (EvalCrop::Whole, None));
    }

    #[test]
    fn former_key_names_still_load() {
        let config = load("[ranks]\nsilence_seconds = 7\n", &["ranks.stall_minutes=3"]).unwrap();
        assert_eq!((config.dist.heartbeat_timeout_s, config.dist.straggler_timeout_min), (7.0, 3.0));
        let config = load(&config.to_toml(), &["ranks.silence_seconds=9"]).unwrap();
        assert_eq!((config.dist.heartbeat_timeout_s, config.dist.straggler_timeout_min), (9.0, 3.0));
        assert!(matches!(load("", &["ranks.silence=9"]), Err(ConfigError::UnknownKey { .. })));
    }

    #[test]
    fn unknown_keys_have_suggestions() {
        for (text, key, near) in [
            ("[loss]\ntemprature = 0.5\n", "loss.temprature", "`loss.temperature`"),
            ("[train]\nlr = 1\n", "train.lr", "`optim.lr`"),
            ("[optimm]\nkind = 'lars'\n", "optimm.kind", "`optim.kind`"),
            ("[augment]\nvertical_flp = 1\n", "augment.vertical_flp", "`augment.vertical_flip`"),
            ("[augment.second_view]\nblurr = 0\n", "augment.second_view.blurr", "`augment.second_view.blur`"),
            ("[augment.second_veiw]\nblur = 0\n", "augment.second_veiw.blur", "`augment.second_view.blur`"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert!(matches!(&error, ConfigError::UnknownKey { key: found, .. } if found == key), "{error}");
            assert!(error.hint().unwrap().contains(near), "{:?}", error.hint());
        }
        assert!(matches!(load("", &["loss.tau=1"]), Err(ConfigError::UnknownKey { .. })));
    }

    #[test]
    fn wrong_types_and_broken_toml_name_the_line() {
        let error = load("[train]\nseed = 1\nbatch = 'many'\n", &[]).unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
        assert!(load("[train\n", &[]).unwrap_err().to_string().contains("line 1"));
        let error = load("", &["optim.lr=1", "optim.kind=lasr"]).unwrap_err();
        assert!(error.to_string().starts_with("`--set optim.kind=lasr`: unknown variant"), "{error}");
        assert_eq!(error.hint().unwrap(), "did you mean `lars`?");
        let error = load("[encoder]\nname = 'vit_small'\n", &[]).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `vit-small`?");
        assert_eq!(load("", &["optim.kind=quick"]).unwrap_err().hint(), None);
        let error = load("", &["augment.crop_scale=0.2,1.0"]).unwrap_err();
        assert!(error.to_string().starts_with("`--set augment.crop_scale=0.2,1.0`: invalid type"), "{error}");
        assert!(load("", &["optim.lr"]).unwrap_err().to_string().contains("section.key=value"));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (text, key) in [
            ("loss.temperature=0", "loss.temperature"),
            ("train.batch=1", "train.batch"),
            ("train.chunk=1", "train.chunk"),
            ("train.batch_norm_momentum=0", "train.batch_norm_momentum"),
            ("train.epochs=0", "train.epochs"),
            ("optim.momentum=1", "optim.momentum"),
            ("optim.lr=-1", "optim.lr"),
            ("data.max_bad_share=2", "data.max_bad_share"),
            ("encoder.width=0", "encoder.width"),
            ("encoder.sk_ratio=2", "encoder.sk_ratio"),
            ("head.layers=1", "head.layers"),
            ("train.image_size=4", "train.image_size"),
            ("transform.crop=0", "transform.crop"),
            ("augment.motion_blur_length=[0.5, 2.0]", "augment.motion_blur_length"),
            ("augment.second_view.solarize=2", "augment.second_view.solarize"),
        ] {
            let error = load("", &[text]).unwrap_err();
            assert!(error.to_string().starts_with(key), "{text}: {error}");
        }
        assert!(load("", &["optim.lr=nan"]).is_err());
    }
}
