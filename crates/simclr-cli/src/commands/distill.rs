//! `simclr distill`.

use std::process::ExitCode;

use simclr::{RunConfig, eval::semi_supervised::DistillOptions, train::RunFolder};

use super::finetune::{print, with_steps};
use crate::{args::Distill, failure::Failure};

/// Trains a student and prints its accuracy on the test part.
pub fn run(arguments: &Distill) -> Result<ExitCode, Failure> {
    let teacher = RunFolder::open(&arguments.teacher)?;
    let (teacher_config, _) = RunConfig::load_run(&teacher.config_file(), &[])?;
    let (recipe, written) = arguments.config.load()?;
    let mut options = DistillOptions::of(&teacher_config, &recipe);
    if written.has("encoder.name") || written.has("encoder.width") {
        options.config.encoder = recipe.encoder;
    }
    (options.temperature, options.label_weight) =
        (arguments.distill.temperature, arguments.distill.label_weight);
    let result = with_steps(&arguments.data, |steps| steps.distill(&teacher, &options, &arguments.out))?;
    print(&[("distilled", &result)], arguments.json);
    Ok(ExitCode::SUCCESS)
}
