//! What a run records: a JSON line per step, and the same scalars as TensorBoard events.

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{RunFolder, StepReport, events};
use crate::health::Health;

/// Seconds between flushes: what a killed run may lose of its record (never of its weights).
const FLUSH_SECONDS: u64 = 10;

/// The record of a run.
pub struct Metrics {
    lines: BufWriter<fs_err::File>,
    events: BufWriter<fs_err::File>,
    flushed: Instant,
}

impl Metrics {
    /// Goes on with the record of the first `first_step` steps; lines of later steps, which will be run again, are
    /// dropped. TensorBoard drops them by itself: each start is an event file of its own.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(folder: &RunFolder, first_step: u64) -> Result<Self, std::io::Error> {
        let path = folder.metrics_file();
        drop_lines_from(&path, first_step)?;
        let lines = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        let name = format!("events.out.tfevents.{:.0}.{}.simclr", now().floor(), std::process::id());
        let mut file = BufWriter::new(fs_err::File::create(folder.path().join(name))?);
        file.write_all(&events::record(&events::file_version(now())))?;
        Ok(Self { lines: BufWriter::new(lines), events: file, flushed: Instant::now() })
    }

    /// Records a step.
    ///
    /// # Errors
    /// A full disk.
    pub fn step(&mut self, report: &StepReport) -> Result<(), std::io::Error> {
        let value = json!(report);
        for tag in ["loss", "contrastive_accuracy", "lr", "images_per_second", "data_wait"] {
            self.scalar(report.step, &format!("train/{tag}"), value[tag].as_f64().unwrap_or(f64::NAN))?;
        }
        self.line(&value)
    }

    /// Records health figures.
    ///
    /// # Errors
    /// A full disk.
    pub fn health(&mut self, step: u64, health: &Health) -> Result<(), std::io::Error> {
        let value = json!({ "step": step, "health": health });
        for (tag, figure) in value["health"].as_object().into_iter().flatten() {
            self.scalar(step, &format!("health/{tag}"), figure.as_f64().unwrap_or(f64::NAN))?;
        }
        self.line(&value)
    }

    /// Records the online kNN accuracy.
    ///
    /// # Errors
    /// A full disk.
    pub fn knn(&mut self, step: u64, accuracy: f64) -> Result<(), std::io::Error> {
        self.scalar(step, "eval/online_knn", accuracy)?;
        self.line(&json!({ "step": step, "online_knn": accuracy }))
    }

    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<(), std::io::Error> {
        self.events.write_all(&events::record(&events::scalar(now(), step, tag, value as f32)))
    }

    fn line(&mut self, value: &Value) -> Result<(), std::io::Error> {
        writeln!(self.lines, "{value}")?;
        if self.flushed.elapsed().as_secs() >= FLUSH_SECONDS {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// A full disk.
    pub fn flush(&mut self) -> Result<(), std::io::Error> {
        self.flushed = Instant::now();
        self.lines.flush()?;
        self.events.flush()
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Keeps the lines of steps before `step`; a last line that was cut by a kill goes too.
fn drop_lines_from(path: &Path, step: u64) -> Result<(), std::io::Error> {
    if !path.exists() {
        return Ok(());
    }
    let mut kept = String::new();
    for line in BufReader::new(fs_err::File::open(path)?).lines() {
        let line = line?;
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        if value["step"].as_u64().is_some_and(|found| found < step) {
            kept += &line;
            kept.push('\n');
        }
    }
    crate::checkpoint::write_atomically(path, kept.as_bytes())
}
