//! Estimated duration of a run.

use simclr_data::Dataset;

use super::{Measured, choice::BatchMode};
use crate::{Plan, config::SMALL_IMAGE, train::online_knn};

/// Duration and throughput of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Forecast {
    steps: f64,
    /// Seconds of one step.
    step: f64,
    /// Seconds of a step for decoding and augmentation, as a part of `step`.
    loader: f64,
    /// Seconds of the online kNN, over the run.
    knn: f64,
    epochs: f64,
    images_per_step: f64,
    ranks: usize,
    /// Whether the step is one of all ranks, with their communication, or one of this rank alone.
    together: bool,
    /// A recipe with a time budget for such images on such a device.
    recipe: Option<&'static str>,
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
        // The online kNN decodes its images and embeds one view of each.
        let knn = online_knn::images(plan, dataset) as f64;
        let views = plan.config.task.objective.views() as f64;
        Self {
            steps: plan.total_steps as f64,
            step: time.seconds(part),
            loader: time.loader * part as f64,
            knn: knn * (measured.time.loader + measured.time.per_image / (3.0 * views)),
            epochs: plan.config.train.epochs,
            images_per_step: plan.config.train.batch as f64,
            ranks,
            together: ranks == 1,
            recipe: None,
        }
    }

    /// Names the recipe for a CPU in the text of a run of more than an hour.
    pub(super) fn with_recipe_for_cpus(self, image_size: usize) -> Self {
        let recipe = if image_size <= SMALL_IMAGE { "small-images-fast" } else { "photos-cpu" };
        Self { recipe: Some(recipe), ..self }
    }

    /// Whether measuring a step of all ranks takes no more than seconds.
    pub(super) fn wants_measurement(&self) -> bool {
        const SHORT_STEP: f64 = 0.5;
        !self.together && self.step < SHORT_STEP
    }

    /// The forecast for steps of all ranks that take `step` seconds.
    pub(super) fn of_all_ranks(self, step: f64) -> Self {
        Self { step, together: true, ..self }
    }

    fn seconds(&self) -> f64 {
        self.steps * self.step + self.knn
    }
}

impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.seconds() / 3600.0;
        let epochs = self.epochs;
        let rate = self.images_per_step / self.step;
        let loader_share = (self.loader / self.step).min(1.0);
        write!(f, "about {} for {epochs} epochs at ", duration(self.seconds()))?;
        write!(f, "{rate:.*} images/s, ", usize::from(rate < 10.0))?;
        write!(f, "decoding and augmentation {:.0} % of a step", 100.0 * loader_share)?;
        match (self.ranks, self.together) {
            (1, _) => {}
            (ranks, true) => write!(f, ", measured with {ranks} processes")?,
            (ranks, false) => write!(f, ", plus communication between {ranks} processes")?,
        }
        if let Some(recipe) = self.recipe.filter(|_| hours > 1.0) {
            write!(
                f,
                "\n`--recipe {recipe}` is made for such images on a CPU and has a time budget (--set train.minutes)"
            )?;
        }
        if hours > 24.0 {
            write!(f, "\nsmaller --epochs, --image-size or --encoder (conv-c3) shorten it")?;
        }
        if hours > 1.0 && loader_share > 0.5 {
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
            steps: 3600.0,
            step: 10.0,
            loader: 7.5,
            knn: 0.0,
            epochs: 100.0,
            images_per_step: 70.6,
            ranks: 1,
            together: true,
            recipe: None,
        };
        let text = forecast.to_string();
        assert!(
            text.starts_with("about 10.0 h for 100 epochs at 7.1 images/s, decoding and augmentation 75 %"),
            "{text}"
        );
        assert!(text.contains("simclr pack") && !text.contains("--epochs"), "{text}");
        assert!(Forecast { steps: 1e5, ..forecast }.to_string().contains("--epochs"));
        assert!(!text.contains("processes") && !text.contains("--recipe"), "{text}");
        let of = |image_size| forecast.with_recipe_for_cpus(image_size).to_string();
        assert!(of(32).contains("`--recipe small-images-fast`") && of(96).contains("`--recipe photos-cpu`"));
        let short = Forecast { steps: 100.0, ..forecast }.with_recipe_for_cpus(32).to_string();
        assert!(!short.contains("--recipe"), "{short}");
    }

    #[test]
    fn communication_is_named_or_measured() {
        let alone = Forecast {
            steps: 100.0,
            step: 0.25,
            loader: 0.025,
            knn: 5.0,
            epochs: 10.0,
            images_per_step: 128.0,
            ranks: 4,
            together: false,
            recipe: None,
        };
        assert!(alone.wants_measurement());
        let text = alone.to_string();
        assert!(text.starts_with("about 30 s for 10 epochs at 512 images/s"), "{text}");
        assert!(text.ends_with("10 % of a step, plus communication between 4 processes"), "{text}");
        let together = alone.of_all_ranks(0.5);
        assert!(!together.wants_measurement());
        let text = together.to_string();
        assert!(text.starts_with("about 55 s for 10 epochs at 256 images/s"), "{text}");
        assert!(text.ends_with("5 % of a step, measured with 4 processes"), "{text}");
    }
}
