//! `simclr self-train`.

use std::process::ExitCode;

use simclr::{
    RunConfig,
    encoder::EncoderConfig,
    eval::semi_supervised::{SelfTraining, self_train},
};

use super::finetune::{print, with_steps};
use crate::{
    args::{SelfTrain, toml_string},
    failure::Failure,
};

/// Runs all steps and prints the accuracies of teacher, student and control.
pub fn run(arguments: &SelfTrain) -> Result<ExitCode, Failure> {
    let pretraining = arguments.config.load()?;
    let options = SelfTraining {
        student: arguments.student.as_deref().map(student).transpose()?,
        pretraining,
        finetuning: arguments.finetune.options(),
        epochs: arguments.distill_epochs,
        temperature: arguments.distill.temperature,
        label_weight: arguments.distill.label_weight,
    };
    let found = with_steps(&arguments.data, |steps| self_train(steps, &options, &arguments.out))?;
    let all = [("teacher", &found.teacher), ("student", &found.student), ("control", &found.supervised)];
    print(&all, arguments.json);
    Ok(ExitCode::SUCCESS)
}

/// The encoder `name` with defaults otherwise.
fn student(name: &str) -> Result<EncoderConfig, Failure> {
    Ok(RunConfig::load(None, &[format!("encoder.name={}", toml_string(name))])?.encoder)
}
