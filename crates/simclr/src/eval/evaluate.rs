//! Evaluation of a run on a labelled set: kNN and linear accuracy of frozen h with few and with all labels, compared with a
//! random-init encoder, raw pixels and chance; then the protocols that train, and other data sets. Newest checkpoint only:
//! choosing an epoch by test accuracy would be training on the test set.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde_json::json;
use simclr_data::Dataset;

use super::{
    context::EvalContext,
    data::{LabelledSet, list_files},
    features::{DecodableImages, FrozenEncoder, cache, load_encoder_on},
    finetune::{
        protocols::{self, TrainedProtocols},
        runner::Runner,
        transfer::TransferTuning,
    },
    options::{EvalConfig, Protocol},
    probes::{
        frozen::{FrozenEvaluator, FrozenResults},
        transfer::TransferProbe,
    },
    report::{
        Cell, ResultsCache, Row, TransferRow, history,
        results::{DataFacts, ProtocolFacts, Results, RunFacts, SCHEMA},
    },
};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// Most classes listed in a note.
const LISTED: usize = 10;

/// Evaluates the newest checkpoint of `run` on the labelled set at `data` and writes the results into the run folder: as
/// `results.json`, and into `results`, which keeps those of other sets and options.
///
/// Every figure is cached in the run folder once computed: an interrupted evaluation resumes, and a repeated one computes
/// only additional protocols.
///
/// # Errors
/// See [`EvalError`]: no checkpoint, no labels, options out of range, more bad images than the run allows.
pub fn evaluate(
    run: &RunFolder,
    data: &Path,
    config: &EvalConfig,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Results, EvalError> {
    config.validate()?;
    if let Some(note) = run.hold().map_err(Box::new)? {
        observer.message(&note);
    }
    let encoder = load_encoder_on(run, config.device)?.with_transform(&config.transform)?;
    config.layers.iter().try_for_each(|&layer| encoder.layer_dim(layer).map(drop))?;
    let controls = random_inits(&encoder, config.random_inits)?;
    let mut set = LabelledSet::open(data, &config.labels, &encoder.decoding(), config.seed)?;
    if config.fresh && run.evaluation().exists() {
        discard(run, &set, &config.label_lists)?;
    }
    set.identify(run, observer)?;
    let (cache, before) = (ResultsCache::of(run), encoder.fingerprint());
    let mut context =
        EvalContext { run, encoder: &encoder, controls: &controls, config, cache: &cache, observer, stop };
    let FrozenResults { mut rows, images, subsets } = FrozenEvaluator::new(&mut context, &set).run()?;
    let mut transfer = TransferProbe { context: &mut context }.rows()?;
    cache::clear(run)?;
    let mut runner = Runner::new(&mut context);
    let training =
        TrainedProtocols { runner: &mut runner, data, set: &set, images: &images, subsets: &subsets };
    let (trained_rows, descriptions) = train(training, &mut transfer)?;
    if encoder.fingerprint() != before {
        return Err(EvalError::EncoderChanged { place: "evaluation".into() });
    }
    rows.extend(trained_rows);
    let mut notes = notes(&encoder, &set, &images);
    notes.extend(subsets.note);
    notes.extend(absent_classes(&rows).into_iter().chain(few_labels(&rows)));
    notes.extend(transfer.iter().flat_map(notes_on_set));
    let results = Results {
        schema: SCHEMA,
        simclr: env!("CARGO_PKG_VERSION").into(),
        run: run_facts(&encoder),
        data: data_facts(&set, data, &images),
        protocol: ProtocolFacts {
            trained: descriptions,
            ..protocol_facts(config, images.train.len(), &encoder)
        },
        options: json!(config),
        rows,
        transfer,
        notes,
    };
    history::write(run, &results)?;
    Ok(results)
}

/// Deletes what earlier evaluations of `run` have left, except for `lists`, once these are readable.
fn discard(run: &RunFolder, set: &LabelledSet, lists: &[PathBuf]) -> Result<(), EvalError> {
    for list in lists {
        set.train.listed(list)?;
    }
    remove_except(&fs_err::canonicalize(run.evaluation())?, &list_files(lists)?)
}

/// Deletes everything in `folder` but the files `kept`.
fn remove_except(folder: &Path, kept: &[PathBuf]) -> Result<(), EvalError> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // A folder that holds one of them, or one of them.
        let is_kept = kept.iter().any(|file| file.starts_with(&path));
        match (entry.file_type()?.is_dir(), is_kept) {
            (true, true) => remove_except(&path, kept)?,
            (true, false) => fs_err::remove_dir_all(path)?,
            (false, false) => fs_err::remove_file(path)?,
            (false, true) => {}
        }
    }
    Ok(())
}

/// Runs the protocols that train; returns their rows and adds figures to the rows of the transfer sets.
fn train(
    mut training: TrainedProtocols<'_, '_, '_>,
    transfer: &mut [TransferRow],
) -> Result<protocols::Rows, EvalError> {
    let config = training.runner.context.config;
    let tuning = config.runs(Protocol::TransferFinetune);
    let per_set = if tuning { TransferTuning::trainings(&config.transfer_finetune) } else { 0 };
    training.runner.total = training.trainings() + transfer.len() * per_set;
    let (rows, mut descriptions) = training.rows()?;
    if tuning {
        let mut tuning = TransferTuning { runner: training.runner };
        for (set, row) in config.transfer.iter().zip(transfer) {
            tuning.fill(set, row)?;
        }
        descriptions.extend(tuning.descriptions());
    }
    Ok((rows, descriptions))
}

