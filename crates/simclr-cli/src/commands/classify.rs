//! `simclr classify` and `simclr predict`.

use std::process::ExitCode;

use simclr::{
    checkpoint::write_atomically,
    data::{dataset::as_one_path, output},
    eval::{
        classify::{ClassifyOptions, classify},
        semi_supervised::FinetuneOptions,
    },
    export::{PredictOptions, load_classifier, write_classifier},
    train::{Observer, RunFolder},
};

use super::pretrain::watch_signals;
use crate::{
    args::{Classify, Predict},
    failure::Failure,
    report::{Stages, Terminal},
    terminal,
};

/// Images per forward pass, unless set.
const BATCH: usize = 256;

/// The JSON file next to a classifier, which is replaced together with it only.
const REPORT: output::Kind = output::Kind { name: "the report on a classifier", is_earlier: is_report };

fn is_report(path: &std::path::Path) -> bool {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    report["candidates"].is_array() && report["test"].is_object()
}

/// Trains, chooses, writes the classifier and prints the report.
pub fn run(arguments: &Classify) -> Result<ExitCode, Failure> {
    if !(arguments.hold_out > 0.0 && arguments.hold_out < 1.0) {
        let text = format!("--hold-out {}: expected a share above 0 and below 1", arguments.hold_out);
        return Err(Failure::user(text, None));
    }
    if arguments.finetune.head_layers > 0 {
        let text = format!("--head-layers {}: expected 0, a classifier on h", arguments.finetune.head_layers);
        return Err(Failure::user(text, None));
    }
    let data = as_one_path(&arguments.labels)?;
    let folder = RunFolder::open(&arguments.run)?;
    let out = arguments.out.clone().unwrap_or_else(|| folder.path().join("classifier.safetensors"));
    let report_file = out.with_extension("json");
    output::check(&report_file, REPORT, Some(&data))?;
    let (stop, _) = watch_signals()?;
    let mut terminal = Terminal::new();
    let options = options(arguments);
    let (classifier, report) = classify(&folder, &data, &options, &mut terminal, &stop)?;
    let written = write_classifier(&classifier, Some(&report), &folder, &out)?;
    let json = format!("{:#}", serde_json::json!(report));
    write_atomically(&report_file, format!("{json}\n").as_bytes())?;
    terminal.message(&format!(
        "{}  {} classes, {} bytes; read back, its probabilities differ by at most {:.1e}; report: {}",
        out.display(),
        classifier.classes.len(),
        written.bytes,
        written.difference,
        report_file.display()
    ));
    drop(terminal);
    let text = report.text();
    terminal::result(if arguments.json { &json } else { text.trim_end() });
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &Classify) -> ClassifyOptions {
    let compute = &arguments.compute;
    let only = arguments.only.as_deref();
    let own = arguments.finetune.options();
    let finetune = FinetuneOptions {
        batch: own.batch.or(compute.batch),
        device: compute.device,
        threads: compute.threads,
        ..own
    };
    ClassifyOptions {
        labels: arguments.labels_from.clone(),
        hold_out: arguments.hold_out,
        seed: arguments.seed,
        linear: only != Some("fine-tuned"),
        finetune: (only != Some("linear")).then_some(finetune),
        read: (compute.batch.unwrap_or(BATCH), compute.threads.unwrap_or(0)),
        device: compute.device,
        transform: arguments.transform.change(),
    }
}

/// Writes the predictions, and prints the comparison with the labels of the set, if it has labels.
pub fn predict(arguments: &Predict) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let compute = &arguments.compute;
    let classifier = load_classifier(&arguments.model, compute.device)?;
    let classifier = classifier.with_transform(&arguments.transform.change())?;
    let options = PredictOptions {
        split: arguments.split,
        labels: arguments.labels_from.clone(),
        batch: compute.batch.unwrap_or(BATCH),
        threads: compute.threads.unwrap_or(0),
    };
    let mut stages = Stages::new();
    let found = simclr::export::predict(&classifier, &data, &arguments.out, &options, &mut |done, of| {
        stages.show_progress(done, of);
    })?;
    for bad in &found.bad {
        stages.show(&format!("skipped: {}", bad.reason));
    }
    let written = format!(
        "{}  {} rows of {} classes, {} images skipped",
        found.path.display(),
        found.images,
        classifier.classes.len(),
        found.bad.len()
    );
    if arguments.json {
        terminal::message(&written);
        terminal::result(&serde_json::json!(found.tested).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    terminal::result(&written);
    if let Some(tested) = &found.tested {
        terminal::result(&tested.text().trim_end().replace(" test images", " labelled images"));
    }
    Ok(ExitCode::SUCCESS)
}
