//! The metrics that a run recorded, read from `metrics.jsonl`.

use std::io::{BufRead, BufReader};

use serde_json::Value;

use super::RunFolder;
use crate::health::Health;

/// Values of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "as in `StepReport`; NaN where it is not recorded")]
pub struct Recorded {
    pub step: u64,
    pub epoch: f64,
    pub loss: f64,
    pub chance_loss: f64,
    pub accuracy: f64,
    pub gradient_norm: f64,
    pub lr: f64,
}

/// Everything of `metrics.jsonl`, in the order of the steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordedMetrics {
    /// One for each step.
    pub steps: Vec<Recorded>,
    /// Step and label-free diagnostics.
    pub health: Vec<(u64, Health)>,
    /// Step and accuracy of the online kNN, in `[0, 1]`.
    pub online_knn: Vec<(u64, f64)>,
}

impl RecordedMetrics {
    /// Of a run with `images` per batch; `chance_decides` as in [`Health`]. Empty for a run without the file, such as an import; lines
    /// that cannot be parsed, such as a last one that was cut off, are left out.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(run: &RunFolder, images: i64, chance_decides: bool) -> Result<Self, std::io::Error> {
        let (path, mut found) = (run.metrics_file(), Self::default());
        if !path.exists() {
            return Ok(found);
        }
        for line in BufReader::new(fs_err::File::open(path)?).lines() {
            found.add(&serde_json::from_str(&line?).unwrap_or_default(), images, chance_decides);
        }
        Ok(found)
    }

    fn add(&mut self, line: &Value, images: i64, chance_decides: bool) {
        let Some(step) = line["step"].as_u64() else { return };
        let value = |name: &str| line[name].as_f64().unwrap_or(f64::NAN);
        if line["loss"].is_number() {
            let [epoch, loss, chance_loss] = ["epoch", "loss", "chance_loss"].map(value);
            let [accuracy, gradient_norm, lr] = ["accuracy", "gradient_norm", "lr"].map(value);
            self.steps.push(Recorded { step, epoch, loss, chance_loss, accuracy, gradient_norm, lr });
        }
        if let Ok(health) = serde_json::from_value::<Health>(line["health"].clone()) {
            self.health.push((step, Health { images, chance_decides, ..health }));
        }
        self.online_knn.extend(line["online_knn"].as_f64().map(|accuracy| (step, accuracy)));
    }

    /// Epochs done after `step`, interpolated from the recorded steps.
    pub fn epoch(&self, step: u64) -> f64 {
        let at = self.steps.partition_point(|recorded| recorded.step < step);
        self.steps.get(at).or(self.steps.last()).map_or(f64::NAN, |recorded| recorded.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_kinds_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        assert_eq!(RecordedMetrics::read(&run, 8, true).unwrap(), RecordedMetrics::default());
        let health = r#"{"loss":2.0,"chance_loss":2.7,"contrastive_accuracy":0.5,"alignment":0.1,"uniformity":-1.0,"effective_rank":9.0,"features":16,"spread":0.9}"#;
        let lines = [
            r#"{"step":0,"epoch":0.5,"loss":3.0,"chance_loss":2.7,"accuracy":0.1,"gradient_norm":1.5,"lr":0.1}"#.to_owned(),
            r#"{"step":1,"epoch":1.0,"loss":null,"chance_loss":2.7}"#.to_owned(),
            format!("{{\"step\":1,\"health\":{health}}}"),
            r#"{"step":1,"online_knn":0.25}"#.to_owned(),
            r#"{"step":2,"lo"#.to_owned(),
        ];
        fs_err::write(run.metrics_file(), lines.join("\n")).unwrap();
        let found = RecordedMetrics::read(&run, 8, true).unwrap();
        assert_eq!((found.steps.len(), found.steps[0].loss, found.online_knn), (1, 3.0, vec![(1, 0.25)]));
        assert_eq!((found.health[0].0, found.health[0].1.images), (1, 8));
        assert!(
            found.health[0].1.verdict().starts_with("learning: loss 2.000"),
            "{}",
            found.health[0].1.verdict()
        );
    }
}
