//! Protection of existing files. An output replaces only an earlier output of the same command, recognised by its content; it
//! replaces no input, and does not become part of the data set that it was made from.

use std::path::{Component, Path, PathBuf};

use crate::{DataError, dataset};

/// A kind of output file.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// With article, for messages: `a packed set`.
    pub name: &'static str,
    /// Whether the content of a file is of this kind.
    pub is_earlier: fn(&Path) -> bool,
}

/// Checks that an output of `kind` may be written to `out`: only an earlier one may be there, and the set at `data` must not
/// include it. To be called before the work begins.
///
/// # Errors
/// [`DataError::Taken`], [`DataError::IntoSet`], or a path that cannot be resolved.
pub fn check(out: &Path, kind: Kind, data: Option<&Path>) -> Result<(), DataError> {
    // A missing set is reported when it is opened.
    for data in data.map(dataset::sources_of).unwrap_or_default() {
        let Ok(set) = fs_err::canonicalize(&data) else { continue };
        let resolved = resolved(out)?;
        let inside = resolved.strip_prefix(&set).ok().filter(|inside| !inside.as_os_str().is_empty());
        if inside.is_some_and(dataset::may_be_member) {
            return Err(DataError::IntoSet { path: out.to_owned(), set: data });
        }
    }
    // A dangling link counts as an existing file. Other than regular files are not read: a FIFO would block.
    match (fs_err::symlink_metadata(out), fs_err::metadata(out)) {
        (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        (Err(error), _) => Err(error.into()),
        (Ok(_), Ok(found)) if found.is_file() && (kind.is_earlier)(out) => Ok(()),
        (Ok(_), _) => Err(DataError::Taken { path: out.to_owned(), kind: kind.name }),
    }
}

/// `path` with its folder, which need not exist, resolved. The last component is kept, since a rename replaces a link itself.
///
/// # Errors
/// The operating system's.
pub fn resolved(path: &Path) -> Result<PathBuf, std::io::Error> {
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(&absolute);
    let name = absolute.file_name().unwrap_or_default();
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let mut found = fs_err::canonicalize(existing)?;
    for part in folder.strip_prefix(existing).unwrap_or(Path::new("")).components() {
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
    fn only_earlier_outputs_are_replaced() {
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
    fn outputs_into_the_input_set_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs_err::create_dir_all(at("set/class")).unwrap();
        std::os::unix::fs::symlink("set", at("link")).unwrap();
        for member in [
            "set/new.png",
            "set/class/new.JPG",
            "link/x.tar",
            "set/x.tgz",
            "set/x.tar.gz",
            "set/class/../x.parquet",
            "set/a/b.bmp",
            "set/labels.csv",
            "set/class/metadata.jsonl",
        ] {
            let error = check(&at(member), TEXT, Some(&at("set"))).unwrap_err();
            assert!(matches!(error, DataError::IntoSet { .. }), "{member}: {error}");
            check(&at(member), TEXT, Some(&at("link"))).unwrap_err();
        }
        for fine in ["new.png", "set/x.pack", "set/h.npy", "set/../x.png", "set/x.csv", "labels.csv"] {
            check(&at(fine), TEXT, Some(&at("set"))).unwrap();
        }
    }

    #[test]
    fn resolved_keeps_the_last_component() {
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
