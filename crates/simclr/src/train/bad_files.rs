//! Images that cannot be decoded: each is named once, with its reason, in `bad_files.txt`.

use std::{collections::HashSet, io::Write};

use simclr_data::Dataset;

use super::RunFolder;

/// The list, and what is in it already.
pub struct BadFiles {
    file: std::path::PathBuf,
    known: HashSet<usize>,
}

impl BadFiles {
    /// Starts the list, empty where the run is `fresh`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(folder: &RunFolder, fresh: bool) -> Result<Self, std::io::Error> {
        let file = folder.bad_files();
        if fresh && file.exists() {
            fs_err::remove_file(&file)?;
        }
        Ok(Self { file, known: HashSet::new() })
    }

    /// Appends the images that are new to the list and returns a sentence for each.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add(&mut self, dataset: &Dataset, bad: &[(usize, String)]) -> Result<Vec<String>, std::io::Error> {
        let fresh: Vec<_> = bad.iter().filter(|(id, _)| self.known.insert(*id)).collect();
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = fs_err::OpenOptions::new().create(true).append(true).open(&self.file)?;
        for (id, reason) in &fresh {
            writeln!(list, "{}\t{reason}", dataset.samples()[*id].name)?;
        }
        Ok(fresh.into_iter().map(|(_, reason)| format!("skipped: {reason}")).collect())
    }
}
