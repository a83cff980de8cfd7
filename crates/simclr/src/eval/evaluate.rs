//! A run and a labelled image set to [`Results`]: kNN and linear accuracy of frozen h with few and with all labels, next
//! to a random-init encoder, raw pixels and chance (spec 8.1, 8.2, 15.0). Newest checkpoint only: choosing an epoch by
//! test accuracy would be training on the test set. The protocols that train follow in `trained`, other data sets in
//! `transfer` and `transfer_finetune`.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde::Serialize;
use serde_json::json;
use simclr_data::{Dataset, augment::TransformChange, dataset::Labels};

use crate::eval::data::labelled_set::Sets;
use crate::eval::features::cache;
use crate::eval::features::frozen_encoder::{FrozenEncoder, load_encoder};
use crate::eval::finetune::protocols::{self, Bench, TrainedOptions};
use crate::eval::finetune::runner::Trainer;
use crate::eval::finetune::transfer::{TransferFinetune, Tuning};
use crate::eval::layer::Layer;
use crate::eval::probes::frozen::{Found, Frozen, Kept};
use crate::eval::probes::linear::LinearOptions;
use crate::eval::probes::transfer::{Transfer, TransferSet};
use crate::eval::report::history;
use crate::eval::report::results::{
    Cell, DataFacts, ProtocolFacts, Results, Row, RunFacts, SCHEMA, TransferRow,
};
use crate::eval::report::results_cache::Memory;
use crate::knn;
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalOptions {
    /// Neighbours; 0 = [`knn::default_k`].
    pub knn_k: i64,
    /// Temperature of the votes; none = plain majority.
    pub knn_temperature: Option<f64>,
    /// Shares of the training labels for the linear classifier, ascending.
    pub shares: Vec<f64>,
    /// Columns with so many labels per class, besides the shares. Where there are none and the default shares below 1 are the
    /// same number of labels, labels per class take the place of these shares.
    pub shots: Vec<usize>,
    /// Outputs of the model that are judged, a row for each.
    pub layers: Vec<Layer>,
    /// Class-balanced subsets drawn for each column with fewer than all labels.
    pub draws: usize,
    /// Lists of image names that take the place of drawn subsets, each for the share that it is nearest to.
    pub lists: Vec<PathBuf>,
    /// Random-init encoders, seeds counting up from the run's seed + 1.
    pub random_inits: usize,
    /// Seed of subsets, hold-outs and folds.
    pub seed: u64,
    /// What the encoder is to see otherwise than the run says.
    pub transform: TransformChange,
    /// Where labels of the evaluated set come from; those of the transfer sets come from these. The fingerprint of a set holds
    /// its labels.
    #[serde(skip)]
    pub labels: Labels,
    /// Images per forward pass.
    #[serde(skip)]
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    #[serde(skip)]
    pub threads: usize,
    /// The linear classifier; its seed is replaced by `seed`.
    pub linear: LinearOptions,
    /// Neighbours of the retrieval; 0 = no retrieval.
    pub retrieval_k: i64,
    /// The protocols that train.
    pub trained: TrainedOptions,
    /// Other data sets for the transfer protocol.
    pub transfer: Vec<TransferSet>,
    /// How to fine-tune on them, where that is wanted.
    pub transfer_finetune: Option<TransferFinetune>,
    /// Forget what earlier evaluations of the run have found, and do all of it again.
    #[serde(skip)]
    pub fresh: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            knn_k: 0,
            knn_temperature: Some(knn::TEMPERATURE),
            shares: vec![0.01, 0.1, 1.0],
            shots: Vec::new(),
            layers: vec![Layer::H],
            draws: 5,
            lists: Vec::new(),
            random_inits: 1,
            seed: 0,
            transform: TransformChange::default(),
            labels: Labels::Auto,
            batch: 256,
            threads: 0,
            linear: LinearOptions::default(),
            retrieval_k: 0,
            trained: TrainedOptions::default(),
            transfer: Vec::new(),
            transfer_finetune: None,
            fresh: false,
        }
    }
}

