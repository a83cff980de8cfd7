//! `simclr finetune`.

use std::{path::Path, process::ExitCode};

use simclr::{
    eval::semi_supervised::{ClassifierResult, LabelledData, Steps},
    train::RunFolder,
};

use super::pretrain::watch_signals;
use crate::{
    args::{Finetune, LabelledArguments},
    failure::Failure,
    report::Terminal,
    terminal,
};

/// Trains a classifier and prints its accuracy on the test part.
pub fn run(arguments: &Finetune) -> Result<ExitCode, Failure> {
    let own = arguments.finetune.options();
    let options = simclr::eval::semi_supervised::FinetuneOptions {
        from_scratch: arguments.from_scratch,
        batch: own.batch.or(arguments.compute.batch),
        device: arguments.compute.device,
        threads: arguments.compute.threads,
        ..own
    };
    let run = RunFolder::open(&arguments.run)?;
    let result = with_steps(&arguments.data, |steps| steps.finetune(&run, &options, &arguments.out))?;
    print(&[("fine-tuned", &result)], arguments.json);
    Ok(ExitCode::SUCCESS)
}

/// Runs `work` with the labelled images of `arguments`, and progress on the terminal.
pub fn with_steps<T>(
    arguments: &LabelledArguments,
    work: impl FnOnce(&mut Steps<'_>) -> Result<T, simclr::EvalError>,
) -> Result<T, Failure> {
    if !(arguments.labels > 0.0 && arguments.labels <= 1.0) {
        let text = format!("--labels {}: expected a share above 0, at most 1", arguments.labels);
        return Err(Failure::user(text, None));
    }
    let path = simclr::data::dataset::as_one_path(&arguments.data)?;
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let data = LabelledData {
        path: Path::new(&path),
        labels: arguments.labels_from.clone(),
        fraction: arguments.labels,
        seed: arguments.label_seed,
        hold_out_seed: arguments.label_seed,
    };
    Ok(work(&mut Steps { data, observer: &mut terminal, stop: &stop })?)
}

/// Prints classifiers with their accuracies.
pub fn print(classifiers: &[(&str, &ClassifierResult)], json: bool) {
    let text = if json {
        let named = classifiers.iter().map(|(name, result)| ((*name).to_owned(), serde_json::json!(result)));
        serde_json::Value::Object(named.collect()).to_string()
    } else {
        classifiers.iter().map(|(name, result)| line(name, result)).collect::<Vec<_>>().join("\n")
    };
    terminal::result(&text);
}

fn line(name: &str, result: &ClassifierResult) -> String {
    let ClassifierResult { run, accuracy, images, labels } = result;
    format!("{name}  {:.2} % of {images} test images, {labels} labels  {}", 100.0 * accuracy, run.display())
}
