//! Detection of the format of a set.

use std::path::{Path, PathBuf};

use super::{
    Opened, Split, cifar, class_names::ClassNames, folder, folder_tables, idx, joined::joined, layout,
    packed, pages, parquet, several, splits, tar, tiny_imagenet,
};
use crate::{DataError, decode::Pages};

/// A data path and its format, so that patterns are expanded and folders are listed once for all splits.
pub(super) struct Location<'a> {
    path: &'a Path,
    format: Format,
}

/// How a set is stored.
pub(super) enum Format {
    Packed,
    Parquet(Vec<PathBuf>),
    Tar(Vec<PathBuf>),
    Idx(Vec<PathBuf>),
    Cifar(Vec<PathBuf>),
    Folder,
    /// Image files in different folders.
    Files(Vec<PathBuf>),
    Several(Vec<PathBuf>),
}

impl<'a> Location<'a> {
    /// # Errors
    /// A path that does not exist, or a file of another kind.
    pub fn of(path: &'a Path) -> Result<Self, DataError> {
        Ok(Self { path, format: Format::of(path)? })
    }

    pub fn is_several(&self) -> bool {
        matches!(self.format, Format::Several(_))
    }

    /// All splits of the set, the training split first.
    pub fn splits(&self) -> Vec<Split> {
        let exists = |split: &Split| *split == Split::Train || self.has_split(*split);
        Split::ALL.into_iter().filter(exists).collect()
    }

    /// True also for a damaged split, so that opening it reports the damage.
    pub fn has_split(&self, split: Split) -> bool {
        match &self.format {
            Format::Packed => packed::has_part(self.path, split),
            Format::Parquet(files) => !splits::shards_of(files, split).is_empty(),
            Format::Idx(files) => idx::find(files, split).is_some(),
            Format::Cifar(files) => split == Split::Test && cifar::has_test(files),
            Format::Several(sources) => any_has_split(sources, split),
            Format::Tar(_) | Format::Folder | Format::Files(_) => match self.open(split, Pages::Auto) {
                Ok(opened) => !opened.samples.is_empty(),
                Err(error) => !matches!(error, DataError::Empty { .. }),
            },
        }
    }

    /// The images of a split; none if the set does not have it.
    ///
    /// # Errors
    /// [`DataError::Format`] for a damaged or contradictory set.
    pub fn open(&self, split: Split, pages: Pages) -> Result<Opened, DataError> {
        let opened = match &self.format {
            Format::Packed => packed::open(self.path, split),
            Format::Parquet(files) => parquet::open(files, split),
            Format::Tar(files) => tar::open(files, split),
            Format::Idx(files) => idx::open(files, split),
            Format::Cifar(files) => cifar::open(self.path, files, split),
            Format::Folder => folder::open(self.path, split),
            Format::Files(files) => several::open_files(files, split),
            Format::Several(sources) => return open_several(sources, split, pages),
        }?;
        let rule = pages::resolved(pages, opened.source.recorded_pages(), &opened.samples)?;
        pages::expanded(opened, rule)
    }

    /// The images of a split that the set must have.
    ///
    /// # Errors
    /// [`DataError::Empty`] without images, else those of [`Location::open`].
    pub fn require(&self, split: Split, pages: Pages) -> Result<Opened, DataError> {
        let opened = self.open(split, pages)?;
        if !opened.samples.is_empty() {
            return Ok(opened);
        }
        let reason = match split {
            Split::Train => "neither image files nor tar, parquet, IDX or CIFAR files",
            Split::Test => "the set has no test part (a folder or files named test, val or validation)",
            Split::Validation => "the set has no validation part (val or validation next to test)",
            Split::Unlabelled => "the set has no unlabelled part (unlabeled)",
        };
        Err(DataError::empty(self.path, reason))
    }
}

impl Format {
    /// By the names of the files at `path`; packed sets by their first bytes.
    fn of(path: &Path) -> Result<Self, DataError> {
        if let Some(sources) = several::sources(path)? {
            return Ok(of_one_kind(&sources).unwrap_or(Self::Several(sources)));
        }
        if !path.exists() {
            return Err(several::no_such(path));
        }
        let files = if path.is_dir() { files_of(path)? } else { vec![path.to_owned()] };
        let parquets = parquets_of(path, &files)?;
        let tars: Vec<PathBuf> = files.iter().filter(|file| tar::is_shard(file)).cloned().collect();
        let binaries = with_extension(&files, "bin");
        // img2dataset writes a table of keys and URLs for each shard.
        let has_tar = |table: &PathBuf| tars.contains(&table.with_extension("tar"));
        match () {
            () if path.is_file() && packed::is_packed(path) => Ok(Self::Packed),
            () if !parquets.is_empty() && parquets.iter().all(has_tar) => Ok(Self::Tar(tars)),
            () if !parquets.is_empty() => Ok(Self::Parquet(parquets)),
            () if !tars.is_empty() && path.is_dir() && are_images(path, &files, tars.len()) => {
                Ok(Self::Folder)
            }
            () if !tars.is_empty() => Ok(Self::Tar(tars)),
            () if idx::is_idx(&files) => Ok(Self::Idx(files)),
            () if cifar::is_cifar(&binaries) => Ok(Self::Cifar(binaries)),
            () if path.is_dir() => Ok(Self::Folder),
            () => {
                let reason = "a single file must be a tar shard, parquet, IDX, CIFAR binary or a packed set";
                Err(DataError::empty(path, reason))
            }
        }
    }
}

