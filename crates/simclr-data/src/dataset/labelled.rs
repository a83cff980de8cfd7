//! Labels from another source than the format of the set: from a table, or none.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    Dataset, OpenOptions, Sample, Split,
    format::Location,
    list::Names,
    notes::list_names,
    pages,
    table_notes::{NAMED, note_on_tables, unknown, unnamed},
    tables::{self, Table},
};
use crate::{DataError, decode::Pages};

/// `data.labels`: the source of labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Labels {
    /// `auto`: the set itself.
    #[default]
    Auto,
    /// `none`: no labels; folders are not classes.
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
    /// With the absolute path of a table.
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
    /// Removes all labels and classes.
    #[must_use]
    pub fn without_labels(self) -> Self {
        self.relabelled(Vec::new(), |_| None, Vec::new())
    }

    /// Replaces all labels by those of a table; images that it does not name get none. The table is CSV (separated by commas,
    /// semicolons or tabs), JSON lines or parquet. Image names are in its column `path`, `file`, `file_name`, `filename`,
    /// `image` or `id`, labels in `label`, `class`, `category` or `target`; a CSV table of two columns needs no header. A name
    /// is that of an image in the set, or its last component, with or without extension, if that is unique. Pages of TIFF
    /// files that are images get the label of their file.
    ///
    /// # Errors
    /// A table that cannot be read, has other columns, names no image of the set, has an ambiguous name, or two labels for one
    /// image.
    pub fn labelled_from(self, table: &Path) -> Result<Self, DataError> {
        self.labelled_among(table, &[], true)
    }

    /// Applies `labels`. This set must be the splits `parts` of the set at `path`: names in a table are looked up in all
    /// splits, so that names shared by images of two splits are refused. The training split gets the notes on unused rows.
    ///
    /// # Errors
    /// Those of [`Dataset::labelled_from`].
    pub fn labelled(self, labels: &Labels, path: &Path, parts: &[Split]) -> Result<Self, DataError> {
        match labels {
            Labels::Auto => Ok(self),
            Labels::None => Ok(self.without_labels()),
            Labels::Table(table) => {
                let location = Location::of(path)?;
                let options = OpenOptions::from(self.decoding());
                let others = location.splits().into_iter().filter(|split| !parts.contains(split));
                let others = others.map(|split| Self::open_at(&location, split, options));
                let others = others.collect::<Result<Vec<_>, _>>()?;
                self.labelled_among(table, &others, parts.contains(&Split::Train))
            }
        }
    }

    /// `others` are the further splits of the set.
    fn labelled_among(self, path: &Path, others: &[Self], is_noted: bool) -> Result<Self, DataError> {
        path.metadata().map_err(|error| cannot_open(path, &error))?;
        let table = Table::read(path, &tables::ANY).map_err(|error| error.into_error(path))?;
        let samples = std::iter::once(&self).chain(others).flat_map(Self::samples);
        let (names, places) = self.file_names(samples);
        let found = table.matches(&Names::of(names.iter().copied().enumerate()), names.len());
        let found = found.map_err(|reason| DataError::format(path, reason))?;
        if found.rows.iter().all(Option::is_none) {
            return Err(DataError::format(path, no_image_in(&table, &names)));
        }
        let label = |row: &Option<usize>| row.and_then(|row| table.rows[row].label.as_deref());
        let classes = tables::classes(&table.class_names, found.rows.iter().filter_map(label));
        let class_of = |place: usize| label(&found.rows[place]).and_then(|label| classes.label(label));
        let labels: Vec<Option<u32>> = places[..self.len()].iter().map(|&place| class_of(place)).collect();
        let unnamed: Vec<&str> = unnamed(&found.rows, &names).collect();
        let unknown = unknown(&[(&table, &found)]);
        let file = path.display().to_string();
        let note = is_noted.then(|| note_on_tables(&[&file], (&unnamed, names.len()), &unknown));
        let notes = note.into_iter().chain(classes.notes()).collect();
        Ok(self.relabelled(classes.names, |index| labels[index], notes))
    }

    /// The file names of `samples`, and each sample's index among them: pages of a file share its name.
    fn file_names<'a>(&self, samples: impl Iterator<Item = &'a Sample>) -> (Vec<&'a str>, Vec<usize>) {
        let is_paged = self.decoding.pages == Pages::Images;
        let mut names = Vec::new();
        let mut places = Vec::new();
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
        label: impl Fn(usize) -> Option<u32>,
        label_notes: Vec<String>,
    ) -> Self {
        let Self { mut samples, mut notes, label_notes: earlier, .. } = self;
        samples.iter_mut().enumerate().for_each(|(index, sample)| sample.label = label(index));
        notes.truncate(notes.len() - earlier);
        let others = notes.len();
        notes.extend(label_notes.into_iter().chain(note_on_unlabelled(&samples)));
        let label_notes = notes.len() - others;
        Self { samples, classes, notes, label_notes, identity: None, ..self }
    }
}

/// For misspelt words as well, which are taken as paths.
fn cannot_open(path: &Path, error: &std::io::Error) -> DataError {
    let reason = format!("expected auto, none or the path of a table of images and labels: {error}");
    DataError::config("data.labels", format!("`{}`", path.display()), reason)
}

fn no_image_in(table: &Table, names: &[&str]) -> String {
    let row = table.rows.first().map(|row| row.image.as_str()).unwrap_or_default();
    let image = names.first().copied().unwrap_or_default();
    let count = table.rows.len();
    format!(
        "none of its {count} rows names an image of the set: the first is `{row}`, an image is called `{image}`"
    )
}

/// A note on images without a label next to labelled ones.
pub(super) fn note_on_unlabelled(samples: &[Sample]) -> Option<String> {
    let unlabelled: Vec<&Sample> = samples.iter().filter(|sample| sample.label.is_none()).collect();
    if unlabelled.is_empty() || unlabelled.len() == samples.len() {
        return None;
    }
    let names = list_names(unlabelled.iter().map(|sample| &sample.name), NAMED);
    Some(format!(
        "{} of {} images have no label; evaluations with labels skip them: {names}",
        unlabelled.len(),
        samples.len()
    ))
}