/// Evaluates the newest checkpoint of `run` on the labelled set at `data` and writes the results into the run folder: into
/// `results`, beside those of other sets and options, and as `results.json`.
///
/// Every figure is kept in the run folder as soon as it is known: an evaluation that was stopped or killed goes on, one
/// that is repeated with more protocols computes only those.
///
/// # Errors
/// See [`EvalError`]: no checkpoint, no labels, options out of range, more bad images than the run allows.
pub fn evaluate(
    run: &RunFolder,
    data: &Path,
    options: &EvalOptions,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Results, EvalError> {
    options.check()?;
    let note = run.hold().map_err(Box::new)?;
    note.iter().for_each(|note| observer.message(note));
    let trained = load_encoder(run)?.with_transform(&options.transform)?;
    options.layers.iter().try_for_each(|&layer| trained.layer_dim(layer).map(drop))?;
    let controls = trained.controls(options.random_inits)?;
    let mut sets = Sets::open((data, &options.labels), &trained.decoding(), options.seed)?;
    if options.fresh && run.path().join(FOLDER).exists() {
        fs_err::remove_dir_all(run.path().join(FOLDER))?;
    }
    sets.identify(run, observer)?;
    let memory = Memory::of(run);
    let before = trained.fingerprint();
    let frozen = Frozen {
        run,
        trained: &trained,
        controls: &controls,
        sets: &sets,
        options,
        memory: &memory,
        observer: &mut *observer,
        stop,
    };
    let Found { rows, kept, labels } = frozen.run()?;
    let transfer = Transfer { run, encoders: (&trained, controls.first()), options, memory: &memory, stop };
    let mut transfer = transfer.rows(observer)?;
    cache::forget(run)?;
    let mut trainer =
        Trainer { run, frozen: &trained, memory: &memory, options, observer, stop, trained: (0, 0) };
    let (trained_rows, protocols) = train(
        Bench { trainer: &mut trainer, data, sets: &sets, kept: &kept, labels: &labels },
        &mut transfer,
    )?;
    if trained.fingerprint() != before {
        return Err(EvalError::Other("the encoder changed under protocols that leave it as it is".into()));
    }
    let facts = sets.facts(data, &kept);
    let rows: Vec<Row> = rows.into_iter().chain(trained_rows).collect();
    let mut notes = notes(&trained, &sets, &kept);
    notes.extend(labels.note);
    notes.extend(absent_classes(&rows));
    notes.extend(few_labels(&rows));
    notes.extend(transfer.iter().flat_map(TransferRow::notes_on_set));
    let protocol = ProtocolFacts { trained: protocols, ..options.facts(kept.train.len(), &trained) };
    let (schema, simclr) = (SCHEMA, env!("CARGO_PKG_VERSION").into());
    let (run_facts, data, options) = (run_facts(&trained), facts, json!(options));
    let results = Results { schema, simclr, run: run_facts, data, protocol, options, rows, transfer, notes };
    history::write(run, &results)?;
    Ok(results)
}

/// The protocols that train: rows of their own, and figures in the rows of the transfer sets.
fn train(mut bench: Bench<'_, '_>, transfer: &mut [TransferRow]) -> Result<protocols::Rows, EvalError> {
    let options = bench.trainer.options;
    let on_a_transfer_set = options.transfer_finetune.as_ref().map_or(0, TransferFinetune::trainings);
    bench.trainer.trained.1 = bench.count() + transfer.len() * on_a_transfer_set;
    let (rows, mut protocols) = bench.rows()?;
    if let Some(how) = &options.transfer_finetune {
        let mut tuning = Tuning { trainer: bench.trainer, options: how };
        for (set, row) in options.transfer.iter().zip(transfer) {
            tuning.fill(set, row)?;
        }
        protocols.extend(tuning.words());
    }
    Ok((rows, protocols))
}

/// Where an evaluation keeps what it knows, in the run folder.
const FOLDER: &str = "evaluation";

impl EvalOptions {
    fn check(&self) -> Result<(), EvalError> {
        let wrong = |what: &str| Err(EvalError::Refused(format!("evaluation options: {what}")));
        if self.shares.is_empty() || self.shares.iter().any(|share| !(*share > 0.0 && *share <= 1.0)) {
            return wrong("expected shares of the labels above 0 and up to 1");
        }
        if self.draws == 0 || self.linear.lambdas.is_empty() || self.knn_k < 0 {
            return wrong("expected at least one draw, one lambda, and a k of 0 (automatic) or more");
        }
        if self.shots.contains(&0)
            || self.layers.is_empty()
            || repeated(&self.layers)
            || repeated(&self.shots)
        {
            return wrong("expected at least one layer, labels per class from 1, and each of them once");
        }
        self.trained.check()?;
        self.transfer_finetune.as_ref().map_or(Ok(()), TransferFinetune::check)?;
        if self.retrieval_k < 0 {
            return wrong("expected 0 (none) or more neighbours for the retrieval");
        }
        if self.knn_temperature.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
            return wrong("expected a temperature above 0");
        }
        Ok(())
    }

    /// Neighbours as used with a bank of `bank` images.
    pub(crate) fn k(&self, bank: usize) -> i64 {
        let bank = bank as i64;
        let k = if self.knn_k == 0 { knn::default_k(bank) } else { self.knn_k };
        k.min(bank)
    }

    fn facts(&self, bank: usize, trained: &FrozenEncoder) -> ProtocolFacts {
        let linear = &self.linear;
        let text = format!(
            "multinomial logistic regression on standardised features, L-BFGS; \
             (1/n) sum cross-entropy + lambda/2 |W|^2; lambda by accuracy inside the training part: stratified 20 % \
             hold-out of at most {} images, 5 folds below {} labels; refitted on all labels of the draw",
            linear.tune_images, linear.folds_below
        );
        ProtocolFacts {
            knn_k: self.k(bank),
            knn_temperature: self.knn_temperature,
            linear: text,
            lambdas: linear.lambdas.clone(),
            seed: self.seed,
            random_init_seeds: control_seeds(trained, self.random_inits).collect(),
            retrieval_k: self.retrieval_k,
            trained: Vec::new(),
        }
    }
}

