//! Claims of ARCHITECTURE.md and docs/glossary.md that a program can check: module order, import cycles, sizes, the two walks, and
//! words to avoid.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/source_files.rs"]
mod source_files;

use fs_err as fs;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use source_files::{all_files, files_below, root};

/// Lines of a source file or of a test file.
const MAX_FILE_LINES: usize = 450;
/// Median and 90th percentile of the lines of a function.
const MAX_FUNCTION_LINES: [usize; 2] = [7, 21];
/// Files on the walk of an image from the listing to the encoder, and on the walk of one update.
const MAX_WALKS: [usize; 2] = [20, 6];
const CRATES: [&str; 4] = ["simclr-data", "simclr-shim", "simclr", "simclr-cli"];

/// The text without its unit tests and without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// Paths of `use` declarations and of inline paths that start at `prefix`, with `{}` groups expanded.
fn paths(text: &str, prefix: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        if !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            expand(&text[at + prefix.len()..], &[], &mut found);
        }
    }
    found
}

/// Adds the paths of the use tree at the start of `text` and returns its length.
fn expand(text: &str, before: &[String], found: &mut BTreeSet<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        let word: String =
            text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect();
        at += word.len();
        if word.is_empty() && text[at..].starts_with('{') {
            at += 1;
            while !text[at..].starts_with('}') {
                let begin = at;
                at += expand(&text[at..], &path, found);
                at += text[at..].len() - text[at..].trim_start_matches([',', ' ', '\n']).len();
                assert!(at > begin, "a use tree without an end: {}", &text[..at]);
            }
            return at + 1;
        }
        path.push(word);
        match text[at..].strip_prefix("::") {
            Some(_) => at += 2,
            None => break,
        }
    }
    found.insert(path);
    if let Some(rest) = text[at..].strip_prefix(" as ") {
        at += 4 + rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').count();
    }
    at
}

/// The child of module `parent` that each of its children imports, as edges (importer, imported).
fn sibling_imports(source: &Path, parent: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let folder = parent.iter().fold(source.to_owned(), |path, part| path.join(part));
    let children: BTreeSet<String> = children(&folder);
    let mut edges = BTreeMap::new();
    for child in &children {
        let own = [folder.join(format!("{child}.rs")), folder.join(child)];
        let own = own.iter().filter(|path| path.exists());
        let own =
            own.flat_map(|path| if path.is_dir() { all_files(path, &["rs"]) } else { vec![path.clone()] });
        let imported = own.flat_map(|file| imports(&file, source, parent));
        let imported = imported.filter(|name| name != child && children.contains(name)).collect();
        edges.insert(child.clone(), imported);
    }
    edges
}

fn children(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let modules =
        entries.filter(|path| path.join("mod.rs").exists() || path.extension().is_some_and(|e| e == "rs"));
    let names = modules.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    names.filter(|name| !["mod", "lib", "main", "tests"].contains(&name.as_str())).collect()
}

/// Names below module `parent` that `file` refers to.
fn imports(file: &Path, source: &Path, parent: &[String]) -> BTreeSet<String> {
    let text = code(file);
    let mut found = BTreeSet::new();
    let exports = exports(source);
    for mut path in paths(&text, "crate::") {
        if let Some(module) = exports.get(&path[0]) {
            path.insert(0, module.clone());
        }
        if path.starts_with(parent) {
            found.extend(path.get(parent.len()).cloned());
        }
    }
    let module = file.strip_prefix(source).unwrap().with_extension("");
    let mut module: Vec<String> = module.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    for path in paths(&text, "super::") {
        let ups = 1 + path.iter().take_while(|part| *part == "super").count();
        let Some(depth) = module.len().checked_sub(ups) else { continue };
        let full: Vec<String> = module[..depth].iter().chain(path.iter().skip(ups - 1)).cloned().collect();
        if full.starts_with(parent) {
            found.extend(full.get(parent.len()).cloned());
        }
    }
    found
}

/// Names that `lib.rs` exports from a module, and that module.
fn exports(source: &Path) -> BTreeMap<String, String> {
    let file = source.join("lib.rs");
    let text = if file.exists() { code(&file) } else { String::new() };
    let exported = paths(&text, "pub use ").into_iter().filter(|path| path.len() == 2);
    exported.map(|path| (path[1].clone(), path[0].clone())).collect()
}

/// A cycle of `edges`, if there is one.
fn cycle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left = edges.clone();
    loop {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, imported)| imported.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| name.clone())
            .collect();
        if free.is_empty() {
            return (!left.is_empty()).then(|| left.into_keys().collect());
        }
        left.retain(|name, _| !free.contains(name));
    }
}

fn folders(source: &Path, parent: &[String]) -> Vec<Vec<String>> {
    let folder = parent.iter().fold(source.to_owned(), |path, part| path.join(part));
    let mut found = vec![parent.to_vec()];
    for child in children(&folder).into_iter().filter(|child| folder.join(child).is_dir()) {
        let child: Vec<String> = parent.iter().cloned().chain([child]).collect();
        found.extend(folders(source, &child));
    }
    found
}

#[test]
fn modules_of_a_folder_import_each_other_without_a_cycle() {
    let mut found = Vec::new();
    for name in CRATES {
        let source = root().join("crates").join(name).join("src");
        for folder in folders(&source, &[]) {
            let cycle = cycle(&sibling_imports(&source, &folder));
            found.extend(
                cycle.map(|modules| format!("{name}::{}: {}", folder.join("::"), modules.join(", "))),
            );
        }
    }
    assert!(found.is_empty(), "import cycles:\n{}", found.join("\n"));
}

