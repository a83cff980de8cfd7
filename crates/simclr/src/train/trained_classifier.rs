//! The classifier that a supervised, fine-tuned or distilled run has trained.

use std::path::{Path, PathBuf};

use simclr_data::Dataset;
use tch::Device;

use super::{RunFolder, state::RunState};
use crate::{
    CheckpointError, ConfigError, Plan, RunConfig, TrainError, device::Precision, encoder::BatchNormScope,
    model::Model, params::load_weights, task::DistillConfig,
};

/// A network of the newest checkpoint of a run, with the names of its outputs.
#[derive(Debug)]
pub struct TrainedClassifier {
    /// Ends in a logit for each of `class_names`.
    pub model: Model,
    /// In the order of the outputs.
    pub class_names: Vec<String>,
    /// Of the run.
    pub config: RunConfig,
    /// Channels C of an image.
    pub channels: usize,
    path: PathBuf,
}

impl TrainedClassifier {
    /// # Errors
    /// A run without checkpoint, or that trains no classifier; see also [`Model::for_task`].
    pub fn load(run: &RunFolder, device: Device, precision: Precision) -> Result<Self, TrainError> {
        let (config, _) = RunConfig::load_run(&run.config_file(), &[])?;
        let missing = || CheckpointError::Missing { folder: run.path().to_owned() };
        let checkpoint = run.newest_checkpoint()?.0.ok_or_else(missing)?;
        let RunState { class_names, channels, .. } = RunState::of(&checkpoint)?;
        if config.task.objective.is_contrastive() || class_names.is_empty() {
            let reason = "expected a run with a classifier and the names of its classes: supervised, fine-tuned or \
                          distilled by this version";
            return Err(TrainError::RunFolder { path: run.path().to_owned(), reason: reason.into() });
        }
        let shape = (channels as i64, config.train.image_size as i64);
        let (classes, seed) = (class_names.len(), config.train.seed);
        let (encoder, head) = (&config.encoder, &config.head);
        let model = Model::for_task(&config.task, classes, encoder, head, shape, seed, device, precision)?;
        load_weights(model.params.named(), |name, shape| checkpoint.tensor(name, shape))?;
        Ok(Self { model, class_names, config, channels, path: run.path().to_owned() })
    }

    /// Checks that images of the run `plan` are the input that this classifier was trained on.
    pub(super) fn check_input(&self, plan: &Plan) -> Result<(), TrainError> {
        let stages = plan.is_chunked() && plan.config.train.batch_norm == BatchNormScope::Global;
        if stages && self.config.encoder.file.is_some() {
            let value = self.path.display().to_string();
            let expected =
                "train.batch_norm = \"chunk\" with chunks, because the teacher is a TorchScript module";
            return Err(value_error("distill.teacher", value, expected.into()).into());
        }
        let here = (plan.channels, plan.config.train.image_size, plan.config.data.value_range());
        let there = (self.channels, self.config.train.image_size, self.config.data.value_range());
        if here == there {
            return Ok(());
        }
        let text = |(channels, side, range)| format!("{channels} channels, {side} px, values {range}");
        let value = self.path.display().to_string();
        let expected =
            format!("a teacher of the images of this run ({}), got one of {}", text(here), text(there));
        Err(value_error("distill.teacher", value, expected).into())
    }

    /// The output that is the class of each image of `dataset`; -1 without a label, or if `distill` does not use its label.
    ///
    /// # Errors
    /// A class that the classifier does not have; a list with unknown names.
    pub(super) fn labels_of(
        &self,
        dataset: &Dataset,
        distill: &DistillConfig,
    ) -> Result<Vec<i64>, TrainError> {
        if distill.label_weight == 0.0 {
            return Ok(vec![-1; dataset.len()]);
        }
        let outputs = self.outputs_of(dataset)?;
        let mut labels: Vec<i64> = dataset
            .samples()
            .iter()
            .map(|sample| sample.label.map_or(-1, |label| outputs[label as usize]))
            .collect();
        if let Some(list) = &distill.labelled {
            keep_listed(&mut labels, &dataset.listed(list)?);
        }
        if labels.iter().all(|&label| label < 0) {
            let expected = "0, or labelled images in the data set";
            let value = distill.label_weight.to_string();
            return Err(value_error("distill.label_weight", value, expected.into()).into());
        }
        Ok(labels)
    }

    /// The output of each class of `dataset`, by name.
    ///
    /// # Errors
    /// A class that the classifier does not have.
    pub fn outputs_of(&self, dataset: &Dataset) -> Result<Vec<i64>, TrainError> {
        let output = |class: &String| {
            let position = self.class_names.iter().position(|name| name == class);
            let expected = || format!("a classifier that has the class `{class}` of the data set");
            position
                .map(|at| at as i64)
                .ok_or_else(|| value_error("classes", place(&self.path), expected()).into())
        };
        dataset.classes().iter().map(output).collect()
    }
}

fn place(path: &Path) -> String {
    format!("those of `{}`", path.display())
}

fn value_error(key: &str, value: String, expected: String) -> ConfigError {
    ConfigError::Value { key: key.into(), value, expected }
}

/// Removes the labels of images that are not `listed`.
fn keep_listed(labels: &mut [i64], listed: &[usize]) {
    let mut keep = vec![false; labels.len()];
    listed.iter().for_each(|&index| keep[index] = true);
    labels.iter_mut().zip(keep).filter(|(_, keep)| !keep).for_each(|(label, _)| *label = -1);
}
