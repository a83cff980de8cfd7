//! Where a command may write its result. A file that is there already is replaced only where it is an earlier result of the
//! same command, which its content tells; an input is never replaced, and no result becomes part of the set that it was made
//! from.

use std::path::{Component, Path, PathBuf};

use crate::{DataError, dataset};

/// A kind of result.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// With its article, as messages name it: `a packed set`.
    pub name: &'static str,
    /// Whether the file holds such a result, by its content.
    pub is_earlier: fn(&Path) -> bool,
}

/// Refuses to write a result of `kind` to `out` over anything but an earlier one, or where it would become part of the set at
/// `data` that it is made from. Call it before the work begins.
///
/// # Errors
/// [`DataError::Taken`], [`DataError::IntoSet`], or a path that cannot be resolved.
pub fn check(out: &Path, kind: Kind, data: Option<&Path>) -> Result<(), DataError> {
    // A set that is missing is reported where it is opened.
    for data in data.map(dataset::sources_of).unwrap_or_default() {
        let Ok(set) = fs_err::canonicalize(&data) else { continue };
        let whole = resolved(out)?;
        let inside = whole.strip_prefix(&set).ok().filter(|inside| !inside.as_os_str().is_empty());
        if inside.is_some_and(dataset::may_be_member) {
            return Err(DataError::IntoSet { path: out.to_owned(), set: data });
        }
    }
    // A link is looked at, too: it may lead to nothing, and a FIFO would be waited for.
    match (fs_err::symlink_metadata(out), fs_err::metadata(out)) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        (Err(error), _) => Err(error.into()),
        (Ok(_), Ok(found)) if found.is_file() && (kind.is_earlier)(out) => Ok(()),
        (Ok(_), _) => Err(DataError::Taken { path: out.to_owned(), kind: kind.name }),
    }
}

/// `path` without links, `.` and `..` in its folders, whether or not they exist. Its last part stays as it is: a rename
/// replaces a link itself.
///
/// # Errors
/// The operating system's.
pub fn resolved(path: &Path) -> Result<PathBuf, std::io::Error> {
    let whole = std::path::absolute(path)?;
    let folder = whole.parent().unwrap_or(&whole);
    let name = whole.file_name().unwrap_or_default();
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let mut found = fs_err::canonicalize(there)?;
    for part in folder.strip_prefix(there).unwrap_or(Path::new("")).components() {
        match part {
            Component::ParentDir => drop(found.pop()),
            part => found.push(part),
        }
    }
    Ok(found.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Kind = Kind {
        name: "a text of ours",
        is_earlier: |path| fs_err::read(path).is_ok_and(|bytes| bytes.starts_with(b"ours")),
    };

    #[test]
    fn only_earlier_results_are_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs_err::write(at("earlier"), "ours, from yesterday").unwrap();
        fs_err::write(at("other"), "a picture").unwrap();
        fs_err::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink("other", at("link")).unwrap();
        std::os::unix::fs::symlink("earlier", at("good-link")).unwrap();
        std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();
        fs_err::hard_link(at("other"), at("hard")).unwrap();
        for free in ["new", "earlier", "good-link", "no/folder/yet"] {
            check(&at(free), TEXT, None).unwrap();
        }
        for taken in ["other", "folder", "link", "dangling", "hard", "folder/../other", "./other"] {
            let error = check(&at(taken), TEXT, None).unwrap_err();
            assert!(matches!(error, DataError::Taken { .. }), "{taken}: {error}");
            assert!(error.to_string().contains("a text of ours") && error.hint().is_some(), "{error}");
        }
        check(Path::new("/dev/null"), TEXT, None).unwrap_err();
    }

    #[test]
    fn nothing_is_written_into_the_set_that_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs_err::create_dir_all(at("set/class")).unwrap();
        std::os::unix::fs::symlink("set", at("link")).unwrap();
        for member in
            ["set/new.png", "set/class/new.JPG", "link/x.tar", "set/class/../x.parquet", "set/a/b.bmp"]
        {
            let error = check(&at(member), TEXT, Some(&at("set"))).unwrap_err();
            assert!(matches!(error, DataError::IntoSet { .. }), "{member}: {error}");
            check(&at(member), TEXT, Some(&at("link"))).unwrap_err();
        }
        for fine in ["new.png", "set/x.pack", "set/h.npy", "set/../x.png"] {
            check(&at(fine), TEXT, Some(&at("set"))).unwrap();
        }
    }

    #[test]
    fn paths_are_resolved_up_to_their_last_part() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs_err::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
        for (path, wanted) in
            [("a/../a/./x", "a/x"), ("link/../x", "a/x"), ("new/../x", "x"), ("link", "link")]
        {
            assert_eq!(resolved(&root.join(path)).unwrap(), root.join(wanted), "{path}");
        }
    }
}
