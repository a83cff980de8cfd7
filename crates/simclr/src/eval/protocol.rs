//! A run and a labelled image set to [`Results`]: kNN and linear accuracy of frozen h with few and with all labels, next
//! to a random-init encoder, raw pixels and chance (spec 8.1, 8.2, 15.0). Newest checkpoint only: choosing an epoch by
//! test accuracy would be training on the test set. The protocols that train follow in `trained`, other data sets in
//! `transfer`.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use simclr_data::Dataset;
use tch::Tensor;

use super::{
    features::{self, BadImage, Extractor, FrozenEncoder, ReadOptions, label_tensor, load_encoder},
    knn,
    linear::{self, LinearOptions},
    results::{Cell, DataFacts, ProtocolFacts, Results, Row, RunFacts, SCHEMA},
    sets::Sets,
    splits,
    trained::{Bench, TrainedOptions},
    transfer::{self, TransferSet},
};
use crate::{
    EvalError,
    checkpoint::write_atomically,
    train::{Observer, RunFolder},
};

/// How to evaluate.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOptions {
    /// Neighbours; 0 = [`knn::default_k`].
    pub knn_k: i64,
    /// Temperature of the votes; none = plain majority.
    pub knn_temperature: Option<f64>,
    /// Shares of the training labels for the linear classifier, ascending.
    pub shares: Vec<f64>,
    /// Class-balanced subsets drawn for each share below 1.
    pub draws: usize,
    /// Random-init encoders, seeds counting up from the run's seed + 1.
    pub random_inits: usize,
    /// Seed of subsets, hold-outs and folds.
    pub seed: u64,
    /// Images per forward pass.
    pub batch: usize,
    /// Decoding threads; 0 = all processors.
    pub threads: usize,
    /// The linear classifier; its seed is replaced by `seed`.
    pub linear: LinearOptions,
    /// Neighbours of the retrieval; 0 = no retrieval.
    pub retrieval_k: i64,
    /// The protocols that train.
    pub trained: TrainedOptions,
    /// Other data sets for the transfer protocol.
    pub transfer: Vec<TransferSet>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            knn_k: 0,
            knn_temperature: Some(knn::TEMPERATURE),
            shares: vec![0.01, 0.1, 1.0],
            draws: 5,
            random_inits: 1,
            seed: 0,
            batch: 256,
            threads: 0,
            linear: LinearOptions::default(),
            retrieval_k: 0,
            trained: TrainedOptions::default(),
            transfer: Vec::new(),
        }
    }
}

/// Evaluates the newest checkpoint of `run` on the labelled set at `data` and writes `results.json` into the run folder.
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
    let trained = load_encoder(run)?;
    let controls = trained.controls(options.random_inits)?;
    let sets = Sets::open(data, trained.channels(), options.seed)?;
    let material = Material::read(&sets, &trained, &controls, options, observer)?;
    let mut results = Results {
        schema: SCHEMA,
        simclr: env!("CARGO_PKG_VERSION").into(),
        run: run_facts(&trained),
        data: sets.facts(data, &material),
        protocol: options.facts(material.k(options), &trained),
        rows: material.rows(options, observer, stop)?,
        transfer: Vec::new(),
        notes: notes(&trained, &sets, &material),
    };
    let mut bench = Bench { run, frozen: &trained, data, sets: &sets, options, observer, stop };
    let (rows, protocols) = bench.rows()?;
    results.rows.extend(rows);
    results.protocol.trained = protocols;
    results.transfer = transfer::rows(&trained, controls.first(), options, observer)?;
    let json = serde_json::to_vec_pretty(&results).map_err(|error| EvalError::Other(error.to_string()))?;
    write_atomically(&run.results_file(), &json)?;
    Ok(results)
}

impl EvalOptions {
    fn check(&self) -> Result<(), EvalError> {
        let wrong = |what: &str| Err(EvalError::Refused(format!("evaluation options: {what}")));
        if self.shares.is_empty() || self.shares.iter().any(|share| !(*share > 0.0 && *share <= 1.0)) {
            return wrong("expected shares of the labels above 0 and up to 1");
        }
        if self.draws == 0 || self.linear.lambdas.is_empty() || self.knn_k < 0 {
            return wrong("expected at least one draw, one lambda, and a k of 0 (automatic) or more");
        }
        self.trained.check()?;
        if self.retrieval_k < 0 {
            return wrong("expected 0 (none) or more neighbours for the retrieval");
        }
        if self.knn_temperature.is_some_and(|t| !(t > 0.0 && t.is_finite())) {
            return wrong("expected a temperature above 0");
        }
        Ok(())
    }