/// Seeds of the controls, which must differ from the run's own initialisation.
fn control_seeds(encoder: &FrozenEncoder, count: usize) -> impl Iterator<Item = u64> {
    let seed = encoder.config().train.seed;
    (1..=count as u64).map(move |i| seed.wrapping_add(i))
}

fn random_inits(encoder: &FrozenEncoder, count: usize) -> Result<Vec<FrozenEncoder>, EvalError> {
    let control = |seed| FrozenEncoder::random_init(encoder.config(), encoder.channels(), seed);
    control_seeds(encoder, count).map(control).collect()
}

fn protocol_facts(config: &EvalConfig, bank: usize, encoder: &FrozenEncoder) -> ProtocolFacts {
    let linear = &config.linear;
    let description = format!(
        "multinomial logistic regression on standardised features, L-BFGS; \
         (1/n) sum cross-entropy + lambda/2 |W|^2; lambda by accuracy inside the training part: stratified 20 % \
         hold-out of at most {} images, 5 folds below {} labels; refitted on all labels of the draw",
        linear.tune_images, linear.folds_below
    );
    ProtocolFacts {
        knn_k: config.neighbours(bank),
        knn_temperature: config.knn_temperature,
        linear: description,
        lambdas: linear.lambdas.clone(),
        seed: config.seed,
        random_init_seeds: control_seeds(encoder, config.random_inits).collect(),
        retrieval_k: config.retrieval_neighbours(),
        trained: Vec::new(),
    }
}

fn data_facts(set: &LabelledSet, path: &Path, images: &DecodableImages) -> DataFacts {
    DataFacts {
        path: path.display().to_string(),
        classes: set.train.classes().len(),
        train_images: images.train.len(),
        test_images: images.test.len(),
        train_fingerprint: set.train.fingerprint(),
        test_fingerprint: set.test.as_ref().map(Dataset::fingerprint),
        train_content: set.train.content_digest(),
        test_content: set.test.as_ref().and_then(Dataset::content_digest),
        bad: images.bad.iter().map(|bad| (bad.name.clone(), bad.reason.clone())).collect(),
    }
}

fn run_facts(encoder: &FrozenEncoder) -> RunFacts {
    let origin = encoder.origin();
    let file = origin.checkpoint.as_ref().and_then(|path| path.file_name());
    RunFacts {
        encoder: encoder.model().encoder.describe(),
        feature_dim: encoder.feature_dim(),
        image_size: encoder.image_size(),
        transform: Some(encoder.transform()),
        channels: encoder.channels(),
        checkpoint: file.map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        weights: encoder.fingerprint(),
        step: origin.step,
        total_steps: origin.total_steps,
        seed: encoder.config().train.seed,
    }
}

fn notes(encoder: &FrozenEncoder, set: &LabelledSet, images: &DecodableImages) -> Vec<String> {
    let origin = encoder.origin();
    let mut notes = [&origin.passed_over[..], &set.notes].concat();
    notes.extend(origin.assumed.clone());
    notes.extend(encoder.transform().notes_on_images(&set.train));
    if let Some(total) = origin.total_steps.filter(|&total| origin.step < total) {
        notes.push(format!("the run is unfinished: step {} of {total}", origin.step));
    }
    if set.test.is_none() {
        let seed = set.seed;
        notes.push(format!(
            "the set has no test split: a stratified 20 % (seed {seed}) was held out of the classifiers' training, but \
             pretraining saw these images without labels"
        ));
    }
    if !images.bad.is_empty() {
        notes.push(format!("{} images could not be decoded and were left out", images.bad.len()));
    }
    notes
}

/// Notes of a transfer set, with its name.
fn notes_on_set(row: &TransferRow) -> impl Iterator<Item = String> {
    row.notes.iter().map(|note| format!("{}: {note}", row.data))
}

/// Classes without test images, which the figures by class leave out.
fn absent_classes(rows: &[Row]) -> Option<String> {
    let (_, per_class) = rows.first()?.per_class.first()?;
    let absent: Vec<&str> = per_class.absent().collect();
    let some = absent.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = absent.len().saturating_sub(LISTED);
    let others = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!absent.is_empty()).then(|| format!("classes without test images, which have no recall: {some}{others}"))
}

/// Compares fine-tuning with few labels to the linear classifier on the same labels and on all, which separates the effect
/// of the number of labels from that of the protocol.
fn few_labels(rows: &[Row]) -> Vec<String> {
    let row = |name: &str| rows.iter().find(|row| row.name == name);
    let (Some(linear), Some(tuned)) = (row("trained h"), row(protocols::FINETUNED)) else {
        return Vec::new();
    };
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let all = linear.at(1.0).map(|cell| format!("; linear with all labels {}", percent(cell.mean)));
    let all = all.unwrap_or_default();
    let note = |cell: &Cell| {
        let accuracies = &linear.in_column_of(cell)?.accuracies;
        let same = &accuracies[..cell.accuracies.len().min(accuracies.len())];
        let mean = percent(same.iter().sum::<f64>() / same.len() as f64);
        let (column, labels, tuned) = (cell.column_name(), cell.labels, percent(cell.mean));
        let draws = same.len();
        Some(format!("{column} ({labels}), the same {draws} draws: fine-tuned {tuned}, linear {mean}{all}"))
    };
    tuned.by_labels.iter().filter(|cell| !cell.has_all_labels()).filter_map(note).collect()
}
