//! A data path that stands for several: braces as a shell expands them (`shards/train-{000..099}.tar`, `{a,b}/images`), or a
//! text file with a path on each line.
//!
//! Files of one kind (tar shards, parquet, images) are one set, as if they lay in one folder. Anything else is opened one by
//! one, and the sets follow each other: names begin with that of their source, classes of one name are one class, and each
//! part consists of those parts of all sources.

use std::path::{Path, PathBuf};

use super::{
    Format, Opened, Split, class_names::ClassNames, folder, joined::joined, layout, tar, with_extension,
};
use crate::{DataError, decode::Pages};

/// Paths that one path may stand for.
const MOST: usize = 1 << 20;

/// One path for several, in braces: itself where it is one.
///
/// # Errors
/// No path, or one that braces cannot hold.
pub fn as_one_path(paths: &[PathBuf]) -> Result<PathBuf, DataError> {
    if let [path] = paths {
        return Ok(path.clone());
    }
    let mut whole = Vec::new();
    for path in paths {
        // A pattern in braces begins with no folder, so it would not be found from another one.
        let text = std::path::absolute(path)?.to_string_lossy().into_owned();
        if text.contains(['{', '}', ',']) {
            let reason =
                "its name has a brace or a comma: write the paths into a text file, one on each line";
            return Err(DataError::Format { path: path.clone(), reason: reason.into() });
        }
        whole.push(text);
    }
    Ok(format!("{{{}}}", whole.join(",")).into())
}

/// The path as it is found from any folder.
///
/// # Errors
/// [`DataError::Empty`] where nothing is there.
pub fn canonical(path: &Path) -> Result<PathBuf, DataError> {
    if path.exists() {
        return Ok(fs_err::canonicalize(path)?);
    }
    let sources = sources(path)?.ok_or_else(|| no_such(path))?;
    let is_whole = sources.iter().all(|source| source.is_absolute());
    Ok(if is_whole { path.to_owned() } else { std::path::absolute(path)? })
}

/// What a path stands for; none where it is a set of its own.
pub fn sources(path: &Path) -> Result<Option<Vec<PathBuf>>, DataError> {
    let wrong = |reason: String| DataError::Format { path: path.to_owned(), reason };
    let is_list = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("txt"));
    if path.is_file() && is_list {
        let folder = path.parent().unwrap_or(Path::new(""));
        let text = fs_err::read_to_string(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let found: Vec<PathBuf> = lines.map(|line| folder.join(line)).collect();
        return if found.is_empty() { Err(wrong("it names no path".into())) } else { Ok(Some(found)) };
    }
    let text = path.to_string_lossy();
    if path.exists() || !text.contains('{') {
        return Ok(None);
    }
    let expanded = expanded(&text).map_err(wrong)?;
    let missing = expanded.iter().find(|source| !Path::new(source).exists());
    match missing {
        Some(source) => Err(wrong(format!(
            "`{source}`, one of the {} paths that it stands for, does not exist",
            expanded.len()
        ))),
        None => Ok(Some(expanded.into_iter().map(PathBuf::from).collect())),
    }
}

/// Every path that is read from, the file of a list included.
pub(crate) fn sources_of(path: &Path) -> Vec<PathBuf> {
    let sources = sources(path).ok().flatten().unwrap_or_default();
    std::iter::once(path.to_owned()).chain(sources).collect()
}

pub fn no_such(path: &Path) -> DataError {
    DataError::Empty { path: path.to_owned(), reason: "no such file or folder".into() }
}

/// Every text that `pattern` stands for, in the order of its alternatives.
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
    if middle.len().saturating_mul(rest.len()) > MOST {
        return Err(format!("it stands for more than {MOST} paths"));
    }
    Ok(middle
        .iter()
        .flat_map(|middle| rest.iter().map(move |rest| format!("{before}{middle}{rest}")))
        .collect())
}

/// Where the brace that `text` begins with is closed.
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

/// Split at the commas that no inner brace holds.
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

/// `000..099`, both ends included, with as many digits as the first number has.
fn range(text: &str) -> Option<Result<Vec<String>, String>> {
    let (first, last) = text.split_once("..")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let (Ok(from), Ok(to)) = (first.parse::<usize>(), last.parse::<usize>()) else {
        return Some(Err(format!("`{text}`: numbers too large")));
    };
    if from > to || to - from >= MOST {
        return Some(Err(format!("`{text}`: expected a rising range of at most {MOST} numbers")));
    }
    let digits = if first.starts_with('0') { first.len() } else { 1 };
    Some(Ok((from..=to).map(|number| format!("{number:0digits$}")).collect()))
}

/// The format of files of one kind; none for anything else.
pub fn of_one_kind(paths: &[PathBuf]) -> Option<Format> {
    let all = |extension: &str| with_extension(paths, extension).len() == paths.len();
    if !paths.iter().all(|path| path.is_file()) {
        return None;
    }
    match () {
        () if paths.iter().all(|path| tar::is_shard(path)) => Some(Format::Tar(paths.to_vec())),
        () if all("parquet") => Some(Format::Parquet(paths.to_vec())),
        () if paths
            .iter()
            .filter_map(|path| path.file_name())
            .all(|name| layout::is_image(&name.to_string_lossy())) =>
        {
            Some(Format::Files(paths.to_vec()))
        }
        () => None,
    }
}

/// The images of `split` in every source that has it.
pub fn open(paths: &[PathBuf], split: Split, pages: Pages) -> Result<Opened, DataError> {
    let mut sets = Vec::new();
    for path in paths {
        let format = Format::of(path)?;
        if matches!(format, Format::Several(_)) {
            let reason = "it stands for several sets, and is one of several itself".into();
            return Err(DataError::Format { path: path.clone(), reason });
        }
        if split == Split::Train || format.has_split(path, split) {
            let mut set = format.open(path, split, pages)?;
            let prefix = prefix(path, paths);
            set.samples.iter_mut().for_each(|sample| sample.name = format!("{prefix}/{}", sample.name));
            set.notes
                .iter_mut()
                .chain(&mut set.label_notes)
                .for_each(|note| *note = format!("`{prefix}`: {note}"));
            sets.push(set);
        }
    }
    let classes = ClassNames::sorted(sets.iter().flat_map(|set| set.classes.iter().cloned()));
    Ok(joined(sets, classes))
}

/// The last part of a path, or the whole of it where another source ends alike.
fn prefix(path: &Path, paths: &[PathBuf]) -> String {
    let alike = paths.iter().filter(|other| other.file_name() == path.file_name()).count();
    let name = path.file_name().filter(|_| alike == 1).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| path.display().to_string())
}

/// See [`open`].
pub fn has_split(paths: &[PathBuf], split: Split) -> bool {
    let has = |path: &PathBuf, format: Format| {
        !matches!(format, Format::Several(_)) && format.has_split(path, split)
    };
    paths.iter().any(|path| Format::of(path).is_ok_and(|format| has(path, format)))
}

/// Image files at any places; their folders below the one that holds them all are classes and parts, as in a folder.
pub fn open_files(paths: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let root = common_folder(paths);
    folder::open_files(&root, paths, split)
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
    fn several_paths_are_one_pattern_that_stands_for_them() {
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