#[test]
fn a_cycle_is_found() {
    let edges = |list: &[(&str, &[&str])]| {
        let name = |text: &&str| (*text).to_owned();
        list.iter().map(|(from, to)| (name(from), to.iter().map(name).collect())).collect()
    };
    assert_eq!(cycle(&edges(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])), None);
    assert_eq!(cycle(&edges(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])])).unwrap(), ["a", "b", "c"]);
    let tree = paths("use crate::{a::{self, b}, c as d, e::f};\ncrate::g::h(1)", "crate::");
    let tree: Vec<String> = tree.iter().map(|path| path.join("::")).collect();
    assert_eq!(tree, ["a::b", "a::self", "c", "e::f", "g::h"]);
}

/// `lib.rs` declares a module after those that it imports: the order in which an image or a batch passes through.
#[test]
fn libraries_declare_modules_in_the_order_of_their_imports() {
    for name in ["simclr-data", "simclr"] {
        let source = root().join("crates").join(name).join("src");
        let text = fs::read_to_string(source.join("lib.rs")).unwrap();
        let declared = text.lines().filter_map(|line| {
            let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            line.strip_prefix("mod ")?.split(';').next().map(str::to_owned)
        });
        let declared: Vec<String> = declared.collect();
        assert!(declared.len() > 5, "{name}: {declared:?}");
        let imports = sibling_imports(&source, &[]);
        for (at, module) in declared.iter().enumerate() {
            let later = imports[module].iter().find(|imported| declared[at..].contains(imported));
            assert_eq!(later, None, "{name}: `{module}` is declared before a module that it imports");
        }
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut functions = Vec::new();
    for name in CRATES {
        for file in files_below(&root().join("crates").join(name), &["rs", "cpp", "cu", "h"]) {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().count();
            assert!(lines <= MAX_FILE_LINES, "{}: {lines} lines, at most {MAX_FILE_LINES}", file.display());
            if file.extension().is_some_and(|e| e == "rs") && file.iter().any(|part| part == "src") {
                functions.extend(function_lines(&text));
            }
        }
    }
    functions.sort_unstable();
    let found = [functions[functions.len() / 2], functions[functions.len() * 9 / 10]];
    assert!(functions.len() > 1000 && found <= MAX_FUNCTION_LINES, "median and 90th percentile {found:?}");
}

/// Lines of every function with a body, from its signature to its closing brace, as rustfmt indents them.
fn function_lines(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let is_function = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| *word != "fn").collect();
        let modifiers = words.iter().all(|word| {
            ["const", "unsafe", "async", "extern", "\"C\""].contains(word) || word.starts_with("pub")
        });
        modifiers && line.split_whitespace().any(|word| word == "fn")
    };
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
        let indent = line.len() - line.trim_start().len();
        let is_end = |line: &&str| {
            line.len() > indent && line[indent..].starts_with('}') && line[..indent].trim().is_empty()
        };
        let is_declaration =
            |line: &&str| line.trim_end().ends_with(';') && line.len() - line.trim_start().len() == indent;
        if line.ends_with('}') {
            found.push(1);
        } else if let Some(length) = lines[at..]
            .iter()
            .position(|line| is_end(line) || is_declaration(line))
            .filter(|length| is_end(&lines[at + length]))
        {
            found.push(length + 1);
        }
    }
    found
}

#[test]
fn function_lines_are_counted() {
    let text = "fn a() {}\npub fn b(\n    x: i64,\n) -> i64 {\n    x\n}\ntrait T {\n    fn c(&self);\n    fn d() {\n        e();\n    }\n}\n";
    assert_eq!(function_lines(text), [1, 5, 3]);
}

/// Files of the numbered rows below `heading`.
fn walk(text: &str, heading: &str) -> Vec<String> {
    let section = text.split(heading).nth(1).unwrap_or_else(|| panic!("ARCHITECTURE.md has no `{heading}`"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    quoted.filter(|word| word.starts_with("crates/")).map(str::to_owned).collect()
}

#[test]
fn the_walks_are_short_and_enter_no_file_twice() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (heading, most) in ["## The walk of an image", "## The walk of an update"].into_iter().zip(MAX_WALKS)
    {
        let files = walk(&text, heading);
        let distinct: BTreeSet<&String> = files.iter().collect();
        assert_eq!(files.len(), distinct.len(), "{heading}: a file is entered twice");
        assert!((3..=most).contains(&files.len()), "{heading}: {} files, at most {most}", files.len());
    }
}

/// First column of the last table of the glossary.
fn words_to_avoid() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let table = text.split("## Words to avoid").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).skip(1);
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split(',')).map(|word| word.trim().to_owned()).collect()
}

fn contains_word(line: &str, word: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric();
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_letter) && !line[at + word.len()..].starts_with(is_letter))
}

#[test]
fn words_to_avoid_are_avoided() {
    let words = words_to_avoid();
    assert!(words.len() > 10, "{words:?}");
    let kinds = ["rs", "cpp", "cu", "h", "md", "toml", "py", "sh", "yaml"];
    let folders = ["crates", "docs", "bench", "reference", "configs", "setup"];
    let mut all: Vec<PathBuf> =
        folders.iter().flat_map(|name| files_below(&root().join(name), &kinds)).collect();
    all.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Makefile"].map(|name| root().join(name)));
    let own = ["docs/glossary.md", "crates/simclr-cli/tests/architecture.rs"].map(|name| root().join(name));
    let mut found = Vec::new();
    for file in all.iter().filter(|file| !own.contains(file)) {
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            let lower = line.to_lowercase().replace('_', " ");
            if let Some(word) = words.iter().find(|word| contains_word(&lower, word)) {
                let place = file.strip_prefix(root()).unwrap().display();
                found.push(format!("{place}:{}: `{word}`: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{} lines:\n{}", found.len(), found.join("\n"));
}
