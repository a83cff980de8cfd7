//! Blocks, links and commands of the documents, for tests that read them.

#![allow(dead_code, reason = "each test binary uses its part")]

/// A fenced block.
pub struct Block {
    /// Word behind the opening fence.
    pub language: String,
    /// Line of the opening fence, from 1.
    pub line: usize,
    /// Lines between the fences.
    pub text: String,
}

/// Fenced blocks in their order.
#[track_caller]
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            match open.take() {
                Some(block) => found.push(block),
                None => {
                    let language = language.trim().to_owned();
                    open = Some(Block { language, line: at + 1, text: String::new() });
                }
            }
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(open.is_none(), "a fenced block without an end");
    found
}

/// Lines outside of fenced blocks, with their numbers from 1.
pub fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        if !fence && !inside {
            found.push((at + 1, line));
        }
    }
    found
}

/// Texts between backticks of a line of [`prose`].
pub fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Targets of the links and images of a line of [`prose`].
pub fn links(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let targets = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// Identifiers of the headings, as GitHub and mdBook write them; those of equal headings end in -1, -2, ...
pub fn anchors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
        let name = kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect::<String>();
        let count = (1..).map(|n| format!("{name}-{n}"));
        let free = std::iter::once(name.clone()).chain(count).find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

/// Words behind `simclr`, or behind a path that ends in it, of every command of a shell text.
pub fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        for part in words(line).split(|word| ["|", "||", "&&", "&", ";"].contains(&&word[..])) {
            let program = part.iter().position(|word| word.rsplit('/').next() == Some("simclr"));
            found.extend(program.map(|at| part[at + 1..].to_vec()));
        }
    }
    found
}

/// The words of a line, without quotes and without a comment.
fn words(line: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            ('#', None) if found.last().is_some_and(String::is_empty) => break,
            (';', None) => found.extend([";".to_owned(), String::new()]),
            (c, None) if c.is_whitespace() => found.push(String::new()),
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) => found.last_mut().unwrap().push(c),
        }
    }
    found.retain(|word| !word.is_empty());
    found
}
