//! A classifier for use: the better one of a linear classifier on frozen h and a fine-tuned network, by a hold-out, with calibrated
//! probabilities; and the report on it.

mod calibration; // logits -> temperature, ECE
mod report;

use std::{path::Path, sync::atomic::AtomicBool};

use simclr_data::{augment::TransformChange, dataset::Labels};
use tch::{Device, Kind, Tensor};

pub use calibration::{Bin, Calibration};
pub use report::{Candidate, ClassifierReport, Tested};

use super::{
    data::{LabelledSet, checksum, splits},
    features::{self, FrozenEncoder, ReadOptions, label_tensor, load_encoder_on},
    options::LinearOptions,
    probes::linear,
    semi_supervised::{FinetuneOptions, LabelledData, Steps},
};
use crate::{
    EvalError,
    device::{DeviceChoice, Precision},
    train::{Observer, RunFolder, trained_classifier::TrainedClassifier},
};

/// Options of [`classify`].
#[derive(Debug, Clone)]
pub struct ClassifyOptions {
    /// Source of the labels.
    pub labels: Labels,
    /// Share of the training labels of each class that is held out.
    pub hold_out: f64,
    /// Seed of the hold-outs.
    pub seed: u64,
    /// Whether a linear classifier is a candidate.
    pub linear: bool,
    /// Hyper-parameters of the fine-tuned candidate; none: it is no candidate.
    pub finetune: Option<FinetuneOptions>,
    /// Images per forward pass, decoding threads.
    pub read: (usize, usize),
    /// Device instead of the run's.
    pub device: Option<DeviceChoice>,
    /// Changes of the run's input transform, which the classifier keeps.
    pub transform: TransformChange,
}

/// An encoder with a linear classifier on its h.
#[derive(Debug)]
pub struct Classifier {
    /// Images to h.
    pub encoder: FrozenEncoder,
    /// `[K, F]`, `f32`: softmax(h W^T + b) are the probabilities.
    pub weight: Tensor,
    /// `[K]`.
    pub bias: Tensor,
    /// K names.
    pub classes: Vec<String>,
}

impl Classifier {
    /// The classifier of a fine-tuned, supervised or distilled run, without layers of a head below it.
    ///
    /// # Errors
    /// A run without such a classifier.
    pub fn of_run(run: &RunFolder, device: Option<DeviceChoice>) -> Result<Self, EvalError> {
        let encoder = load_encoder_on(run, device)?;
        let trained = TrainedClassifier::load(run, Device::Cpu, Precision::F32).map_err(Box::new)?;
        let named = |wanted: &str| {
            let found = trained.model.params.named().find(|(name, _)| *name == wanted);
            found.map(|(_, tensor)| tensor.detach().copy()).expect("a classifier has a weight and a bias")
        };
        let (weight, bias) = (named("classifier.weight"), named("classifier.bias"));
        if weight.size()[1] != encoder.feature_dim() {
            let reason = "its classifier is on a layer of the head, expected one on h (task.head_layers = 0)";
            return Err(EvalError::File { path: run.path().to_owned(), reason: reason.into() });
        }
        Ok(Self { encoder, weight, bias, classes: trained.class_names })
    }

    /// With another input transform.
    ///
    /// # Errors
    /// A share out of range.
    pub fn with_transform(self, change: &TransformChange) -> Result<Self, EvalError> {
        Ok(Self { encoder: self.encoder.with_transform(change)?, ..self })
    }

    /// Logits `[B, K]` of `images` `[B, C, S, S]`, on the CPU.
    ///
    /// # Errors
    /// See [`FrozenEncoder::forward`].
    pub fn logits(&self, images: &Tensor) -> Result<Tensor, EvalError> {
        Ok(self.encoder.forward(images)?.linear(&self.weight, Some(&self.bias)))
    }

    /// With logits divided by `temperature`.
    fn scaled(self, temperature: f64) -> Self {
        let scaled = |tensor: &Tensor| tensor / temperature;
        Self { weight: scaled(&self.weight), bias: scaled(&self.bias), ..self }
    }
}

/// Images of a set with their labels.
struct Part<'a> {
    set: &'a simclr_data::Dataset,
    images: &'a [usize],
    labels: &'a [i64],
}

impl Part<'_> {
    /// Logits by `classifier` and labels of the decodable images.
    fn logits(&self, classifier: &Classifier, read: (usize, usize)) -> Result<(Tensor, Tensor), EvalError> {
        let options = ReadOptions::of(&classifier.encoder, read.0, read.1);
        let logits = |pixels: &Tensor| classifier.logits(pixels);
        let read = features::extract(self.set, self.images, &options, &[&logits], &mut |_, _| {})?;
        let labels = label_tensor(self.labels, &read.indices);
        Ok((read.features[0].shallow_clone(), labels))
    }
}

