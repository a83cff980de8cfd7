//! Image files in a folder, any depth, sorted by path.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{Opened, Source, Split, layout};
use crate::{DataError, Image, decode};

struct Folder {
    files: Vec<PathBuf>,
}

pub fn open(root: &Path, split: Split) -> Result<Opened, DataError> {
    let mut found = Vec::new();
    // Links are followed; walkdir reports a loop as an error, which is passed over like any folder that cannot be read
    // only if it is a loop.
    for entry in WalkDir::new(root).follow_links(true) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => found.extend(relative(root, entry.path())),
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() => {}
            // A dangling link is listed as an image that cannot be read: reported, counted and skipped with the others.
            Err(error) => match error.path().filter(|path| path.is_symlink()) {
                Some(path) => found.extend(relative(root, path)),
                None => return Err(DataError::Io(error.into())),
            },
        }
    }
    found.sort();
    let (names, files): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let (kept, classes) = layout::arrange(&names, split);
    let source = Folder { files: kept.iter().map(|(index, _)| files[*index].clone()).collect() };
    Ok(Opened {
        samples: kept.into_iter().map(|(_, sample)| sample).collect(),
        classes,
        source: Box::new(source),
    })
}

/// The name of an image relative to the root, with `/` on every system, and its path.
fn relative(root: &Path, path: &Path) -> Option<(String, PathBuf)> {
    let parts = path.strip_prefix(root).ok()?.components();
    let name = parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
    layout::is_image(&name).then(|| (name, path.to_owned()))
}

impl Source for Folder {
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError> {
        let path = &self.files[index];
        let name = path.display().to_string();
        let wrong = |reason: String| DataError::Decode { name: name.clone(), reason };
        if self.stored_bytes(index) > decode::MAX_BYTES {
            return Err(wrong("the file is larger than any image that is decoded".into()));
        }
        let bytes = fs_err::read(path).map_err(|error| wrong(io_reason(&error)))?;
        decode::decode(&name, &bytes, channels)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        fs_err::metadata(&self.files[index]).map_or(0, |metadata| metadata.len())
    }

    fn native_channels(&self) -> usize {
        let first = self.files.first().and_then(|path| fs_err::read(path).ok());
        first.map_or(3, |bytes| decode::native_channels(&bytes))
    }
}

/// The operating system's reason without the path, which the message names already.
fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "no permission to read it".into(),
        std::io::ErrorKind::NotFound => "no such file (a link to nowhere?)".into(),
        kind => kind.to_string(),
    }
}
