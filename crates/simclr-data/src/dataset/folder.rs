//! Image files in a folder, any depth, sorted by path.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use bytes::Bytes;
use walkdir::WalkDir;

use super::{Opened, Source, Split, identity::FileState, layout, layout::Arranged};
use crate::{
    DataError, Image,
    decode::{self, Decoding},
};

struct Folder {
    files: Vec<PathBuf>,
    /// Asked for once: sizes and stamps of a set are of one moment, before its images are read.
    states: Vec<OnceLock<FileState>>,
}

impl Folder {
    fn of(files: Vec<PathBuf>) -> Self {
        let states = files.iter().map(|_| OnceLock::new()).collect();
        Self { files, states }
    }

    fn state(&self, index: usize) -> &FileState {
        self.states[index].get_or_init(|| FileState::of(&self.files[index]))
    }
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
    let Arranged { kept, classes, .. } = layout::arrange(&names, split).checked(root)?;
    let source = Folder::of(kept.iter().map(|(index, _)| files[*index].clone()).collect());
    Ok(Opened {
        samples: kept.into_iter().map(|(_, sample)| sample).collect(),
        notes: classes.notes(),
        classes: classes.names,
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
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let path = &self.files[index];
        let wrong = |reason: String| DataError::Decode { name: path.display().to_string(), reason };
        if fs_err::metadata(path).is_ok_and(|now| now.len() > decode::MAX_BYTES) {
            return Err(wrong("the file is larger than any image that is decoded".into()));
        }
        Ok(fs_err::read(path).map_err(|error| wrong(io_reason(&error)))?.into())
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: Decoding) -> Result<Image, DataError> {
        decode::decode(&self.files[index].display().to_string(), &stored, how)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.state(index).bytes
    }

    fn stamp(&self, index: usize) -> u64 {
        self.state(index).stamp
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
