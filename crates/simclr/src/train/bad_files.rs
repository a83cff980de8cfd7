//! `bad_files.txt`: images that could not be decoded, one line `name<tab>reason` each, with control characters escaped.

use std::{collections::HashSet, io::Write};

use simclr_data::{Dataset, printable::printable};

use super::RunFolder;

pub(super) struct BadFiles {
    file: std::path::PathBuf,
    /// Names in the file.
    listed: HashSet<String>,
}

impl BadFiles {
    /// Reads the list of a resumed run; removes that of an earlier run if this one is `new`.
    ///
    /// # Errors
    /// A file that cannot be read or removed.
    pub fn open(folder: &RunFolder, new: bool) -> Result<Self, std::io::Error> {
        let file = folder.bad_files();
        let mut listed = HashSet::new();
        if file.exists() {
            if new {
                fs_err::remove_file(&file)?;
            } else {
                let text = String::from_utf8_lossy(&fs_err::read(&file)?).into_owned();
                listed.extend(text.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())));
            }
        }
        Ok(Self { file, listed })
    }

    /// Appends images that are not listed yet and returns a message for each.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, dataset: &Dataset, bad: &[(usize, String)]) -> Result<Vec<String>, std::io::Error> {
        let name = |id: usize| printable(&dataset.samples()[id].name);
        let added: Vec<_> = bad.iter().filter(|(id, _)| self.listed.insert(name(*id).into())).collect();
        if added.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = fs_err::OpenOptions::new().create(true).append(true).open(&self.file)?;
        for (id, reason) in &added {
            writeln!(list, "{}\t{}", name(*id), printable(reason))?;
        }
        Ok(added.into_iter().map(|(_, reason)| format!("skipped: {reason}")).collect())
    }
}
