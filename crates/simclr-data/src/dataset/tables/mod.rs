//! Tables of images and their labels: CSV, JSON lines or parquet.

mod csv;
mod jsonl;
mod parquet;

use std::{collections::HashSet, path::Path};

pub use jsonl::plain;

use super::{
    class_names::ClassNames,
    list::{Missed, Names},
};
use crate::DataError;

/// Columns of image names in a table that the user gives, or `labels.csv`.
pub const ANY: [&str; 6] = ["path", "file", "file_name", "filename", "image", "id"];
/// Column of image names in the metadata of a Hugging Face image folder.
pub const HUB: [&str; 1] = ["file_name"];
/// Columns of labels, in order of precedence.
const LABELS: [&str; 4] = ["label", "class", "category", "target"];

/// Rows in the order of the file.
pub struct Table {
    pub rows: Vec<Row>,
    /// In label order, from the metadata of the hub, if any.
    pub class_names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub image: String,
    /// `None` for an empty cell.
    pub label: Option<String>,
}

/// Why a file gives no labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// A table of something else.
    OtherColumns(String),
    /// Not a table, or one that contradicts itself.
    Damaged(String),
}

/// The relation of a table to the images of a set.
pub struct Matches {
    pub rows: Vec<Option<usize>>,
    pub unknown: Vec<usize>,
}

impl Table {
    /// Reads a table in the format of its extension; image names are in the first of the columns `images` that it has.
    pub fn read(path: &Path, images: &[&str]) -> Result<Self, Unusable> {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let rows = match ending.as_str() {
            "csv" | "tsv" | "txt" => csv::read(path, images)?,
            "jsonl" | "ndjson" => jsonl::read(path, images)?,
            "parquet" => return parquet::read(path, images),
            _ => return Err(Unusable::Damaged("expected a table: .csv, .tsv, .jsonl or .parquet".into())),
        };
        Ok(Self { rows, class_names: Vec::new() })
    }

    /// Finds the rows of `count` images.
    ///
    /// # Errors
    /// A row with an ambiguous name, or two rows of one image with different labels.
    pub fn matches(&self, names: &Names<'_>, count: usize) -> Result<Matches, String> {
        let mut found = Matches { rows: vec![None; count], unknown: Vec::new() };
        for (row, Row { image, label }) in self.rows.iter().enumerate() {
            match names.find_cell(image) {
                Ok(index) => match found.rows[index].map(|earlier: usize| &self.rows[earlier].label) {
                    Some(earlier) if earlier != label => {
                        let [one, other] = [earlier, label].map(|label| label.as_deref().unwrap_or_default());
                        return Err(format!("`{image}` has two labels, `{one}` and `{other}`"));
                    }
                    _ => found.rows[index] = Some(row),
                },
                Err(Missed::Unknown) => found.unknown.push(row),
                Err(missed) => return Err(missed.reason(image)),
            }
        }
        Ok(found)
    }
}

impl Unusable {
    pub fn reason(self) -> String {
        let (Self::OtherColumns(reason) | Self::Damaged(reason)) = self;
        reason
    }

    pub fn into_error(self, path: &Path) -> DataError {
        DataError::format(path, self.reason())
    }
}

/// Class names in label order: `named`, then all other `labels`, sorted.
pub fn classes<'a>(named: &[String], labels: impl Iterator<Item = &'a str>) -> ClassNames {
    let known: HashSet<&str> = named.iter().map(String::as_str).collect();
    let others = ClassNames::sorted(labels.filter(|label| !known.contains(label)).map(str::to_owned));
    if named.is_empty() {
        return others;
    }
    let mut listed = HashSet::new();
    let named = named.iter().filter(|name| listed.insert(name.as_str())).cloned();
    ClassNames::of(named.chain(others.names))
}

/// Indices of the image column and the label column among `columns`, ignoring case.
fn places(columns: &[String], images: &[&str]) -> Result<(usize, usize), Unusable> {
    let place = |names: &[&str]| {
        names.iter().find_map(|name| columns.iter().position(|column| column.eq_ignore_ascii_case(name)))
    };
    let missing = |names: &[&str], what: &str| {
        let (expected, found) = (names.join(", "), columns.join(", "));
        Unusable::OtherColumns(format!("expected a column of {what} ({expected}), its columns are {found}"))
    };
    let image = place(images).ok_or_else(|| missing(images, "image names"))?;
    let label = place(&LABELS).ok_or_else(|| missing(&LABELS, "labels"))?;
    Ok((image, label))
}

fn text_of(path: &Path) -> Result<String, Unusable> {
    let bytes = fs_err::read(path).map_err(|error| Unusable::Damaged(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Unusable::Damaged(format!("expected text in UTF-8, byte {at} is none"))
    })?;
    // A byte order mark, as written by spreadsheets.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests;
