//! `simclr config`.

use std::process::ExitCode;

use serde_json::json;
use simclr::config::recipes::{self, RECIPES};

use crate::{args::Config, failure::Failure, terminal};

/// All keys, generated from the doc comments in the source by tests/configuration.rs.
const KEYS: &str = include_str!("../../../../docs/configuration.md");

/// Prints keys with default and meaning, or recipes.
pub fn run(arguments: &Config) -> Result<ExitCode, Failure> {
    let text = match &arguments.recipe {
        _ if arguments.recipes => list_of_recipes(),
        Some(name) => recipe(name)?,
        None => keys(arguments.key.as_deref(), arguments.json)?,
    };
    terminal::result(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Names with the first line of each.
fn list_of_recipes() -> String {
    let title =
        |text: &str| text.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']).to_owned();
    let line = |(name, text): &(&str, &str)| format!("{:<28} {}\n", name.replace('_', "-"), title(text));
    RECIPES.iter().map(line).collect()
}

fn recipe(name: &str) -> Result<String, Failure> {
    recipes::path(name)?;
    let name = name.replace('-', "_");
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    Ok(found.map(|(_, text)| (*text).to_owned()).unwrap_or_default())
}

/// A key of the generated page.
struct Entry<'a> {
    key: &'a str,
    /// In TOML; none if it is unset.
    default: Option<&'a str>,
    /// Meaning, and the accepted values of a choice.
    text: &'a str,
}

/// Entries: a heading with the key, a line with the default, the meaning.
fn entries() -> impl Iterator<Item = Entry<'static>> {
    KEYS.split("\n### `").skip(1).filter_map(|part| {
        let part = part.split("\n## ").next()?;
        let (key, rest) = part.split_once("`\n\nDefault: ")?;
        let (default, text) = rest.split_once('\n')?;
        let default = default.strip_prefix('`').and_then(|default| default.strip_suffix('`'));
        Some(Entry { key, default, text: text.trim() })
    })
}

/// The entries of `wanted`, a key or a section.
fn keys(wanted: Option<&str>, json: bool) -> Result<String, Failure> {
    let section = wanted.map(|name| format!("{}.", name.trim_end_matches('.')));
    let fits = |entry: &Entry<'_>| match (wanted, &section) {
        (Some(name), Some(section)) => entry.key == name || entry.key.starts_with(section),
        _ => true,
    };
    let found: Vec<Entry<'_>> = entries().filter(fits).collect();
    if let (Some(name), true) = (wanted, found.is_empty()) {
        return Err(unknown(name));
    }
    if json {
        let object =
            |entry: &Entry<'_>| json!({"key": entry.key, "default": entry.default, "text": entry.text});
        return Ok(format!("{:#}", json!(found.iter().map(object).collect::<Vec<_>>())));
    }
    let paragraph = |entry: &Entry<'_>| {
        let text = entry.text.replace('\n', "\n    ");
        format!(
            "{} = {}\n    {}\n",
            entry.key,
            entry.default.unwrap_or("(unset)"),
            text.replace("\n    \n", "\n")
        )
    };
    Ok(found.iter().map(paragraph).collect())
}

fn unknown(name: &str) -> Failure {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let close: Vec<&str> = entries()
        .map(|entry| entry.key)
        .filter(|key| last(key).contains(&last(name)) || last(name).contains(&last(key)))
        .take(4)
        .collect();
    let hint = (!close.is_empty()).then(|| format!("did you mean {}?", close.join(", ")));
    Failure::user(format!("unknown key `{name}`"), hint)
}