/// Whether a folder that also has archives is a set of images: in folders below it, or directly inside, at least as many as
/// archives, so that a preview next to shards is none.
fn are_images(path: &Path, files: &[PathBuf], archives: usize) -> bool {
    files.iter().filter(|file| is_image_file(file)).count() >= archives || folder::has_images_below(path)
}

fn is_image_file(file: &Path) -> bool {
    file.file_name().is_some_and(|name| layout::has_image_extension(&name.to_string_lossy()))
}

/// The images of `split` in all sources that have it.
fn open_several(paths: &[PathBuf], split: Split, pages: Pages) -> Result<Opened, DataError> {
    let mut sets = Vec::new();
    for path in paths {
        let location = Location::of(path)?;
        if location.is_several() {
            return Err(DataError::format(
                path,
                "it is a list or pattern within a list or pattern, which is not supported",
            ));
        }
        if split == Split::Train || location.has_split(split) {
            let mut set = location.open(split, pages)?;
            let prefix = prefix(path, paths);
            set.samples.iter_mut().for_each(|sample| sample.name = format!("{prefix}/{}", sample.name));
            let notes = set.notes.iter_mut().chain(&mut set.label_notes);
            notes.for_each(|note| *note = format!("`{prefix}`: {note}"));
            sets.push((path.as_path(), set));
        }
    }
    check_recorded(&sets)?;
    let sets: Vec<Opened> = sets.into_iter().map(|(_, set)| set).collect();
    let classes = ClassNames::sorted(sets.iter().flat_map(|set| set.classes.iter().cloned()));
    Ok(joined(sets, classes))
}

/// # Errors
/// Packed sets that were written with different ranges, or different page rules: one set has one of each.
fn check_recorded(sets: &[(&Path, Opened)]) -> Result<(), DataError> {
    let mut packed = sets
        .iter()
        .filter_map(|(path, set)| Some((path, set.source.recorded_range()?, set.source.recorded_pages()?)));
    let Some((first, range, pages)) = packed.next() else { return Ok(()) };
    for (path, other_range, other_pages) in packed {
        let (key, found, expected) = match () {
            () if other_range != range => ("data.range", other_range.to_string(), range.to_string()),
            () if other_pages != pages => ("data.pages", other_pages.to_string(), pages.to_string()),
            () => continue,
        };
        let reason = format!("packed with {key} = {found}, expected {expected}, as in `{}`", first.display());
        return Err(DataError::format(path, reason));
    }
    Ok(())
}

/// The last component of a path, or the whole path if another source has the same.
fn prefix(path: &Path, paths: &[PathBuf]) -> String {
    let alike = paths.iter().filter(|other| other.file_name() == path.file_name()).count();
    let name = path.file_name().filter(|_| alike == 1).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| path.display().to_string())
}

fn any_has_split(paths: &[PathBuf], split: Split) -> bool {
    let has = |location: Location<'_>| !location.is_several() && location.has_split(split);
    paths.iter().any(|path| Location::of(path).is_ok_and(has))
}

/// The common format of files of one kind; `None` for anything else.
fn of_one_kind(paths: &[PathBuf]) -> Option<Format> {
    let all = |extension: &str| with_extension(paths, extension).len() == paths.len();
    if !paths.iter().all(|path| path.is_file()) {
        return None;
    }
    match () {
        () if paths.iter().all(|path| tar::is_shard(path)) => Some(Format::Tar(paths.to_vec())),
        () if all("parquet") => Some(Format::Parquet(paths.to_vec())),
        () if paths.iter().all(|path| is_image_file(path)) => Some(Format::Files(paths.to_vec())),
        () => None,
    }
}

/// Parquet files of images among `files`, or in the folder `data` as on the Hugging Face hub.
fn parquets_of(path: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut parquets = with_extension(files, "parquet");
    if parquets.is_empty() && path.join("data").is_dir() {
        parquets = with_extension(&files_of(&path.join("data"))?, "parquet");
    }
    if path.is_dir() && parquets.iter().any(|file| folder_tables::is_table(file)) {
        // A table of labels among images is not the set.
        if files.iter().any(|file| is_image_file(file)) || folder::has_images_below(path) {
            parquets.retain(|file| !folder_tables::is_table(file));
        }
    }
    Ok(parquets)
}

fn with_extension(files: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    let matches =
        |file: &&PathBuf| file.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    files.iter().filter(matches).cloned().collect()
}

/// Whether a new file `path`, relative to the folder of a set, could be read as part of the set, judged by its name.
pub(crate) fn may_be_member(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_binary = ["parquet", "bin"].contains(&extension.as_str()) || tar::is_shard(path);
    let is_table = folder_tables::is_table(path) || tiny_imagenet::is_table(path);
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    is_binary || is_table || idx::is_idx(&[path.to_owned()]) || layout::is_image(&parts.join("/"))
}

/// Files directly inside a folder, sorted, without hidden ones.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !is_hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
