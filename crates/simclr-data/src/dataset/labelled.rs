//! Where the labels of a set come from, where that is not left to its format: from a table, or from nowhere.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    Dataset, OpenOptions, Sample, Split,
    list::Names,
    note_on_unlabelled, pages,
    tables::{self, Matches, Table},
};
use crate::{DataError, decode::Pages};

/// Names that a note lists at most.
const NAMED: usize = 3;

/// `data.labels`: where labels come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Labels {
    /// `auto`: what the set holds.
    #[default]
    Auto,
    /// `none`: nowhere. Folders are not classes.
    None,
    /// Any other text: a CSV, JSON lines or parquet table of images and labels.
    Table(PathBuf),
}

impl From<String> for Labels {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "none" => Self::None,
            _ => Self::Table(text.into()),
        }
    }
}

impl From<Labels> for String {
    fn from(labels: Labels) -> Self {
        match labels {
            Labels::Auto => "auto".into(),
            Labels::None => "none".into(),
            Labels::Table(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl FromStr for Labels {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl Labels {
    /// With the whole path of a table, so that it is found from any working folder.
    ///
    /// # Errors
    /// A table that does not exist.
    pub fn canonical(&self) -> Result<Self, DataError> {
        Ok(match self {
            Self::Table(path) => Self::Table(path.canonicalize().map_err(|error| cannot_open(path, &error))?),
            other => other.clone(),
        })
    }
}

impl Dataset {
    /// The same images, without labels and classes.
    #[must_use]
    pub fn without_labels(self) -> Self {
        let without = |sample| Sample { label: None, ..sample };
        self.relabelled(Vec::new(), |samples| samples.into_iter().map(without).collect(), Vec::new())
    }

    /// The same images with the labels of a table, which take the place of the set's own; images that it does not name have
    /// none. The table is CSV (separated by commas, semicolons or tabs), JSON lines or parquet. Image names are in its column
    /// `path`, `file`, `file_name`, `filename`, `image` or `id`, labels in `label`, `class`, `category` or `target`; a CSV
    /// table of two columns needs no header. A name is that of an image in the set, or its last part, with or without ending,
    /// where only one image has it. Pages that are images of their own have the label of their file.
    ///
    /// # Errors
    /// A table that cannot be read, has other columns, names no image of the set, means several images by one name, or has
    /// two labels for one image.
    pub fn labelled_from(self, table: &Path) -> Result<Self, DataError> {
        self.labelled_among(table, &[], true)
    }

    /// As `labels` says. `path` and `parts` are where this set was opened, and as which parts: of a table, names are
    /// looked up in all parts of a set, so that one that images of two parts share is refused. What of the table is not used
    /// is noted with the training part.
    ///
    /// # Errors
    /// Those of [`Dataset::labelled_from`].
    pub fn labelled(self, labels: &Labels, path: &Path, parts: &[Split]) -> Result<Self, DataError> {
        match labels {
            Labels::Auto => Ok(self),
            Labels::None => Ok(self.without_labels()),
            Labels::Table(table) => {
                let (splits, options) = (Self::splits(path), OpenOptions::from(self.decoding()));
                let others = splits.into_iter().filter(|split| !parts.contains(split));
                let others = others.map(|split| Self::open(path, split, options));
                let others = others.collect::<Result<Vec<_>, _>>()?;
                self.labelled_among(table, &others, parts.contains(&Split::Train))
            }
        }
    }

    /// `others` are the further parts of the set.
    fn labelled_among(self, path: &Path, others: &[Self], is_noted: bool) -> Result<Self, DataError> {
        path.metadata().map_err(|error| cannot_open(path, &error))?;
        let table = Table::read(path, &tables::ANY).map_err(|error| error.of(path))?;
        let samples = std::iter::once(&self).chain(others).flat_map(Self::samples);
        let (names, places) = self.file_names(samples);
        let wrong = |reason: String| DataError::Format { path: path.to_owned(), reason };
        let found = table.matches(&Names::of(names.iter().copied().enumerate()), names.len());
        let found = found.map_err(wrong)?;
        if found.rows.iter().all(Option::is_none) {
            return Err(wrong(no_image_in(&table, &names)));
        }
        let label = |row: &Option<usize>| row.and_then(|row| table.rows[row].label.as_deref());
        let classes = tables::classes(&table.class_names, found.rows.iter().filter_map(label));
        let number = |&place: &usize| label(&found.rows[place]).and_then(|label| classes.label(label));
        let labels: Vec<Option<u32>> = places[..self.len()].iter().map(number).collect();
        let unnamed: Vec<&str> = unnamed(&found.rows, &names).collect();
        let (file, unknown) = (path.display().to_string(), unknown(&[(&table, &found)]));
        let note = is_noted.then(|| note_on_tables(&[&file], (&unnamed, names.len()), &unknown));
        let notes = note.into_iter().chain(classes.notes()).collect();
        let with = |(sample, label)| Sample { label, ..sample };
        Ok(self.relabelled(
            classes.names,
            |samples| samples.into_iter().zip(labels).map(with).collect(),
            notes,
        ))
    }

    /// The names that a table labels, and the place among them of each of `samples`: pages of a file share its name.
    fn file_names<'a>(&self, samples: impl Iterator<Item = &'a Sample>) -> (Vec<&'a str>, Vec<usize>) {
        let is_paged = self.decoding.pages == Pages::Images;
        let (mut names, mut places) = (Vec::new(), Vec::new());
        for sample in samples {
            let name = if is_paged { pages::file_of(&sample.name) } else { &sample.name };
            if !is_paged || names.last() != Some(&name) {
                names.push(name);
            }
            places.push(names.len() - 1);
        }
        (names, places)
    }

    fn relabelled(
        self,
        classes: Vec<String>,
        samples: impl FnOnce(Vec<Sample>) -> Vec<Sample>,
        label_notes: Vec<String>,
    ) -> Self {
        let Self { samples: before, mut notes, label_notes: earlier, .. } = self;
        notes.truncate(notes.len() - earlier);
        let samples = samples(before);
        let label_notes: Vec<_> = label_notes.into_iter().chain(note_on_unlabelled(&samples)).collect();
        let count = label_notes.len();
        notes.extend(label_notes);
        Self { samples, classes, notes, label_notes: count, identity: None, ..self }
    }
}

/// A word that is misspelt is taken as a path.
fn cannot_open(path: &Path, error: &std::io::Error) -> DataError {
    let reason = format!("expected auto, none or the path of a table of images and labels: {error}");
    DataError::Config { key: "data.labels", value: format!("`{}`", path.display()), reason }
}

fn no_image_in(table: &Table, names: &[&str]) -> String {
    let row = table.rows.first().map(|row| row.image.as_str()).unwrap_or_default();
    let (count, image) = (table.rows.len(), names.first().copied().unwrap_or_default());
    format!(
        "none of its {count} rows names an image of the set: the first is `{row}`, an image is called `{image}`"
    )
}

/// Images without a row.
pub(super) fn unnamed<'a>(rows: &[Option<usize>], names: &[&'a str]) -> impl Iterator<Item = &'a str> {
    rows.iter().zip(names).filter(|(row, _)| row.is_none()).map(|(_, name)| *name)
}

/// Names in rows of no image, and the number of all rows.
pub(super) fn unknown<'a>(tables: &[(&'a Table, &Matches)]) -> (Vec<&'a str>, usize) {
    let names = tables
        .iter()
        .flat_map(|(table, found)| found.unknown.iter().map(|&row| table.rows[row].image.as_str()));
    (names.collect(), tables.iter().map(|(table, _)| table.rows.len()).sum())
}

/// From which tables labels are, which of `images` these do not name, and which of their rows name no image.
pub(super) fn note_on_tables(
    tables: &[&str],
    (unnamed, images): (&[&str], usize),
    (unknown, rows): &(Vec<&str>, usize),
) -> String {
    let mut note = format!("labels are those of {}", few(tables));
    if !unnamed.is_empty() {
        note += &format!("; {} of {images} images are not named there: {}", unnamed.len(), few(unnamed));
    }
    if !unknown.is_empty() {
        note += &format!("; {} of {rows} rows name no image: {}", unknown.len(), few(unknown));
    }
    note
}

/// "`a`, `b`, `c`, ...".
pub(super) fn few(names: &[&str]) -> String {
    let listed: Vec<_> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > NAMED { ", ..." } else { "" };
    format!("{}{more}", listed.join(", "))
}
