//! Tables of labels within a folder of images: metadata of Hugging Face image folders, and `labels.csv`. Image names in a table
//! are relative to its folder.

use std::path::Path;

use super::{
    class_names::ClassNames,
    list::Names,
    table_notes::{note_on_tables, unknown, unnamed},
    tables::{self, Matches, Table, Unusable},
};

/// In order of precedence within a folder.
const FILES: [&str; 4] = ["metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv"];
const MAX_NOTES: usize = 5;

/// Labels of all images of a folder.
pub struct Labels {
    pub of: Vec<Option<u32>>,
    pub classes: ClassNames,
}

/// By the name of a file.
pub fn is_table(path: &Path) -> bool {
    path.file_name().is_some_and(|name| FILES.iter().any(|table| name == *table))
}

struct Used {
    /// With a trailing `/`; empty for the root.
    folder: String,
    name: String,
    table: Table,
    /// Index of the first image in the folder; images are sorted.
    first: usize,
    found: Matches,
}

/// Labels of the images `names`, which must be sorted, from the tables `files`; `None` if no table gives any. Also notes on
/// the tables that do and that do not.
pub fn labels(root: &Path, names: &[String], mut files: Vec<String>) -> (Option<Labels>, Vec<String>) {
    // Outer folders first, so that tables nearer to an image take precedence.
    files.sort_by_key(|file| (file.matches('/').count(), folder_of(file).to_owned(), rank(file)));
    let (mut used, mut notes): (Vec<Used>, Vec<String>) = (Vec::new(), Vec::new());
    for name in files {
        let folder = folder_of(&name).to_owned();
        if let Some(earlier) = used.last().filter(|earlier| earlier.folder == folder) {
            notes.push(format!("`{name}` is not read: labels are those of `{}`", earlier.name));
            continue;
        }
        match read(root, names, &name, folder) {
            Ok(found) => used.push(found),
            Err(Unusable::OtherColumns(reason)) => notes.push(format!("`{name}` gives no labels: {reason}")),
            Err(Unusable::Damaged(reason)) => {
                // Falling back to class folders would silently give other labels.
                let none = Labels { of: vec![None; names.len()], classes: ClassNames::of([]) };
                return (
                    Some(none),
                    vec![format!("`{name}` cannot be used, so that no image has a label: {reason}")],
                );
            }
        }
    }
    if notes.len() > MAX_NOTES {
        let more = notes.len() - MAX_NOTES;
        notes.truncate(MAX_NOTES);
        notes.push(format!("so with {more} more tables"));
    }
    let labels = (!used.is_empty()).then(|| combined(names, &used, &mut notes));
    (labels, notes)
}

fn folder_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

fn rank(name: &str) -> usize {
    FILES.iter().position(|file| name.ends_with(file)).unwrap_or(FILES.len())
}

fn read(root: &Path, names: &[String], name: &str, folder: String) -> Result<Used, Unusable> {
    let images = if name.ends_with("labels.csv") { &tables::ANY[..] } else { &tables::HUB };
    let table = Table::read(&root.join(name), images)?;
    let first = names.partition_point(|image| *image < folder);
    let below = || names[first..].iter().take_while(|image| image.starts_with(&folder));
    let inside = Names::of(below().map(|image| &image[folder.len()..]).enumerate());
    let found = table.matches(&inside, below().count()).map_err(Unusable::Damaged)?;
    if found.rows.iter().all(Option::is_none) {
        let (rows, image) = (table.rows.len(), table.rows.first().map_or("", |row| &row.image));
        let reason = format!("none of its {rows} rows names an image here, the first is `{image}`");
        return Err(Unusable::OtherColumns(reason));
    }
    Ok(Used { folder, name: name.to_owned(), table, first, found })
}

fn combined(names: &[String], used: &[Used], notes: &mut Vec<String>) -> Labels {
    // Table and row of each image.
    let mut rows: Vec<Option<(usize, usize)>> = vec![None; names.len()];
    for (at, Used { first, found, .. }) in used.iter().enumerate() {
        for (slot, row) in rows[*first..].iter_mut().zip(&found.rows) {
            *slot = row.map(|row| (at, row)).or(*slot);
        }
    }
    let label = |place: &Option<(usize, usize)>| {
        place.and_then(|(table, row)| used[table].table.rows[row].label.as_deref())
    };
    let named = used.iter().map(|used| &used.table.class_names).find(|names| !names.is_empty());
    let named = named.map_or(&[][..], |names| names);
    let classes = tables::classes(named, rows.iter().filter_map(label));
    let of = rows.iter().map(|place| label(place).and_then(|label| classes.label(label))).collect();
    let files: Vec<&str> = used.iter().map(|used| &used.name[..]).collect();
    let is_named: Vec<Option<usize>> = rows.iter().map(|place| place.map(|(_, row)| row)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let unnamed: Vec<&str> = unnamed(&is_named, &names).collect();
    let tables: Vec<(&Table, &Matches)> = used.iter().map(|used| (&used.table, &used.found)).collect();
    notes.insert(0, note_on_tables(&files, (&unnamed, names.len()), &unknown(&tables)));
    Labels { of, classes }
}
