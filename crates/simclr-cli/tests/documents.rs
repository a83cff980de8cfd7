//! The documentation: `docs/commands.md` is the help of the binary (`UPDATE=1 cargo test --test documents` writes it), every page is a
//! chapter of the book, links lead somewhere, and the commands, flags and keys of all documents exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/markdown.rs"]
mod markdown;
#[path = "support/source_files.rs"]
mod source_files;

use fs_err as fs;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use markdown::{anchors, blocks, commands, links, prose, spans};
use source_files::{files_below, root};

const PAGE: &str = "docs/commands.md";
/// Flags of every command, listed once on the page.
const OF_ALL: [&str; 2] = ["--trust-encoder-file", "-h, --help"];
/// Languages of blocks with commands. `sh` blocks of tutorials are run by `tutorials.rs`, `bash` blocks need what a test has not.
const SHELLS: [&str; 2] = ["sh", "bash"];

/// Documents at the root of the repository and below `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = files_below(&root().join("docs"), &["md"]);
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
    found.extend(names.map(|name| root().join(name)));
    found
}

/// `file:line`, as a message names it.
fn place(file: &Path, line: usize) -> String {
    format!("{}:{line}", file.strip_prefix(root()).unwrap().display())
}

/// Help in lines of 100 characters.
fn help(command: &[&str]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_simclr"));
    let output = program.args(command).arg("--help").env("NO_COLOR", "1").env_remove("COLUMNS").output();
    let output = output.expect("the binary starts");
    assert!(output.status.success(), "{command:?} --help: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n").trim_end().to_owned()
}

/// Names in the section "Commands:" of the help.
fn names_of_commands(help: &str) -> Vec<String> {
    let section = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let is_name = |line: &&str| line.len() > 2 && line.as_bytes()[2].is_ascii_lowercase();
    let names = section.lines().filter(is_name).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Whether the description of a flag starts in this line of a help.
fn is_option(line: &str) -> bool {
    line.len() - line.trim_start().len() < 8 && line.trim_start().starts_with('-')
}

/// The help without [`OF_ALL`].
fn own_flags(help: &str) -> String {
    let (mut text, mut skipped) = (String::new(), false);
    for line in help.lines() {
        if is_option(line) {
            skipped = OF_ALL.iter().any(|flag| line.trim_start().starts_with(flag));
        } else if !line.is_empty() && !line.starts_with(' ') {
            skipped = false;
        }
        if !skipped {
            text += line;
            text.push('\n');
        }
    }
    text.trim_end().trim_end_matches("Options:").trim_end().to_owned()
}

fn page() -> String {
    let all = help(&[]);
    let mut page = format!(
        "# Commands\n\nEvery command with its flags, as `simclr COMMAND --help` prints them; flags of all commands are listed here only. \
         Generated from the help of the binary by `crates/simclr-cli/tests/documents.rs`.\n\n```text\n{all}\n```\n"
    );
    for name in names_of_commands(&all) {
        write!(page, "\n## simclr {name}\n\n```text\n{}\n```\n", own_flags(&help(&[&name[..]]))).unwrap();
    }
    page
}

#[test]
fn the_page_of_commands_is_the_help_of_the_binary() {
    let page = page();
    let file = root().join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == page, "{PAGE} is not the help of the binary: UPDATE=1 cargo test --test documents");
}

/// Flags of all commands, and of each command its own, from [`PAGE`].
fn flags_of_page() -> (Vec<String>, Vec<(String, Vec<String>)>) {
    let text = fs::read_to_string(root().join(PAGE)).unwrap();
    let mut sections = text.split("\n## simclr ");
    let of_all = flags_of(sections.next().unwrap());
    let of_one = |section: &str| (section.lines().next().unwrap().to_owned(), flags_of(section));
    (of_all, sections.map(of_one).collect())
}

/// Flags that each command accepts.
fn flags() -> BTreeMap<String, BTreeSet<String>> {
    let (of_all, of_each) = flags_of_page();
    let accepted = |own: Vec<String>| own.into_iter().chain(of_all.clone()).collect();
    of_each.into_iter().map(|(name, own)| (name, accepted(own))).collect()
}

