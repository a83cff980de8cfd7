//! Estimated duration of a run.

use simclr_data::Dataset;

use super::{Measured, choice::BatchMode};
use crate::{Plan, train::online_knn};

/// Duration and throughput of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Forecast {
    seconds: f64,
    epochs: f64,
    images_per_second: f64,
    /// Share of decoding and augmentation in a step.
    loader_share: f64,
    /// Communication between ranks is not part of a measured step.
    ranks: usize,
}

impl Forecast {
    pub(super) fn new(
        plan: &Plan,
        ranks: usize,
        measured: &Measured,
        mode: BatchMode,
        dataset: &Dataset,
    ) -> Self {
        // Chunks have a second forward pass; a backward pass costs as much as two forward passes.
        const SECOND_FORWARD: f64 = 4.0 / 3.0;
        let part = plan.config.train.batch.div_ceil(ranks);
        let mut time = measured.time;
        match mode {
            BatchMode::Whole => {}
            BatchMode::GlobalNorm(_) => time = measured.global_norm_time.unwrap_or(time),
            BatchMode::ChunkNorm(_) => {
                time.per_image *= SECOND_FORWARD;
                time.loader *= plan.view_passes as f64;
            }
        }
        let step = time.seconds(part);
        let steps = step * plan.total_steps as f64;
        // The online kNN decodes its images and embeds one view of each.
        let knn = online_knn::images(plan, dataset) as f64;
        let views = plan.config.task.objective.views() as f64;
        let knn = knn * (measured.time.loader + measured.time.per_image / (3.0 * views));
        Self {
            seconds: steps + knn,
            epochs: plan.config.train.epochs,
            images_per_second: plan.config.train.batch as f64 / step,
            loader_share: time.loader * part as f64 / step,
            ranks,
        }
    }
}

impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.seconds / 3600.0;
        let epochs = self.epochs;
        let rate = self.images_per_second;
        let percent = 100.0 * self.loader_share.min(1.0);
        write!(f, "about {} for {epochs} epochs at ", duration(self.seconds))?;
        write!(f, "{rate:.*} images/s, ", usize::from(rate < 10.0))?;
        write!(f, "decoding and augmentation {percent:.0} % of a step")?;
        if self.ranks > 1 {
            write!(f, ", plus communication between {} processes", self.ranks)?;
        }
        if hours > 24.0 {
            write!(f, "\nsmaller --epochs, --image-size or --encoder (conv-c3) shorten it")?;
        }
        if hours > 1.0 && self.loader_share > 0.5 {
            write!(f, "\n`simclr pack --size 256` makes decoding cheaper")?;
        }
        Ok(())
    }
}

/// Such as `5.3 h`, `2.1 min` or `9 s`.
fn duration(seconds: f64) -> String {
    let hours = seconds / 3600.0;
    match seconds {
        _ if hours >= 100.0 => format!("{hours:.0} h"),
        _ if hours >= 1.0 => format!("{hours:.1} h"),
        _ if seconds >= 60.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_human_readable() {
        assert_eq!(duration(18_936.0), "5.3 h");
        assert_eq!(duration(108.0), "1.8 min");
        assert_eq!(duration(4_443_840.0), "1234 h");
        assert_eq!(duration(8.7), "9 s");
        let forecast = Forecast {
            seconds: 36_000.0,
            epochs: 100.0,
            images_per_second: 7.06,
            loader_share: 0.75,
            ranks: 1,
        };
        let text = forecast.to_string();
        assert!(
            text.starts_with("about 10.0 h for 100 epochs at 7.1 images/s, decoding and augmentation 75 %"),
            "{text}"
        );
        assert!(text.contains("simclr pack") && !text.contains("--epochs"), "{text}");
        assert!(Forecast { seconds: 1e6, ..forecast }.to_string().contains("--epochs"));
        assert!(!text.contains("communication"), "{text}");
        assert!(
            Forecast { ranks: 4, ..forecast }.to_string().contains("plus communication between 4 processes")
        );
    }
}
