//! `sessions.jsonl` of a run folder: one line when a process starts to train there, one when it ends. A start without an end was killed.

use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::RunFolder;
use crate::{TrainError, dist::host};

/// A line of `sessions.jsonl`; time and host are added.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum SessionEvent<'a> {
    /// Before the set-up.
    Start {
        /// The program and its arguments.
        command: Vec<String>,
        /// Version of the program.
        version: &'a str,
        /// Commit that the program was built from, if the build named one.
        commit: Option<&'a str>,
        /// Number of processes.
        processes: usize,
    },
    /// After the last step.
    End {
        /// `finished`, `stopped`, or the error.
        outcome: &'a str,
    },
}

impl RunFolder {
    /// Appends a line.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn record_session(&self, event: &SessionEvent<'_>) -> Result<(), TrainError> {
        #[derive(Serialize)]
        struct Line<'a> {
            unix_seconds: u64,
            host: String,
            #[serde(flatten)]
            event: &'a SessionEvent<'a>,
        }
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let line = serde_json::json!(Line { unix_seconds, host: host(), event });
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(self.sessions_file())?;
        // In one write, so that a kill leaves a whole line or none.
        Ok(file.write_all(format!("{line}\n").as_bytes())?)
    }
}
