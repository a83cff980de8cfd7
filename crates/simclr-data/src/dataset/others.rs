//! The files and members of a set that are not read: counted by kind, for a note.

use std::collections::BTreeMap;

use super::{Split, layout, notes::list_counts};

/// Numbers of visible files that are not images, by extension.
#[derive(Default)]
pub struct Others(BTreeMap<String, usize>);

impl Others {
    pub fn add(&mut self, name: &str) {
        let file = name.rsplit('/').next().unwrap_or_default();
        let ending = file.rsplit_once('.').map(|(_, ending)| format!(".{}", ending.to_lowercase()));
        self.add_as(name, ending.as_deref().unwrap_or("without an ending"));
    }

    /// Counts `name` as one of `kind`.
    pub fn add_as(&mut self, name: &str, kind: &str) {
        if layout::is_visible(name) {
            *self.0.entry(kind.to_owned()).or_default() += 1;
        }
    }

    /// A note on them, for the training split only.
    pub fn note(self, split: Split) -> Option<String> {
        const NAMED: usize = 6;
        let total: usize = self.0.values().sum();
        if total == 0 || split != Split::Train {
            return None;
        }
        let mut kinds: Vec<(String, usize)> = self.0.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let files = if total == 1 {
            "1 file of another kind is"
        } else {
            &format!("{total} files of other kinds are")
        };
        Some(format!("{files} skipped: {}", list_counts(kinds, NAMED)))
    }
}
