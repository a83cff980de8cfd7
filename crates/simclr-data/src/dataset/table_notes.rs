//! Notes on tables of labels: images that they do not name, and rows of no image.

use super::{
    notes::list_names,
    tables::{Matches, Table},
};

/// Maximal number of names in a note.
pub(super) const NAMED: usize = 3;

/// Names of the images without a row.
pub(super) fn unnamed<'a>(rows: &[Option<usize>], names: &[&'a str]) -> impl Iterator<Item = &'a str> {
    rows.iter().zip(names).filter(|(row, _)| row.is_none()).map(|(_, name)| *name)
}

/// Names in rows that match no image, and the number of all rows.
pub(super) fn unknown<'a>(tables: &[(&'a Table, &Matches)]) -> (Vec<&'a str>, usize) {
    let names = tables
        .iter()
        .flat_map(|(table, found)| found.unknown.iter().map(|&row| table.rows[row].image.as_str()));
    (names.collect(), tables.iter().map(|(table, _)| table.rows.len()).sum())
}

/// A note on the tables that give labels, on the `unnamed` of `images`, and on the `unknown` names in their rows.
pub(super) fn note_on_tables(
    tables: &[&str],
    (unnamed, images): (&[&str], usize),
    (unknown, rows): &(Vec<&str>, usize),
) -> String {
    let mut note = format!("labels are those of {}", list_names(tables, NAMED));
    if !unnamed.is_empty() {
        note += &format!(
            "; {} of {images} images are not named there: {}",
            unnamed.len(),
            list_names(unnamed, NAMED)
        );
    }
    if !unknown.is_empty() {
        note += &format!("; {} of {rows} rows name no image: {}", unknown.len(), list_names(unknown, NAMED));
    }
    note
}