/// Flags that the lines of a help describe, and their aliases.
fn flags_of(help: &str) -> Vec<String> {
    let is_alias = |line: &&str| line.trim_start().starts_with("[alias");
    let lines = help.lines().filter(|line| is_option(line) || is_alias(line));
    let is_end = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | '[');
    let words = lines.flat_map(|line| line.split(is_end)).filter(|word| word.starts_with("--"));
    words.map(|word| word.trim_end_matches('.').to_owned()).collect()
}

#[test]
fn no_command_has_a_flag_twice() {
    let (_, of_each) = flags_of_page();
    assert!(of_each.len() > 15, "{of_each:?}");
    for (name, mut own) in of_each {
        own.sort();
        let twice = own.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "simclr {name}");
    }
}

#[test]
fn every_page_is_a_chapter() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut chapters: Vec<PathBuf> =
        prose(&summary).iter().flat_map(|(_, line)| links(line)).map(|link| docs.join(link)).collect();
    chapters.sort();
    let pages = files_below(&docs, &["md"]).into_iter().filter(|file| !file.ends_with("SUMMARY.md"));
    assert_eq!(chapters, pages.collect::<Vec<_>>(), "docs/SUMMARY.md must list each page below docs once");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut checked = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (line, link) in prose(&text)
            .into_iter()
            .flat_map(|(at, line)| links(line).into_iter().map(move |link| (at, link)))
        {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let place = place(&file, line);
            let (path, anchor) = link.split_once('#').unwrap_or((&link[..], ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(target.exists(), "{place}: `{link}` leads nowhere");
            let target = target.canonicalize().unwrap();
            // The book consists of what is below `docs`.
            let docs = root().join("docs");
            assert!(
                !file.starts_with(&docs) || target.starts_with(&docs),
                "{place}: `{link}` leads out of the book: name a file elsewhere as `path`"
            );
            assert!(
                anchor.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(&anchor.to_owned()),
                "{place}: `{link}`: no such heading"
            );
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links");
}

/// Keys of the configuration and of `[eval]`, from the generated page.
fn keys() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let titles = text.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    titles.map(str::to_owned).collect()
}

/// `a.b.c` is a key, part of one (`augment.second_view.color`), or in capitals as a placeholder.
fn is_key(key: &str, keys: &BTreeSet<String>) -> bool {
    let is_part = || keys.iter().any(|known| key.starts_with(&format!("{known}.")));
    keys.contains(key) || is_part() || key.contains(|c: char| c.is_ascii_uppercase())
}

/// What is wrong with the words behind `simclr`.
fn fault(
    words: &[String],
    flags: &BTreeMap<String, BTreeSet<String>>,
    keys: &BTreeSet<String>,
) -> Option<String> {
    let name = words.first()?;
    let is_placeholder = |word: &str| word.starts_with(['$', '-', '.']) || word == word.to_uppercase();
    if is_placeholder(name) {
        return None;
    }
    let Some(own) = flags.get(name) else { return Some(format!("no command `{name}`")) };
    // The command that `launch` starts has flags of its own.
    let started = words.iter().skip(1).position(|word| name == "launch" && flags.contains_key(word));
    let end = started.map_or(words.len(), |at| at + 1);
    let mut setting = false;
    for word in &words[1..end] {
        let word = word.trim_matches(['[', ']', '(', ')']);
        let (flag, value) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
        if flag.starts_with("--") && flag.len() > 2 {
            if !own.contains(flag) {
                return Some(format!("`simclr {name}` has no flag `{flag}`"));
            }
            setting = flag == "--set";
            let key = value.filter(|_| setting).and_then(|value| value.split('=').next());
            if let Some(key) = key.filter(|key| !is_key(key, keys)) {
                return Some(format!("no key `{key}`"));
            }
        } else if setting && value.is_some() && !is_key(flag, keys) {
            return Some(format!("no key `{flag}`"));
        } else {
            setting &= value.is_some();
        }
    }
    let recipe = words.iter().position(|word| word == "--recipe").and_then(|at| words.get(at + 1));
    let file = |name: &String| root().join("configs").join(name.replace('-', "_") + ".toml");
    if let Some(recipe) = recipe.filter(|name| !is_placeholder(name) && !file(name).exists()) {
        return Some(format!("no recipe `{recipe}`"));
    }
    fault(&words[end..], flags, keys)
}

#[test]
fn commands_flags_and_keys_of_documents_exist() {
    let (flags, keys) = (flags(), keys());
    assert!(keys.len() > 100, "{} keys", keys.len());
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for file in documents().iter().filter(|file| !file.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(file).unwrap();
        let mut found: Vec<(usize, Vec<String>)> = Vec::new();
        for block in blocks(&text).iter().filter(|block| SHELLS.contains(&&block.language[..])) {
            found.extend(commands(&block.text).into_iter().map(|words| (block.line, words)));
        }
        for (at, line) in prose(&text) {
            let of_prose = spans(line).into_iter().filter(|span| span.starts_with("simclr "));
            found.extend(of_prose.flat_map(commands).map(|words| (at, words)));
        }
        checked += found.len();
        let faults = found.iter().filter_map(|(line, words)| {
            Some(format!("{}: {}", place(file, *line), fault(words, &flags, &keys)?))
        });
        wrong.extend(faults);
        wrong.extend(unknown_keys_of_toml(file, &text, &keys));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 100, "{checked} commands");
}

/// Keys in the TOML blocks of a document that are none of the configuration.
fn unknown_keys_of_toml(file: &Path, text: &str, keys: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for block in blocks(text).iter().filter(|block| block.language == "toml") {
        let place = place(file, block.line);
        let table: toml::Table = block.text.parse().unwrap_or_else(|error| panic!("{place}: {error}"));
        let mut open: Vec<(String, toml::Value)> = table.into_iter().collect();
        while let Some((path, value)) = open.pop() {
            match value {
                toml::Value::Table(table) => {
                    open.extend(table.into_iter().map(|(key, value)| (format!("{path}.{key}"), value)));
                }
                _ if !is_key(&path, keys) => wrong.push(format!("{place}: no key `{path}`")),
                _ => {}
            }
        }
    }
    wrong
}

#[test]
fn commands_and_links_are_found_in_markdown() {
    let text = "# A `b.c`: d\n## x\n## x\n```sh\nmpirun -n 2 target/release/simclr doctor \\\n  --set a.b=1 c.d='2 3' # e\nls; simclr man m\n```\n[l](p#q) `[0](1)`\n";
    assert_eq!(anchors(text), ["a-bc-d", "x", "x-1"]);
    assert_eq!(links(prose(text).last().unwrap().1), ["p#q"]);
    let found = commands(&blocks(text)[0].text);
    assert_eq!(found, [vec!["doctor", "--set", "a.b=1", "c.d=2 3"], vec!["man", "m"]]);
    let flags = BTreeMap::from([("doctor".to_owned(), BTreeSet::from(["--set".to_owned()]))]);
    let keys = BTreeSet::from(["a.b".to_owned()]);
    let fault = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        fault(&words, &flags, &keys)
    };
    assert_eq!(fault(&["doctor", "--set", "a.b=1", "a.b.c=2", "SECTION.KEY=3"]), None);
    assert_eq!(fault(&["doctor", "--set", "a.b=1", "c.d=2"]).unwrap(), "no key `c.d`");
    assert_eq!(fault(&["doctor", "--set=c.d=2"]).unwrap(), "no key `c.d`");
    assert_eq!(fault(&["doctor", "--sett"]).unwrap(), "`simclr doctor` has no flag `--sett`");
    assert_eq!(
        fault(&["doctor", "--set", "a.b=1", "--recipe", "x"]).unwrap(),
        "`simclr doctor` has no flag `--recipe`"
    );
    assert_eq!(fault(&["docter"]).unwrap(), "no command `docter`");
}
