//! The tutorials of `docs/tutorials`: their `sh` blocks run in order, in an empty folder with small synthetic images.
//!
//! A comment in the page says what differs from a reader's machine. `make KIND FOLDER COUNT` makes images
//! (`support/synthetic.rs`), `replace A => B` makes a command quick; a replacement without effect is an error. Files that the text names
//! below `runs/` or by the extension of an output must exist in the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/markdown.rs"]
mod markdown;
#[path = "support/source_files.rs"]
mod source_files;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::{path::Path, process::Command};

use markdown::{blocks, prose, spans};
use source_files::{files_below, root};

const TUTORIALS: &str = "docs/tutorials";
/// Extensions of files that a tutorial makes.
const OUTPUTS: [&str; 12] =
    ["csv", "html", "json", "jsonl", "npy", "onnx", "parquet", "png", "safetensors", "sh", "svg", "toml"];
/// Folders of the repository.
const OF_REPOSITORY: [&str; 6] = ["bench/", "configs/", "crates/", "docs/", "reference/", "setup/"];

/// Lines of the comments `<!-- test ... -->`.
fn rules(text: &str) -> Vec<&str> {
    let comments = text.split("<!-- test\n").skip(1);
    comments.flat_map(|rest| rest.split("-->").next().unwrap_or_default().lines()).collect()
}

/// Files that the text says there are.
fn outputs(text: &str) -> Vec<String> {
    let is_output = |span: &&str| {
        let named = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c));
        let kind = Path::new(span).extension().and_then(|extension| extension.to_str());
        let made = span.starts_with("runs/") || kind.is_some_and(|kind| OUTPUTS.contains(&kind));
        named && made && !OF_REPOSITORY.iter().any(|folder| span.starts_with(folder))
    };
    prose(text).iter().flat_map(|(_, line)| spans(line)).filter(is_output).map(str::to_owned).collect()
}

/// The commands of a block as the test runs them.
fn quick(block: &str, rules: &[&str], used: &mut [bool]) -> String {
    let mut script = block.to_owned();
    for (rule, used) in rules.iter().zip(used) {
        let Some((from, to)) = rule.strip_prefix("replace ").and_then(|rule| rule.split_once(" => ")) else {
            continue;
        };
        *used |= script.contains(from);
        script = script.replace(from, to);
    }
    script
}

/// Runs a script; `what` names it in messages.
fn run(script: &str, folder: &Path, what: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", folder.join(".bin").display());
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script]).current_dir(folder).env("PATH", path).env("NO_COLOR", "1");
    let output = shell.output().unwrap();
    assert!(
        output.status.success(),
        "{what}: {}\n{script}\nstdout {}\nstderr {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs the tutorial `name`.
fn follow(name: &str) {
    let page = format!("{TUTORIALS}/{name}.md");
    let text = fs_err::read_to_string(root().join(&page)).unwrap();
    let temp = tempfile::tempdir().unwrap();
    fs_err::create_dir(temp.path().join(".bin")).unwrap();
    fs_err::os::unix::fs::symlink(env!("CARGO_BIN_EXE_simclr"), temp.path().join(".bin/simclr")).unwrap();
    let rules = rules(&text);
    for rule in &rules {
        if let Some(set) = rule.strip_prefix("make ") {
            let [kind, folder, count] = set.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{page}: `{rule}`")
            };
            synthetic::make(kind, &temp.path().join(folder), count.parse().unwrap());
        } else {
            assert!(rule.starts_with("replace ") && rule.contains(" => "), "{page}: `{rule}`: no such rule");
        }
    }
    let mut used: Vec<bool> = rules.iter().map(|rule| rule.starts_with("make ")).collect();
    let commands: Vec<_> = blocks(&text).into_iter().filter(|block| block.language == "sh").collect();
    assert!(commands.len() > 3, "{page}: {} blocks of commands", commands.len());
    for block in commands {
        let script = quick(&block.text, &rules, &mut used);
        run(&script, temp.path(), &format!("{page}:{}", block.line));
    }
    for (rule, used) in rules.iter().zip(used) {
        assert!(used, "{page}: `{rule}` changes nothing");
    }
    let files = outputs(&text);
    assert!(files.len() > 3, "{page} names {files:?}");
    for file in files {
        assert!(temp.path().join(&file).exists(), "{page} names `{file}`, which no command made");
    }
}

#[test]
fn tissue_tiles() {
    follow("pathology");
}

#[test]
fn satellite_images() {
    follow("satellite");
}

#[test]
fn factory_parts() {
    follow("factory");
}

#[test]
fn cluster_jobs() {
    follow("cluster");
}

#[test]
fn research() {
    follow("researcher");
}

#[test]
fn no_tutorial_is_left_out() {
    let pages = files_below(&root().join(TUTORIALS), &["md"]);
    let names: Vec<_> = pages.iter().map(|page| page.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["cluster", "factory", "pathology", "researcher", "satellite"]);
}

#[test]
fn rules_are_read_and_applied() {
    let text = "`runs/a/b.json` `x.png` `FILE.png` `bench/x.csv` `optim.lr`\n<!-- test\nmake parts p 3\nreplace a b => c\n-->\n";
    assert_eq!(rules(text), ["make parts p 3", "replace a b => c"]);
    assert_eq!(outputs(text), ["runs/a/b.json", "x.png"]);
    let mut used = [true, false];
    assert_eq!(quick("x a b", &rules(text), &mut used), "x c");
    assert!(used[1]);
}
