//! Folders of image files of any depth, sorted by path.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use bytes::Bytes;
use walkdir::WalkDir;

use super::{
    Opened, Sample, Source, Split, folder_tables, identity::FileState, layout, layout::Arranged,
    others::Others, tiny_imagenet,
};
use crate::{DataError, decode};

struct Folder {
    files: Vec<PathBuf>,
    /// Read once, so that sizes and stamps are of one moment, before the images are read.
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
    open_listed(root, list(root)?, split)
}

/// Opens images, hidden ones as well, as if they were the only files below `root`; each with its place there and its path.
pub fn open_files<'a>(
    root: &Path,
    images: impl Iterator<Item = (&'a PathBuf, &'a PathBuf)>,
    split: Split,
) -> Result<Opened, DataError> {
    let name = |place: &Path| relative(root, place).unwrap_or_else(|| place.display().to_string());
    let images = images.map(|(place, path)| (name(place), path.clone())).collect();
    open_listed(root, Listed { images, ..Listed::default() }, split)
}

/// Exactly `files`, in this order, without labels; names are the paths as given.
pub fn given(files: &[PathBuf]) -> Opened {
    let sample = |file: &PathBuf| Sample { name: file.display().to_string(), label: None };
    let samples = files.iter().map(sample).collect();
    Opened::new(samples, Vec::new(), Box::new(Folder::of(files.to_vec())))
}

fn open_listed(root: &Path, listed: Listed, split: Split) -> Result<Opened, DataError> {
    let Listed { mut images, tables, annotations, others } = listed;
    images.sort();
    let (names, files): (Vec<_>, Vec<_>) = images.into_iter().unzip();
    let (renamed, tiny) = tiny_imagenet::as_class_folders(root, &names, &annotations);
    let arranged = layout::arrange(renamed.as_ref().unwrap_or(&names), split).checked(root)?;
    let Arranged { mut kept, mut classes, notes, .. } = arranged;
    if renamed.is_some() {
        kept.iter_mut().for_each(|(index, sample)| sample.name.clone_from(&names[*index]));
    }
    let (labels, on_tables) = folder_tables::labels(root, &names, tables);
    let on_labels = tiny.into_iter().chain(on_tables).filter(|_| split == Split::Train);
    if let Some(labels) = labels {
        kept.iter_mut().for_each(|(index, sample)| sample.label = labels.of[*index]);
        classes = labels.classes;
    }
    let source = Folder::of(kept.iter().map(|(index, _)| files[*index].clone()).collect());
    Ok(Opened {
        samples: kept.into_iter().map(|(_, sample)| sample).collect(),
        notes: notes.into_iter().chain(others.note(split)).collect(),
        label_notes: on_labels.chain(classes.notes()).collect(),
        classes: classes.names,
        source: Box::new(source),
    })
}

/// The files of a folder; names relative to it.
#[derive(Default)]
struct Listed {
    images: Vec<(String, PathBuf)>,
    tables: Vec<String>,
    annotations: Vec<String>,
    others: Others,
}

impl Listed {
    fn add(&mut self, root: &Path, path: &Path) {
        let Some(name) = relative(root, path) else { return };
        match () {
            () if layout::is_image(&name) => self.images.push((name, path.to_owned())),
            () if folder_tables::is_table(path) && layout::is_visible(&name) => self.tables.push(name),
            () if tiny_imagenet::is_table(path) && layout::is_visible(&name) => self.annotations.push(name),
            () => self.others.add(&name),
        }
    }
}

fn list(root: &Path) -> Result<Listed, DataError> {
    let mut listed = Listed::default();
    // Links are followed. A loop, which walkdir reports as an error, is skipped; a folder that cannot be read is an error.
    for entry in WalkDir::new(root).follow_links(true) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => listed.add(root, entry.path()),
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() => {}
            // A dangling link is listed as an image that cannot be read; it is reported, counted and skipped later.
            Err(error) => match error.path().filter(|path| path.is_symlink()) {
                Some(path) => listed.add(root, path),
                None => return Err(DataError::Io(error.into())),
            },
        }
    }
    Ok(listed)
}

/// Whether a folder below `root` has an image.
pub fn has_images_below(root: &Path) -> bool {
    let files = WalkDir::new(root).min_depth(2).follow_links(true).into_iter().filter_map(Result::ok);
    files
        .filter(|entry| entry.file_type().is_file())
        .any(|entry| relative(root, entry.path()).is_some_and(|name| layout::is_image(&name)))
}

/// The path of a file relative to the root, with `/` on every system.
fn relative(root: &Path, path: &Path) -> Option<String> {
    let parts = path.strip_prefix(root).ok()?.components();
    Some(parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/"))
}

impl Source for Folder {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        let path = &self.files[index];
        let bytes = read_image(path);
        Ok(bytes.map_err(|reason| DataError::decode(path.display().to_string(), reason))?.into())
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        Some(self.files[index].display().to_string().into())
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.state(index).bytes
    }

    fn stamp(&self, index: usize) -> u64 {
        self.state(index).stamp
    }

    fn native_channels(&self) -> usize {
        let first = self.files.first().and_then(|path| read_image(path).ok());
        first.map_or(3, |bytes| decode::native_channels(&bytes))
    }
}

/// The contents of `path` if it is a regular file of at most [`decode::MAX_BYTES`]. A pipe is not waited for.
fn read_image(path: &Path) -> Result<Vec<u8>, String> {
    match fs_err::metadata(path) {
        Ok(now) if now.len() > decode::MAX_BYTES => {
            Err("the file is larger than any image that is decoded".into())
        }
        Ok(now) if !now.is_file() => Err("it is no regular file".into()),
        _ => fs_err::read(path).map_err(|error| io_reason(&error)),
    }
}

/// The reason without the path, which is part of the message already.
fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "no permission to read it".into(),
        std::io::ErrorKind::NotFound => "no such file (a link to nowhere?)".into(),
        kind => kind.to_string(),
    }
}
