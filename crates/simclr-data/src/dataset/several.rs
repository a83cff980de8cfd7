//! Data paths with several sources: brace patterns as in a shell (`shards/train-{000..099}.tar`, `{a,b}/images`), or a text file
//! with a path on each line.
//!
//! Files of one kind (tar shards, parquet, images) are read as one set, as if they were in one folder. Any other sources are
//! opened one by one and concatenated split by split; sample names get the source's name as prefix, and classes are merged by
//! name.

use std::path::{Component, Path, PathBuf};

use super::{Opened, Split, folder};
use crate::DataError;

/// Maximal number of paths that a pattern may expand to.
const MAX_PATHS: usize = 1 << 20;

/// One brace pattern for all `paths`; a single path is returned as it is.
///
/// # Errors
/// No path, or one that braces cannot hold.
pub fn as_one_path(paths: &[PathBuf]) -> Result<PathBuf, DataError> {
    if let [path] = paths {
        return Ok(path.clone());
    }
    let mut whole = Vec::new();
    for path in paths {
        // A pattern must not depend on the working directory, which may be another one on resume.
        let absolute = std::path::absolute(path)?;
        let Some(text) = absolute.to_str().map(str::to_owned) else {
            return Err(DataError::format(path, "expected a name in UTF-8, as for all of several paths"));
        };
        if text.contains(['{', '}', ',']) {
            let reason =
                "its name has a brace or a comma: write the paths into a text file, one on each line";
            return Err(DataError::format(path, reason));
        }
        whole.push(text);
    }
    Ok(format!("{{{}}}", whole.join(",")).into())
}

/// The path, absolute.
///
/// # Errors
/// [`DataError::Empty`] if it does not exist.
pub fn canonical(path: &Path) -> Result<PathBuf, DataError> {
    if path.exists() {
        return Ok(fs_err::canonicalize(path)?);
    }
    let sources = sources(path)?.ok_or_else(|| no_such(path))?;
    let is_absolute = sources.iter().all(|source| source.is_absolute());
    Ok(if is_absolute { path.to_owned() } else { std::path::absolute(path)? })
}

/// The sources of a pattern or list; `None` for the path of a single set.
pub fn sources(path: &Path) -> Result<Option<Vec<PathBuf>>, DataError> {
    let is_list = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt"));
    if path.is_file() && is_list {
        let folder = path.parent().unwrap_or(Path::new(""));
        let text = fs_err::read_to_string(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let found: Vec<PathBuf> = lines.map(|line| folder.join(line)).collect();
        return if found.is_empty() {
            Err(DataError::format(path, "it names no path"))
        } else {
            Ok(Some(found))
        };
    }
    let text = path.to_string_lossy();
    if path.exists() || !text.contains('{') {
        return Ok(None);
    }
    let expanded = expanded(&text).map_err(|reason| DataError::format(path, reason))?;
    match expanded.iter().find(|source| !Path::new(source).exists()) {
        Some(source) => {
            let count = expanded.len();
            let reason = format!("`{source}`, one of the {count} paths that it expands to, does not exist");
            Err(DataError::format(path, reason))
        }
        None => Ok(Some(expanded.into_iter().map(PathBuf::from).collect())),
    }
}

/// `path` itself, and the sources of a pattern or list.
pub fn sources_of(path: &Path) -> Vec<PathBuf> {
    let sources = sources(path).ok().flatten().unwrap_or_default();
    std::iter::once(path.to_owned()).chain(sources).collect()
}

pub fn no_such(path: &Path) -> DataError {
    DataError::empty(path, "no such file or folder")
}

/// The expansions of `pattern`, in the order of its alternatives.
fn expanded(pattern: &str) -> Result<Vec<String>, String> {
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let close = closing(&pattern[open..]).ok_or("a brace that is not closed")? + open;
    let (before, inside, after) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let mut middle = Vec::new();
    match range(inside) {
        Some(numbers) => middle = numbers?,
        None => {
            for alternative in alternatives(inside) {
                middle.extend(expanded(alternative)?);
            }
        }
    }
    let rest = expanded(after)?;
    if middle.len().saturating_mul(rest.len()) > MAX_PATHS {
        return Err(format!("it expands to more than {MAX_PATHS} paths"));
    }
    Ok(middle
        .iter()
        .flat_map(|middle| rest.iter().map(move |rest| format!("{before}{middle}{rest}")))
        .collect())
}

/// Position of the brace that closes the one at the start of `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, letter)| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })
}

/// Splits at the commas outside inner braces.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

/// Numbers of `000..099`, inclusive, padded to the digits of the first one.
fn range(text: &str) -> Option<Result<Vec<String>, String>> {
    let (first, last) = text.split_once("..")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let (Ok(from), Ok(to)) = (first.parse::<usize>(), last.parse::<usize>()) else {
        return Some(Err(format!("`{text}`: numbers too large")));
    };
    if from > to || to - from >= MAX_PATHS {
        let reason = format!("`{text}`: expected a rising range of at most {MAX_PATHS} numbers");
        return Some(Err(reason));
    }
    let digits = if first.starts_with('0') { first.len() } else { 1 };
    Some(Ok((from..=to).map(|number| format!("{number:0digits$}")).collect()))
}

/// Image files, with the folders below their common folder as classes and splits.
pub fn open_files(paths: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    // The files are read by their paths as given: behind a link, `..` is another folder.
    let places = paths.iter().map(|path| lexical(path)).collect::<Result<Vec<_>, _>>()?;
    let root = common_folder(&places);
    folder::open_files(&root, places.iter().zip(paths), split)
}

/// `path`, absolute, without `.` and `..`.
fn lexical(path: &Path) -> Result<PathBuf, std::io::Error> {
    let mut found = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(found.pop()),
            part => found.push(part),
        }
    }
    Ok(found)
}

fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let mut root = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&root)) && root.pop() {}
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_expanded_as_a_shell_does() {
        for (pattern, expected) in [
            ("a-{008..011}.tar", "a-008.tar a-009.tar a-010.tar a-011.tar"),
            ("{x,y}/{1..2}", "x/1 x/2 y/1 y/2"),
            ("{a,b{1,2}}", "a b1 b2"),
            ("{8..10}", "8 9 10"),
            ("p{,q}", "p pq"),
            ("plain", "plain"),
        ] {
            assert_eq!(expanded(pattern).unwrap().join(" "), expected, "{pattern}");
        }
        for pattern in ["{a", "{9..1}", "{0..99999999}", "{000..999}{000..999}{000..999}"] {
            assert!(expanded(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn several_paths_become_one_pattern() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| fs_err::create_dir(path).unwrap());
        let one = as_one_path(&paths).unwrap();
        assert_eq!(sources(&one).unwrap().unwrap(), paths);
        assert_eq!(canonical(&one).unwrap(), one);
        assert_eq!(as_one_path(&paths[..1]).unwrap(), paths[0]);
        assert!(as_one_path(&[paths[0].clone(), folder.path().join("x,y")]).is_err());
        let missing = sources(&folder.path().join("{a,c}")).unwrap_err().to_string();
        assert!(missing.contains("one of the 2 paths"), "{missing}");
        assert!(canonical(&folder.path().join("none")).is_err());
    }
}
