//! The files of a run folder that change during training, written by rank 0.

use std::time::{Duration, Instant};

use simclr_data::Dataset;

use super::{
    Observer, RunFolder, StepReport,
    bad_files::BadFiles,
    chance::ChanceMonitor,
    images::TrainedImages,
    metrics::Metrics,
    state::{capture, first_non_finite},
    view_sheet::view_sheet,
};
use crate::{
    Plan, TrainError, checkpoint::write_atomically, health::Health, methods::Method, optim::Optimizer,
};

/// Writes metrics, failed images, checkpoints and the record of the images.
pub(super) struct Journal<'a> {
    folder: &'a RunFolder,
    dataset: &'a Dataset,
    metrics: Metrics,
    bad_files: BadFiles,
    images: TrainedImages,
    chance: ChanceMonitor,
    /// Time and step of the newest checkpoint.
    saved: (Instant, Option<u64>),
    /// Step and images of the newest batch over all ranks, for [`Journal::non_finite`].
    pub last_batch: (u64, Vec<usize>),
}

impl<'a> Journal<'a> {
    pub fn open(folder: &'a RunFolder, dataset: &'a Dataset, first_step: u64) -> Result<Self, TrainError> {
        Ok(Self {
            folder,
            dataset,
            metrics: Metrics::open(folder, first_step)?,
            bad_files: BadFiles::open(folder, first_step == 0)?,
            images: TrainedImages::new(),
            chance: ChanceMonitor::default(),
            saved: (Instant::now(), (first_step > 0).then_some(first_step)),
            last_batch: (first_step, Vec::new()),
        })
    }

    /// The sheet of views of a new run.
    pub fn views(&mut self, plan: &Plan) -> Result<(), TrainError> {
        self.metrics.views(&view_sheet(plan, self.dataset)?)
    }

    pub fn step(
        &mut self,
        report: &StepReport,
        health: Option<&Health>,
        plan: &Plan,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.metrics.step(report)?;
        observer.step(report);
        if let Some(health) = health {
            self.metrics.health(report.step, health)?;
            observer.health(health);
        }
        if let Some(warning) = self.chance.observe(report.step, report.loss, report.chance_loss, plan) {
            observer.message(&warning);
        }
        Ok(())
    }

    pub fn online_knn(
        &mut self,
        steps_done: u64,
        accuracy: f64,
        plan: &Plan,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.metrics.knn(steps_done - 1, accuracy)?;
        let epoch = steps_done / plan.steps_per_epoch;
        let percent = 100.0 * accuracy;
        observer.message(&format!("epoch {epoch}: online kNN on held-out training images {percent:.1} %"));
        Ok(())
    }

    /// Lists images that failed to decode.
    pub fn failed(
        &mut self,
        failed: &[(usize, String)],
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let messages = self.bad_files.add(self.dataset, failed)?;
        for message in &messages {
            observer.message(message);
        }
        Ok(())
    }

    pub fn since_checkpoint(&self) -> Duration {
        self.saved.0.elapsed()
    }

    pub fn flush(&mut self) -> Result<(), TrainError> {
        Ok(self.metrics.flush()?)
    }

    /// Writes the checkpoint of `step` unless it exists.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`], without writing, if a weight is not finite, so that the previous checkpoint is kept; files that
    /// cannot be written.
    pub fn save(
        &mut self,
        step: u64,
        plan: &Plan,
        method: &dyn Method,
        optimizer: &Optimizer,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.flush()?;
        if self.saved.1 == Some(step) {
            return Ok(());
        }
        let checkpoint = capture(plan, method, optimizer, step);
        if let Some(value) = first_non_finite(&checkpoint) {
            return Err(self.non_finite("a weight", value)?);
        }
        let path = self.folder.checkpoint_file(step);
        checkpoint.save(&path)?;
        self.images.save(self.folder, self.dataset)?;
        self.folder.prune_checkpoints(step, plan.config.train.keep_checkpoints)?;
        self.saved = (Instant::now(), Some(step));
        observer.message(&format!("checkpoint after step {step}: {}", path.display()));
        Ok(())
    }

    /// Writes the names of the newest batch's images to a file and returns [`TrainError::NonFinite`] with its path.
    pub fn non_finite(&mut self, what: &'static str, value: f64) -> Result<TrainError, TrainError> {
        let (step, ids) = &self.last_batch;
        let names: Vec<_> = ids.iter().map(|&id| self.dataset.samples()[id].name.as_str()).collect();
        let dump = self.folder.non_finite_file(*step);
        write_atomically(&dump, (names.join("\n") + "\n").as_bytes())?;
        let error = TrainError::NonFinite { what, value, step: *step, dump };
        self.flush()?;
        Ok(error)
    }
}
