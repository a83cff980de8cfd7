//! Metrics of a run: `metrics.jsonl` with a line per step, and the same scalars as TensorBoard events.

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use simclr_data::contact_sheet::ContactSheet;

use super::{RunFolder, StepReport, events};
use crate::{TrainError, health::Health};

/// Seconds between flushes; a killed run loses at most the metrics of this time.
const FLUSH_SECONDS: u64 = 10;
const JPEG_QUALITY: u8 = 90;

pub(super) struct Metrics {
    lines: BufWriter<fs_err::File>,
    events: BufWriter<fs_err::File>,
    flushed: Instant,
}

impl Metrics {
    /// Continues the metrics of the first `first_step` steps and drops lines of later steps, which will run again. Every start of
    /// a run has its own event file, which makes TensorBoard drop them, too.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn open(folder: &RunFolder, first_step: u64) -> Result<Self, std::io::Error> {
        let path = folder.metrics_file();
        drop_lines_from(&path, first_step)?;
        let lines = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        // TensorBoard reads files in the order of their names; microseconds separate two starts in one second.
        let name = format!("events.out.tfevents.{:017.6}.{}.simclr", now(), std::process::id());
        let mut events_file = BufWriter::new(fs_err::File::create(folder.path().join(name))?);
        events_file.write_all(&events::record(&events::file_version(now())))?;
        events_file.write_all(&events::record(&events::session_start(now(), first_step)))?;
        Ok(Self { lines: BufWriter::new(lines), events: events_file, flushed: Instant::now() })
    }

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

    pub fn health(&mut self, step: u64, health: &Health) -> Result<(), std::io::Error> {
        let value = json!({ "step": step, "health": health });
        for (tag, figure) in value["health"].as_object().into_iter().flatten() {
            self.scalar(step, &format!("health/{tag}"), figure.as_f64().unwrap_or(f64::NAN))?;
        }
        self.line(&value)
    }

    /// `accuracy` of the online kNN, in `[0, 1]`.
    pub fn knn(&mut self, step: u64, accuracy: f64) -> Result<(), std::io::Error> {
        self.scalar(step, "eval/online_knn", accuracy)?;
        self.line(&json!({ "step": step, "online_knn": accuracy }))
    }

    /// For TensorBoard only.
    pub fn views(&mut self, sheet: &ContactSheet) -> Result<(), TrainError> {
        let size = sheet.tiles().map(|tiles| tiles * sheet.side());
        let event = events::image(now(), 0, "views", size, &sheet.jpeg(JPEG_QUALITY)?);
        Ok(self.events.write_all(&events::record(&event))?)
    }

    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<(), std::io::Error> {
        self.events.write_all(&events::record(&events::scalar(now(), step, tag, value as f32)))
    }

    /// Adds `time` (seconds since 1970), so that metrics can be plotted against wall time.
    fn line(&mut self, value: &Value) -> Result<(), std::io::Error> {
        let mut value = value.clone();
        value["time"] = now().into();
        writeln!(self.lines, "{value}")?;
        if self.flushed.elapsed().as_secs() >= FLUSH_SECONDS {
            self.flush()?;
        }
        Ok(())
    }

    /// Flushes both files to the operating system.
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

/// Keeps lines of steps before `step`, and drops a last line that was cut off when the process was killed.
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

    /// The payloads of a TFRecord file; checks both checksums of each.
    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let (record, rest) = bytes.split_at(8 + 4 + length + 4);
            assert_eq!(record, events::record(&record[12..12 + length]), "length and checksums");
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
    fn resumed_metrics_have_each_step_once() {
        let temp = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(temp.path()).unwrap();
        let mut metrics = Metrics::open(&folder, 0).unwrap();
        for step in 0..5 {
            metrics.step(&report(step)).unwrap();
        }
        metrics.knn(4, 0.5).unwrap();
        metrics.flush().unwrap();
        drop(metrics);
        let mut cut = fs_err::OpenOptions::new().append(true).open(folder.metrics_file()).unwrap();
        cut.write_all(br#"{"step": 5, "lo"#).unwrap();
        let mut metrics = Metrics::open(&folder, 3).unwrap();
        assert_eq!(steps(&folder), [0, 1, 2]);
        for step in 3..6 {
            metrics.step(&report(step)).unwrap();
        }
        drop(metrics);
        assert_eq!(steps(&folder), [0, 1, 2, 3, 4, 5]);

        let files = fs_err::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        files.sort();
        let [first, second] = &files[..] else { panic!("two starts, two files: {files:?}") };
        let first = payloads(&fs_err::read(first).unwrap());
        let second = payloads(&fs_err::read(second).unwrap());
        assert_eq!((first.len(), second.len()), (2 + 5 * 6 + 2 + 1, 2 + 3 * 6 + 2));
        let lines = fs_err::read_to_string(folder.metrics_file()).unwrap();
        let line: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!((&line["gradient_norm"], &line["trust_ratio"]), (&json!(0.5), &json!([1e-3, 2e-3])));
        // Nine bytes of wall_time, then step 3 and a session log with status START.
        assert_eq!(second[1][9..], [0x10, 3, 0x3a, 2, 0x08, 1]);
    }
}
