//! Images that cannot be decoded: each is named once, with its reason, in `bad_files.txt`.

use std::{collections::HashSet, io::Write};

use simclr_data::Dataset;

use super::RunFolder;

/// The list, and what is in it already.
pub struct BadFiles {
    file: std::path::PathBuf,
    known: HashSet<String>,
}

impl BadFiles {
    /// Starts the list, empty where the run is `fresh`; a resumed one goes on with what it knows.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(folder: &RunFolder, fresh: bool) -> Result<Self, std::io::Error> {
        let file = folder.bad_files();
        let mut known = HashSet::new();
        if file.exists() {
            if fresh {
                fs_err::remove_file(&file)?;
            } else {
                let text = String::from_utf8_lossy(&fs_err::read(&file)?).into_owned();
                known.extend(text.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())));
            }
        }
        Ok(Self { file, known })
    }

    /// Appends the images that are new to the list and returns a sentence for each.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add(&mut self, dataset: &Dataset, bad: &[(usize, String)]) -> Result<Vec<String>, std::io::Error> {
        let name = |id: usize| &dataset.samples()[id].name;
        let fresh: Vec<_> = bad.iter().filter(|(id, _)| self.known.insert(name(*id).clone())).collect();
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = fs_err::OpenOptions::new().create(true).append(true).open(&self.file)?;
        for (id, reason) in &fresh {
            writeln!(list, "{}\t{reason}", name(*id))?;
        }
        Ok(fresh.into_iter().map(|(_, reason)| format!("skipped: {reason}")).collect())
    }
}
