//! Lookup of images by name: lists in text files, and rows of tables.

use std::{cell::OnceCell, collections::HashMap, path::Path};

use super::{Dataset, layout};
use crate::DataError;

impl Dataset {
    /// Indices, in ascending order, of the images in a text file of one name per line. A name is that of an image in the set
    /// or its last component (`n01440764_10026.JPEG`, as in google-research/simclr `imagenet_subsets/`); empty lines and lines
    /// that begin with `#` are skipped.
    ///
    /// # Errors
    /// A list that cannot be read or is empty, or a name that is unknown or ambiguous.
    pub fn listed(&self, list: &Path) -> Result<Vec<usize>, DataError> {
        let text = fs_err::read_to_string(list)?;
        let names = Names::of(self.samples().iter().map(|sample| sample.name.as_str()).enumerate());
        let comment = |line: &str| line.starts_with('#') && !names.whole.contains_key(line);
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !comment(line));
        let found = lines.map(|line| names.find(line).map_err(|missed| missed.reason(line)));
        let mut indices =
            found.collect::<Result<Vec<_>, _>>().map_err(|reason| DataError::format(list, reason))?;
        indices.sort_unstable();
        indices.dedup();
        if indices.is_empty() {
            return Err(DataError::format(list, "it names no image"));
        }
        Ok(indices)
    }
}

/// Indices of images by name and by last component; `None` for ambiguous ones.
pub struct Names<'a> {
    whole: HashMap<&'a str, Option<usize>>,
    last: HashMap<&'a str, Option<usize>>,
    /// By last component without its extension.
    stems: OnceCell<HashMap<&'a str, Option<usize>>>,
}

/// Why a name denotes no single image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    Unknown,
    Several,
}

impl Missed {
    pub fn reason(self, name: &str) -> String {
        match self {
            Self::Several => format!("`{name}` is the last part of several names; write more of it"),
            Self::Unknown => format!("`{name}` is not an image of the set"),
        }
    }
}

impl<'a> Names<'a> {
    pub fn of(names: impl Iterator<Item = (usize, &'a str)>) -> Self {
        let mut whole = HashMap::new();
        let mut last = HashMap::new();
        for (index, name) in names {
            add(&mut whole, name, Some(index));
            add(&mut last, name.rsplit('/').next().unwrap_or_default(), Some(index));
        }
        Self { whole, last, stems: OnceCell::new() }
    }

    pub fn find(&self, name: &str) -> Result<usize, Missed> {
        one(self.whole.get(name).or_else(|| self.last.get(name)))
    }

    /// As [`Names::find`], for a cell of a table: also with a leading `./`, with `\` as separator, or as the last component
    /// without extension (`ISIC_0000000`).
    pub fn find_cell(&self, cell: &str) -> Result<usize, Missed> {
        let slashes = cell.replace('\\', "/");
        let name = slashes.trim_start_matches("./");
        match self.find(cell).or_else(|missed| if name == cell { Err(missed) } else { self.find(name) }) {
            Err(Missed::Unknown) if !layout::is_image(name) => one(self.stems().get(name)),
            found => found,
        }
    }

    fn stems(&self) -> &HashMap<&'a str, Option<usize>> {
        self.stems.get_or_init(|| {
            let mut stems = HashMap::new();
            for (name, index) in &self.last {
                add(&mut stems, name.rsplit_once('.').map_or(*name, |(stem, _)| stem), *index);
            }
            stems
        })
    }
}

fn add<'a>(to: &mut HashMap<&'a str, Option<usize>>, name: &'a str, index: Option<usize>) {
    to.entry(name).and_modify(|known| *known = None).or_insert(index);
}

fn one(found: Option<&Option<usize>>) -> Result<usize, Missed> {
    found.ok_or(Missed::Unknown)?.ok_or(Missed::Several)
}
