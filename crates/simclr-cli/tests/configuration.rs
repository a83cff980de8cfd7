//! `docs/configuration.md`, which `simclr config` prints: every key with its default and its doc comment in the source.
//! `UPDATE=1 cargo test --test configuration` writes it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/source_files.rs"]
mod source_files;

use std::{collections::BTreeMap, fmt::Write};

use simclr::{RunConfig, eval::KEYS};
use source_files::{files_below, root};
use toml::{Table, Value};

const PAGE: &str = "docs/configuration.md";
/// Words by which serde writes the variants of an enum.
const KEBAB: &str = "rename_all = \"kebab-case\"";

/// A struct or enum of the source: (field or variant, type, doc).
#[derive(Default)]
struct Definition {
    kebab: bool,
    items: Vec<(String, String, String)>,
}

/// All public structs and enums of the libraries by name.
fn definitions() -> BTreeMap<String, Definition> {
    let mut found = BTreeMap::new();
    for folder in ["crates/simclr-data/src", "crates/simclr/src"] {
        for file in files_below(&root().join(folder), &["rs"]) {
            read(&fs_err::read_to_string(file).unwrap(), &mut found);
        }
    }
    found
}

fn read(text: &str, found: &mut BTreeMap<String, Definition>) {
    let (mut doc, mut kebab, mut open) = (String::new(), false, None::<(String, Definition)>);
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix("///") {
            let _ = write!(doc, "{}{}", if doc.is_empty() { "" } else { " " }, comment.trim());
        } else if trimmed.starts_with("#[") {
            kebab |= trimmed.contains(KEBAB);
        } else if line == "}" {
            found.extend(open.take());
            doc.clear();
        } else if let Some((_, definition)) = &mut open {
            let item = trimmed.trim_start_matches("pub ").trim_end_matches(',');
            let (name, kind) = item.split_once(": ").unwrap_or((item, ""));
            definition.items.push((name.to_owned(), kind.to_owned(), std::mem::take(&mut doc)));
        } else {
            let name = ["pub struct ", "pub enum "].iter().find_map(|start| line.strip_prefix(start));
            if let Some(name) = name.and_then(|name| name.strip_suffix(" {")) {
                let definition = Definition { kebab, items: Vec::new() };
                open = Some((name.to_owned(), definition));
            }
            (doc, kebab) = (String::new(), false);
        }
    }
}

/// `KebabCase` as `kebab-case`, as serde does.
fn kebab(name: &str) -> String {
    let dashed = name.chars().enumerate().map(|(at, c)| match c {
        c if c.is_ascii_uppercase() && at > 0 => format!("-{}", c.to_ascii_lowercase()),
        c => c.to_ascii_lowercase().to_string(),
    });
    dashed.collect()
}

/// Without links of rustdoc.
fn plain(doc: &str) -> String {
    doc.replace("[`", "`").replace("`]", "`")
}

fn default_of(key: &str, default: &Table) -> String {
    let (section, name) = key.split_once('.').unwrap();
    let value = default.get(section).and_then(|section| section.get(name));
    value.map_or("unset".to_owned(), |value| format!("`{}`", short(value)))
}

/// An `f32` with its own digits.
fn short(value: &Value) -> String {
    match value {
        Value::Float(number) => {
            let single = *number as f32;
            let is_single = f64::from(single).to_bits() == number.to_bits();
            if is_single {
                Value::Float(single.to_string().parse().unwrap()).to_string()
            } else {
                value.to_string()
            }
        }
        Value::Array(items) => format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn page() -> String {
    let definitions = definitions();
    let default = Value::try_from(RunConfig::default()).unwrap();
    let mut page = "# Configuration\n\nEvery key, its default and its meaning, as `simclr config` prints them. Generated from the doc \
                    comments in the source by `crates/simclr-cli/tests/configuration.rs`.\n"
        .to_owned();
    for (section, kind, doc) in &definitions["RunConfig"].items {
        write!(page, "\n## `[{section}]`\n\n{}\n", plain(doc)).unwrap();
        for (key, kind, doc) in &definitions[kind].items {
            let name = format!("{section}.{key}");
            let default = default_of(&name, default.as_table().unwrap());
            assert!(!doc.is_empty(), "{name} has no doc comment");
            write!(page, "\n### `{name}`\n\nDefault: {default}\n\n{}\n", plain(doc)).unwrap();
            write!(page, "{}", values(kind, &definitions)).unwrap();
        }
    }
    page += "\n## `[eval]`\n\nOptions of `simclr evaluate`.\n";
    for key in &KEYS {
        let default = key.default_value().map_or("unset".to_owned(), |default| format!("`{default}`"));
        write!(page, "\n### `{}`\n\nDefault: {default}\n\n{}\n", key.name, key.help).unwrap();
    }
    page
}

/// The variants of a key that is a choice.
fn values(kind: &str, definitions: &BTreeMap<String, Definition>) -> String {
    let Some(choice) = definitions.get(kind).filter(|choice| choice.kebab) else { return String::new() };
    let line = |(name, _, doc): &(String, String, String)| format!("- `{}`: {}\n", kebab(name), plain(doc));
    let is_unit = |(name, kind, _): &&(String, String, String)| {
        kind.is_empty() && name.chars().all(char::is_alphanumeric)
    };
    let lines: String = choice.items.iter().filter(is_unit).map(line).collect();
    format!("\n{lines}")
}

#[test]
fn the_page_of_keys_is_that_of_the_source() {
    let page = page();
    let file = root().join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        fs_err::write(&file, &page).unwrap();
    }
    let committed = fs_err::read_to_string(&file).unwrap_or_default();
    assert!(committed == page, "{PAGE} is not that of the source: UPDATE=1 cargo test --test configuration");
}

/// Every key that a configuration may have is on the page, with the default that it has.
#[test]
fn the_page_lists_every_key() {
    let page = page();
    let default = Value::try_from(RunConfig::default()).unwrap();
    for (section, keys) in default.as_table().unwrap() {
        for key in keys.as_table().unwrap().keys() {
            assert!(page.contains(&format!("\n### `{section}.{key}`\n\nDefault: `")), "{section}.{key}");
        }
    }
    assert!(page.contains("### `task.init_from`\n\nDefault: unset"));
    assert!(page.contains("- `full-batches`: floor(n / B) steps per epoch"));
}
