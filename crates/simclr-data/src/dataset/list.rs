//! A text file of image names to their indices in a set: which images carry labels, or belong to a part.

use std::{collections::HashMap, path::Path};

use super::Dataset;
use crate::DataError;

impl Dataset {
    /// The images that `list` names, one per line, in ascending order. A line is an image's name in the set or only its
    /// last part (`n01440764_10026.JPEG`, as in google-research/simclr `imagenet_subsets/`); empty lines and lines that
    /// begin with `#` are passed over.
    ///
    /// # Errors
    /// A list that cannot be read or is empty, a name that is not in the set, or one that several images end with.
    pub fn listed(&self, list: &Path) -> Result<Vec<usize>, DataError> {
        let text = fs_err::read_to_string(list)?;
        let wrong = |reason: String| DataError::Format { path: list.to_owned(), reason };
        let names = Names::of(self);
        let comment = |line: &str| line.starts_with('#') && !names.whole.contains_key(line);
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !comment(line));
        let found = lines.map(|line| names.find(line)).collect::<Result<Vec<_>, _>>();
        let mut indices = found.map_err(wrong)?;
        indices.sort_unstable();
        indices.dedup();
        if indices.is_empty() {
            return Err(wrong("it names no image".into()));
        }
        Ok(indices)
    }
}

/// Indices by whole name, and by last part (none where several images share it).
struct Names<'a> {
    whole: HashMap<&'a str, usize>,
    last: HashMap<&'a str, Option<usize>>,
}

impl<'a> Names<'a> {
    fn of(set: &'a Dataset) -> Self {
        let (mut whole, mut last) = (HashMap::new(), HashMap::new());
        for (index, sample) in set.samples().iter().enumerate() {
            whole.insert(sample.name.as_str(), index);
            let part = sample.name.rsplit('/').next().unwrap_or_default();
            last.entry(part).and_modify(|known| *known = None).or_insert(Some(index));
        }
        Self { whole, last }
    }

    fn find(&self, name: &str) -> Result<usize, String> {
        match (self.whole.get(name), self.last.get(name)) {
            (Some(&index), _) | (None, Some(&Some(index))) => Ok(index),
            (None, Some(None)) => {
                Err(format!("`{name}` is the last part of several names; write more of it"))
            }
            (None, None) => Err(format!("`{name}` is not an image of the set")),
        }
    }
}
