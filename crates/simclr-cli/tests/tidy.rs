//! The rules of the house that a program can check: paths named in documents exist, rooms import only what they may,
//! libraries do not print, recipes say what they are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/source_files.rs"]
mod source_files;

use fs_err as fs;
use std::collections::BTreeSet;

use source_files::{files_below, root};

/// Links are checked in `documents.rs`.
#[test]
fn documents_name_only_paths_that_exist() {
    let of_root = ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    let of_docs = files_below(&root().join("docs"), &["md"]);
    for document in of_root.iter().chain(&of_docs) {
        let text = fs::read_to_string(document).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let is_path = |word: &&str| {
            ["crates/", "reference/", "configs/", "bench/", "setup/", "docs/", "containers/"]
                .iter()
                .any(|start| word.starts_with(start))
                && !word.contains(['<', '*', ' '])
        };
        let mut checked = 0;
        for path in quoted.filter(is_path) {
            assert!(
                root().join(path).exists(),
                "{} names `{path}`, which does not exist",
                document.display()
            );
            checked += 1;
        }
        assert!(checked > 0 || !of_root.contains(document), "{} names no path at all", document.display());
    }
}

/// Which module of `simclr` may import which. `error` and `data` may be imported by all; `lib.rs` by none.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("html", &[]),
    ("picture", &[]),
    ("device", &[]),
    ("views", &["device"]),
    ("params", &[]),
    ("encoder", &["device", "params"]),
    ("head", &["device", "encoder", "params"]),
    ("task", &[]),
    ("model", &["device", "encoder", "head", "params", "task"]),
    ("losses", &[]),
    ("health", &["losses"]),
    ("dist", &["encoder", "losses", "params"]),
    ("optim", &["device", "params"]),
    ("config", &["device", "encoder", "head", "losses", "task", "optim", "dist", "views"]),
    ("methods", &["encoder", "head", "losses", "model", "params", "task"]),
    ("exec", &["dist", "encoder", "methods", "model", "losses", "optim", "views"]),
    ("checkpoint", &[]),
    ("weights", &["checkpoint", "config", "model"]),
    ("tensor_bundle", &[]),
    ("knn", &[]),
    (
        "train",
        &[
            "checkpoint",
            "config",
            "device",
            "encoder",
            "exec",
            "health",
            "knn",
            "methods",
            "model",
            "losses",
            "optim",
            "params",
            "dist",
            "task",
            "views",
            "weights",
        ],
    ),
    (
        "eval",
        &[
            "checkpoint",
            "config",
            "device",
            "dist",
            "encoder",
            "head",
            "knn",
            "model",
            "optim",
            "params",
            "picture",
            "task",
            "tensor_bundle",
            "train",
            "weights",
        ],
    ),
    (
        "export",
        &[
            "checkpoint",
            "config",
            "device",
            "encoder",
            "eval",
            "explore",
            "head",
            "model",
            "params",
            "tensor_bundle",
            "train",
            "weights",
        ],
    ),
    ("explore", &["device", "eval", "knn", "train"]),
    ("report", &["eval", "explore", "html", "picture", "train"]),
    (
        "study",
        &[
            "checkpoint",
            "config",
            "device",
            "dist",
            "encoder",
            "eval",
            "explore",
            "health",
            "html",
            "knn",
            "losses",
            "model",
            "optim",
            "params",
            "picture",
            "task",
            "train",
        ],
    ),
];

#[test]
fn modules_import_only_what_they_may() {
    let source = root().join("crates/simclr/src");
    for file in files_below(&source, &["rs"]) {
        let relative = file.strip_prefix(&source).unwrap();
        let room = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if room == "lib" || file.ends_with("tests.rs") {
            continue;
        }
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == room);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("room `{room}` is not in the table"));
        for imported in imports(&fs::read_to_string(&file).unwrap()) {
            let fine = imported == room || imported == "error" || allowed.contains(&imported.as_str());
            assert!(fine, "{} imports crate::{imported}, which the table does not allow", relative.display());
        }
    }
}

/// First path segments after `crate::`, in `use` trees and in expressions; names that start upper case are re-exports.
fn imports(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].rsplit('\n').next().unwrap_or_default();
        if before.trim_start().starts_with("//") || before.ends_with("$") {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(tree) => found.extend(top_level_names(tree)),
            None => {
                found.extend(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned))
            }
        }
    }
    found.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

fn top_level_names(tree: &str) -> Vec<String> {
    let (mut depth, mut names, mut word) = (0, Vec::new(), String::new());
    for c in tree.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut word)),
            c if depth == 0 => word.push(c),
            _ => {}
        }
    }
    names.push(word);
    names.iter().map(|name| name.trim().split("::").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn libraries_never_print_or_exit() {
    for library in ["crates/simclr-data/src", "crates/simclr/src", "crates/simclr-shim/src"] {
        for file in files_below(&root().join(library), &["rs"]) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for banned in
                ["println!", "eprintln!", "process::exit", "std::env::args", "todo!(", "unimplemented!("]
            {
                assert!(!code.contains(banned), "{} uses {banned}", file.display());
            }
        }
    }
}

/// `println!` and its like panic where the stream cannot be written, so one module writes to both streams.
#[test]
fn only_one_module_writes_to_the_terminal() {
    let source = root().join("crates/simclr-cli/src");
    for file in files_below(&source, &["rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        let own = file.ends_with("terminal.rs");
        for banned in ["println!", "print!", "dbg!", "clippy::print_", "clap::Parser::parse", "::parse()."] {
            assert!(!text.contains(banned), "{} uses {banned}", file.display());
        }
        for banned in ["io::stdout", "io::stderr", "/dev/std"] {
            assert!(own || !text.contains(banned), "{} uses {banned}", file.display());
        }
    }
}

#[test]
fn no_file_is_a_grab_bag() {
    for file in files_below(&root().join("crates"), &["rs"]) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(!["utils", "util", "common", "helpers", "misc"].contains(&name), "{}", file.display());
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.trim_start().starts_with("//!"), "{} does not open with what it is for", file.display());
    }
}

#[test]
fn every_recipe_states_source_command_time_and_result() {
    for file in files_below(&root().join("configs"), &["toml"]) {
        let text = fs::read_to_string(&file).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        for wanted in ["Source:", "Command:", "Time:", "Expected:"] {
            assert!(header.contains(wanted), "{}: the header lacks `{wanted}`", file.display());
        }
    }
}