    fn facts(&self, k: i64, trained: &FrozenEncoder) -> ProtocolFacts {
        let linear = &self.linear;
        let text = format!(
            "multinomial logistic regression on standardised features, L-BFGS; \
             (1/n) sum cross-entropy + lambda/2 |W|^2; lambda by accuracy inside the training part: stratified 20 % \
             hold-out of at most {} images, 5 folds below {} labels; refitted on all labels of the draw",
            linear.tune_images, linear.folds_below
        );
        ProtocolFacts {
            knn_k: k,
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

    /// A TorchScript module brings its own weights: the control is the module as it was given.
    fn control_name(&self) -> &'static str {
        if self.config().encoder.file.is_some() { "module as given" } else { "random-init h" }
    }
}

impl Sets {
    fn facts(&self, path: &Path, material: &Material) -> DataFacts {
        DataFacts {
            path: path.display().to_string(),
            classes: self.train.classes().len(),
            train_images: material.train_labels.len(),
            test_images: material.test_labels.size()[0] as usize,
            train_fingerprint: self.train.fingerprint(),
            test_fingerprint: self.test.as_ref().map(Dataset::fingerprint),
            bad: material.bad.iter().map(|bad| (bad.name.clone(), bad.reason.clone())).collect(),
        }
    }
}

/// Features of every row of the table, read once.
struct Material {
    /// (name, dimensions, encoders): one encoder, or several random ones; each as (bank `[n, F]`, test `[m, F]`).
    subjects: Vec<(&'static str, Vec<(Tensor, Tensor)>)>,
    train_labels: Vec<i64>,
    test_labels: Tensor,
    classes: usize,
    bad: Vec<BadImage>,
}

impl Material {
    fn read(
        sets: &Sets,
        trained: &FrozenEncoder,
        controls: &[FrozenEncoder],
        options: &EvalOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self, EvalError> {
        let read = ReadOptions::of(trained, options.batch, options.threads);
        let encoders = std::iter::once(trained).chain(controls);
        let forwards: Vec<_> = encoders.map(|encoder| |pixels: &Tensor| encoder.forward(pixels)).collect();
        let mut extractors: Vec<&Extractor<'_>> = forwards.iter().map(|f| f as _).collect();
        extractors.push(&|pixels| Ok(features::flat_pixels(pixels)));
        let mut part = |set: &Dataset, indices: &[usize], stage: &str| {
            observer.message(stage);
            features::extract(set, indices, &read, &extractors, &mut |_, _| {})
        };
        let train = part(&sets.train, &sets.train_indices, "features of the training part")?;
        let test_set = sets.test.as_ref().unwrap_or(&sets.train);
        let test = part(test_set, &sets.test_indices, "features of the test part")?;
        let mut pairs = train.features.into_iter().zip(test.features);
        let mut subjects = vec![("trained h", pairs.by_ref().take(1).collect::<Vec<_>>())];
        if !controls.is_empty() {
            subjects.push((trained.control_name(), pairs.by_ref().take(controls.len()).collect()));
        }
        subjects.push(("raw pixels", pairs.collect()));
        Ok(Self {
            subjects,
            train_labels: train.indices.iter().map(|&i| sets.train_labels[i]).collect(),
            test_labels: label_tensor(&sets.test_labels, &test.indices),
            classes: sets.train.classes().len(),
            bad: train.bad.into_iter().chain(test.bad).collect(),
        })
    }

    /// Neighbours as used.
    fn k(&self, options: &EvalOptions) -> i64 {
        let bank = self.train_labels.len() as i64;
        let k = if options.knn_k == 0 { knn::default_k(bank) } else { options.knn_k };
        k.min(bank)
    }

    fn rows(
        &self,
        options: &EvalOptions,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Vec<Row>, EvalError> {
        let mut rows = Vec::new();
        for (name, encoders) in &self.subjects {
            observer.message(&format!("kNN on {name}"));
            let knn = Some(self.knn_cell(encoders, options));
            let retrieval = (options.retrieval_k > 0).then(|| self.retrieval_cell(encoders, options));
            observer.message(&format!("linear classifier on {name}"));
            let linear = options.shares.iter().map(|&share| {
                if stop.load(Ordering::Relaxed) {
                    return Err(EvalError::Stopped);
                }
                Ok(self.linear_cell(encoders, share, options))
            });
            let by_labels = linear.collect::<Result<_, _>>()?;
            let dimensions = encoders.first().map_or(0, |(bank, _)| bank.size()[1]);
            rows.push(Row { name: (*name).into(), dimensions, knn, retrieval, by_labels });
        }
        rows.push(self.chance(&rows));
        Ok(rows)
    }

    fn knn_cell(&self, encoders: &[(Tensor, Tensor)], options: &EvalOptions) -> Cell {
        let labels = Tensor::from_slice(&self.train_labels);
        let (classes, k) = (self.classes as i64, self.k(options));
        let accuracy = |(bank, test): &(Tensor, Tensor)| {
            let predicted = knn::knn_predict(bank, &labels, test, classes, k, options.knn_temperature);
            knn::accuracy(&predicted, &self.test_labels)
        };
        Cell::of(1.0, self.train_labels.len(), encoders.iter().map(accuracy).collect())
    }

    fn retrieval_cell(&self, encoders: &[(Tensor, Tensor)], options: &EvalOptions) -> Cell {
        let labels = Tensor::from_slice(&self.train_labels);
        let precision = |(bank, test): &(Tensor, Tensor)| {
            knn::precision_at_k(bank, &labels, test, &self.test_labels, options.retrieval_k)
        };
        Cell::of(1.0, self.train_labels.len(), encoders.iter().map(precision).collect())
    }

    fn linear_cell(&self, encoders: &[(Tensor, Tensor)], share: f64, options: &EvalOptions) -> Cell {
        let linear = LinearOptions { seed: options.seed, ..options.linear.clone() };
        let all: Vec<usize> = (0..self.train_labels.len()).collect();
        let draws = if share < 1.0 { options.draws as u64 } else { 1 };
        let (mut accuracies, mut lambdas, mut fits, mut used) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for draw in 0..draws {
            let subset = if share < 1.0 {
                splits::balanced_subset(&self.train_labels, self.classes, share, options.seed, draw)
            } else {
                all.clone()
            };
            used = subset.len();
            let labels = label_tensor(&self.train_labels, &subset);
            let rows: Vec<i64> = subset.into_iter().map(|i| i as i64).collect();
            for (bank, test) in encoders {
                let bank = bank.index_select(0, &Tensor::from_slice(&rows));
                let fit = linear::fit(&bank, &labels, self.classes as i64, &linear);
                accuracies.push(fit.classifier.accuracy(test, &self.test_labels));
                lambdas.push(fit.lambda);
                fits.push(format!(
                    "{} after {} iterations",
                    linear::ending(fit.minimum.stop),
                    fit.minimum.iterations
                ));
            }
        }
        Cell { lambdas, fits, ..Cell::of(share, used, accuracies) }
    }

    /// Always naming the most frequent class of the training part (1 / K where classes are balanced).
    fn chance(&self, rows: &[Row]) -> Row {
        let counts = Tensor::from_slice(&self.train_labels).bincount::<Tensor>(None, self.classes as i64);
        let accuracy =
            knn::accuracy(&counts.argmax(0, false).expand_as(&self.test_labels), &self.test_labels);
        let cell = |like: &Cell| Cell::of(like.share, like.labels, vec![accuracy]);
        let by_labels = rows.first().map_or(Vec::new(), |row| row.by_labels.iter().map(cell).collect());
        let knn = Some(Cell::of(1.0, self.train_labels.len(), vec![accuracy]));
        Row { name: "chance".into(), dimensions: 0, knn, retrieval: None, by_labels }
    }
}

fn run_facts(trained: &FrozenEncoder) -> RunFacts {
    let origin = trained.origin();
    let file = origin.checkpoint.as_ref().and_then(|path| path.file_name());
    RunFacts {
        encoder: trained.model().encoder.describe(),
        feature_dim: trained.feature_dim(),
        image_size: trained.image_size(),
        channels: trained.channels(),
        checkpoint: file.map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        step: origin.step,
        total_steps: origin.total_steps,
        seed: trained.config().train.seed,
    }
}

fn notes(trained: &FrozenEncoder, sets: &Sets, material: &Material) -> Vec<String> {
    let origin = trained.origin();
    let mut notes = origin.passed_over.clone();
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
    if !material.bad.is_empty() {
        notes.push(format!("{} images could not be decoded and were left out", material.bad.len()));
    }
    notes
}