/// The control must not repeat the run's own start.
fn control_seeds(trained: &FrozenEncoder, count: usize) -> impl Iterator<Item = u64> {
    let seed = trained.config().train.seed;
    (1..=count as u64).map(move |i| seed.wrapping_add(i))
}

impl FrozenEncoder {
    fn controls(&self, count: usize) -> Result<Vec<FrozenEncoder>, EvalError> {
        control_seeds(self, count)
            .map(|seed| Self::random_init(self.config(), self.channels(), seed))
            .collect()
    }
}

impl Sets {
    fn facts(&self, path: &Path, kept: &Kept) -> DataFacts {
        DataFacts {
            path: path.display().to_string(),
            classes: self.train.classes().len(),
            train_images: kept.train.len(),
            test_images: kept.test.len(),
            train_fingerprint: self.train.fingerprint(),
            test_fingerprint: self.test.as_ref().map(Dataset::fingerprint),
            train_content: self.train.content_digest(),
            test_content: self.test.as_ref().and_then(Dataset::content_digest),
            bad: kept.bad.iter().map(|bad| (bad.name.clone(), bad.reason.clone())).collect(),
        }
    }
}

fn run_facts(trained: &FrozenEncoder) -> RunFacts {
    let origin = trained.origin();
    let file = origin.checkpoint.as_ref().and_then(|path| path.file_name());
    RunFacts {
        encoder: trained.model().encoder.describe(),
        feature_dim: trained.feature_dim(),
        image_size: trained.image_size(),
        transform: Some(trained.transform()),
        channels: trained.channels(),
        checkpoint: file.map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        weights: trained.fingerprint(),
        step: origin.step,
        total_steps: origin.total_steps,
        seed: trained.config().train.seed,
    }
}

fn notes(trained: &FrozenEncoder, sets: &Sets, kept: &Kept) -> Vec<String> {
    let origin = trained.origin();
    let mut notes = [&origin.passed_over[..], &sets.notes].concat();
    notes.extend(origin.assumed.clone());
    notes.extend(trained.transform().note_on_shapes(&sets.train));
    if let Some(total) = origin.total_steps.filter(|&total| origin.step < total) {
        notes.push(format!("the run is unfinished: step {} of {total}", origin.step));
    }
    if sets.test.is_none() {
        let seed = sets.seed;
        notes.push(format!(
            "the set has no test split: a stratified 20 % (seed {seed}) was held out of the classifiers' training, but \
             pretraining saw these images without labels"
        ));
    }
    if !kept.bad.is_empty() {
        notes.push(format!("{} images could not be decoded and were left out", kept.bad.len()));
    }
    notes
}

fn repeated<T: PartialEq>(of: &[T]) -> bool {
    of.iter().enumerate().any(|(at, one)| of[..at].contains(one))
}

/// Classes without test images, which no figure by class counts.
fn absent_classes(rows: &[Row]) -> Option<String> {
    let (_, per_class) = rows.first()?.per_class.first()?;
    let absent: Vec<&str> = per_class.absent().collect();
    let some = absent.iter().take(10).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = absent.len().saturating_sub(10);
    let others = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!absent.is_empty()).then(|| format!("classes without test images, which have no recall: {some}{others}"))
}

/// Few labels fine-tuned beside the linear classifier on the very same labels, and beside it with all: what of a low
/// figure is the labels' number, and what the protocol's doing.
fn few_labels(rows: &[Row]) -> Vec<String> {
    let row = |name: &str| rows.iter().find(|row| row.name == name);
    let (Some(linear), Some(tuned)) = (row("trained h"), row(protocols::FINETUNED)) else {
        return Vec::new();
    };
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let all = linear
        .at(1.0)
        .map_or(String::new(), |cell| format!("; linear with all labels {}", percent(cell.mean)));
    let sentence = |cell: &Cell| {
        let beside = &linear.like(cell)?.accuracies;
        let same = &beside[..cell.accuracies.len().min(beside.len())];
        let mean = same.iter().sum::<f64>() / same.len() as f64;
        let (share, labels, tuned) = (cell.share_text(), cell.labels, percent(cell.mean));
        let (mean, draws) = (percent(mean), same.len());
        Some(format!("{share} ({labels}), the same {draws} draws: fine-tuned {tuned}, linear {mean}{all}"))
    };
    tuned.by_labels.iter().filter(|cell| cell.share < 1.0).filter_map(sentence).collect()
}
