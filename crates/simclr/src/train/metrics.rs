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
    /// dropped. Each start is an event file of its own, which tells TensorBoard to drop them too.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(folder: &RunFolder, first_step: u64) -> Result<Self, std::io::Error> {
        let path = folder.metrics_file();
        drop_lines_from(&path, first_step)?;
        let lines = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        // TensorBoard reads the files of a folder in the order of their names; two starts may share a second.
        let name = format!("events.out.tfevents.{:017.6}.{}.simclr", now(), std::process::id());
        let mut file = BufWriter::new(fs_err::File::create(folder.path().join(name))?);
        file.write_all(&events::record(&events::file_version(now())))?;
        file.write_all(&events::record(&events::session_start(now(), first_step)))?;
        Ok(Self { lines: BufWriter::new(lines), events: file, flushed: Instant::now() })
    }

    /// Records a step.
    ///
    /// # Errors
    /// A full disk.
    pub fn step(&mut self, report: &StepReport) -> Result<(), std::io::Error> {
        let value = json!(report);
        for tag in ["loss", "accuracy", "gradient_norm", "lr", "images_per_second", "data_wait"] {
            self.scalar(report.step, &format!("train/{tag}"), value[tag].as_f64().unwrap_or(f64::NAN))?;
        }
        for (tag, ratio) in report.trust_ratio.iter().flat_map(|range| ["min", "max"].into_iter().zip(range))
        {
            self.scalar(report.step, &format!("train/trust_ratio_{tag}"), *ratio)?;
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

    /// One line, with the time at which it was written (seconds since 1970), so that accuracy can be told against time.
    fn line(&mut self, value: &Value) -> Result<(), std::io::Error> {
        let mut value = value.clone();
        value["time"] = now().into();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            total_steps: 9,
            epoch: 0.5,
            loss: 3.0 + step as f64,
            chance_loss: 4.0,
            accuracy: 0.25,
            accuracy_of: "contrastive",
            gradient_norm: 0.5,
            trust_ratio: step.is_multiple_of(5).then_some([1e-3, 2e-3]),
            lr: 0.1,
            images_per_second: 100.0,
            data_wait: 0.0,
        }
    }

    /// The payloads of a TFRecord file, each with both checksums checked.
    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let (record, rest) = bytes.split_at(8 + 4 + length + 4);
            assert_eq!(record, events::record(&record[12..12 + length]), "length and checksums fit");
            found.push(record[12..12 + length].to_vec());
            bytes = rest;
        }
        found
    }

    fn steps(folder: &RunFolder) -> Vec<u64> {
        let text = fs_err::read_to_string(folder.metrics_file()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn a_resumed_record_has_each_step_once() {
        let temp = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(temp.path()).unwrap();
        let mut metrics = Metrics::open(&folder, 0).unwrap();
        (0..5).for_each(|step| metrics.step(&report(step)).unwrap());
        metrics.knn(4, 0.5).unwrap();
        metrics.flush().unwrap();
        drop(metrics);
        let mut cut = fs_err::OpenOptions::new().append(true).open(folder.metrics_file()).unwrap();
        cut.write_all(br#"{"step": 5, "lo"#).unwrap();
        let mut metrics = Metrics::open(&folder, 3).unwrap();
        assert_eq!(steps(&folder), [0, 1, 2]);
        (3..6).for_each(|step| metrics.step(&report(step)).unwrap());
        drop(metrics);
        assert_eq!(steps(&folder), [0, 1, 2, 3, 4, 5]);

        let files = fs_err::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        files.sort();
        let [first, second] = &files[..] else { panic!("two starts, two files: {files:?}") };
        let (first, second) =
            (payloads(&fs_err::read(first).unwrap()), payloads(&fs_err::read(second).unwrap()));
        assert_eq!((first.len(), second.len()), (2 + 5 * 6 + 2 + 1, 2 + 3 * 6 + 2));
        let lines = fs_err::read_to_string(folder.metrics_file()).unwrap();
        let line: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!((&line["gradient_norm"], &line["trust_ratio"]), (&json!(0.5), &json!([1e-3, 2e-3])));
        // wall_time takes the first nine bytes; then step 3, and a session log that says START.
        assert_eq!(second[1][9..], [0x10, 3, 0x3a, 2, 0x08, 1]);
    }
}