/// Trains classifiers on the labelled images at `data`, from the network of `run`, and reports on the better one.
///
/// # Errors
/// See [`EvalError`]: no checkpoint, no labels, too few images, a training that fails or is stopped.
pub fn classify(
    run: &RunFolder,
    data: &Path,
    options: &ClassifyOptions,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Classifier, ClassifierReport), EvalError> {
    run.hold().map_err(Box::new)?;
    let encoder = load_encoder_on(run, options.device)?.with_transform(&options.transform)?;
    let set = LabelledSet::open(data, &options.labels, &encoder.decoding(), options.seed)?;
    let classes = set.train.classes().to_vec();
    let own: Vec<i64> = set.train_indices.iter().map(|&index| set.train_labels[index]).collect();
    let (fit, held) = splits::hold_out(&own, classes.len(), options.hold_out, options.seed);
    let images =
        |positions: Vec<usize>| positions.into_iter().map(|at| set.train_indices[at]).collect::<Vec<_>>();
    let (fit, held) = (images(fit), images(held));
    if held.is_empty() {
        let reason = "too few images to hold some out".into();
        return Err(EvalError::Labels { path: data.to_owned(), reason });
    }
    let part = |images| Part { set: &set.train, images, labels: &set.train_labels };
    let key = tuned_key(&encoder, options, &fit);
    let mut found = Vec::new();
    if options.linear {
        observer.message("linear classifier on frozen h");
        found.push(("linear", linear(encoder, &part(&fit), classes.clone(), options)?));
    }
    if let Some(finetune) = &options.finetune {
        observer.message("fine-tuning");
        let labels = options.labels.clone();
        let seed = options.seed;
        let data = LabelledData { path: data, labels, fraction: 1.0, seed, hold_out_seed: seed };
        let out = run.path().join("classifiers").join(format!("{}-{key}", set.train.fingerprint()));
        let tuned = Steps { data, observer, stop }.finetune_on((run, &set), finetune, &fit, &out)?;
        found.push((
            "fine-tuned",
            Classifier::of_run(&tuned, options.device)?.with_transform(&options.transform)?,
        ));
    }
    choose(found, &part(&held), &set, fit.len(), options.read)
}

/// 8 hex digits over what a fine-tuned run depends on, besides the labelled set.
fn tuned_key(encoder: &FrozenEncoder, options: &ClassifyOptions, fit: &[usize]) -> String {
    let finetune =
        options.finetune.clone().map(|finetune| FinetuneOptions { device: None, threads: None, ..finetune });
    let text = format!("{} {} {finetune:?}", encoder.fingerprint(), checksum(fit));
    blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
}

/// The linear classifier on h of `fit`, by logistic regression.
fn linear(
    encoder: FrozenEncoder,
    fit: &Part<'_>,
    classes: Vec<String>,
    options: &ClassifyOptions,
) -> Result<Classifier, EvalError> {
    let read = ReadOptions::of(&encoder, options.read.0, options.read.1);
    let h = features::features(&encoder, fit.set, fit.images, &read, &mut |_, _| {})?;
    let labels = label_tensor(fit.labels, &h.indices);
    let linear_options = LinearOptions { seed: options.seed, ..LinearOptions::default() };
    let fitted = linear::fit(&h.features[0], &labels, classes.len() as i64, &linear_options);
    let (weight, bias) = fitted.classifier.on_raw_features();
    let single = |tensor: Tensor| tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous();
    Ok(Classifier { encoder, weight: single(weight), bias: single(bias), classes })
}

/// The candidate with the highest accuracy on `held`, of equal ones the one with the lower negative log likelihood, scaled by its
/// temperature, and the report on it.
fn choose(
    found: Vec<(&'static str, Classifier)>,
    held: &Part<'_>,
    set: &LabelledSet,
    train_images: usize,
    read: (usize, usize),
) -> Result<(Classifier, ClassifierReport), EvalError> {
    let mut candidates = Vec::new();
    for (name, classifier) in &found {
        let (logits, labels) = held.logits(classifier, read)?;
        let right = logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Double);
        let temperature = calibration::temperature(&logits, &labels);
        candidates.push(Candidate {
            name: (*name).to_owned(),
            accuracy: right.mean(Kind::Double).double_value(&[]),
            nll: calibration::nll(&logits, &labels, 1.0),
            temperature,
        });
    }
    let better = |a: &&(Candidate, Classifier), b: &&(Candidate, Classifier)| {
        a.0.accuracy.total_cmp(&b.0.accuracy).then(b.0.nll.total_cmp(&a.0.nll))
    };
    let pairs: Vec<(Candidate, Classifier)> =
        candidates.iter().cloned().zip(found.into_iter().map(|(_, classifier)| classifier)).collect();
    let best = pairs.iter().max_by(better).map(|(candidate, _)| candidate.clone());
    let best = best.ok_or_else(|| EvalError::Mixed {
        reason: "no classifier is a candidate".into(),
        hint: "allow the linear or the fine-tuned one".into(),
    })?;
    let chosen = pairs.into_iter().find(|(candidate, _)| *candidate == best);
    let classifier = chosen.expect("the best is one of them").1;
    let test = Part { set: set.test_set(), images: &set.test_indices, labels: &set.test_labels };
    let (logits, labels) = test.logits(&classifier, read)?;
    let before = Calibration::of(&logits.softmax(1, Kind::Double), &labels).ece;
    let tested = Tested::of(&(&logits / best.temperature), &labels, &classifier.classes);
    let report = ClassifierReport {
        chosen: best.name,
        candidates,
        train_images,
        hold_out_images: held.images.len(),
        test: tested,
        ece_before_scaling: before,
        notes: set.notes.clone(),
    };
    Ok((classifier.scaled(best.temperature), report))
}
