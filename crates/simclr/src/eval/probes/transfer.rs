//! The paper's transfer protocol on other data sets (B.8.1): logistic regression by L-BFGS on frozen features as they are,
//! `sum cross-entropy + lambda/2 |W|^2`, lambda chosen among 45 values by the set's metric on its validation part (or a fifth
//! of the training images), refitted on both.

use serde_json::json;
use simclr_data::{Dataset, augment::EvalTransform, dataset::Labels};
use tch::{Device, Tensor};

use super::linear;
use crate::{
    EvalError,
    eval::{
        context::EvalContext,
        data::{GroundTruth, ImageLabels, LabelledSet, splits::Split},
        features::{Columns, FeatureCache, FrozenEncoder, Part, ReadOptions},
        layer::Layer,
        options::{HOLD_OUT, LinearOptions, Metric, TransferSet},
        report::{FigureKey, ResultsCache, TransferRow},
    },
};

const A_FIFTH: &str = "a fifth of the training images";

/// Evaluates the trained encoder and the first control on all transfer sets.
pub(crate) struct TransferProbe<'c, 'a> {
    pub(crate) context: &'c mut EvalContext<'a>,
}

impl TransferProbe<'_, '_> {
    pub(crate) fn rows(&mut self) -> Result<Vec<TransferRow>, EvalError> {
        let config = self.context.config;
        config.transfer.iter().map(|set| self.row(set)).collect()
    }

    fn row(&mut self, transfer: &TransferSet) -> Result<TransferRow, EvalError> {
        let context = &mut *self.context;
        let (path, seed) = (&transfer.path, context.config.seed);
        let mut set = LabelledSet::open(path, &Labels::Auto, &context.encoder.decoding(), seed)?;
        set.identify(context.run, context.observer)?;
        let validation = set.validation(path, context.run, context.observer)?;
        let key = self.key(transfer, &set, validation.as_ref());
        let cached = self.context.cache.note(&key).and_then(|(note, _)| serde_json::from_value(note).ok());
        if let Some(cached) = cached {
            return Ok(TransferRow { data: path.display().to_string(), notes: set.notes, ..cached });
        }
        self.context.observer.message(&transfer.name());
        let parts = self.features(transfer, &set, validation.as_ref())?;
        let probe = Probe { parts: &parts, classes: set.train.classes().len(), metric: transfer.metric };
        let encoders = 0..self.encoders().len();
        let fits: Vec<ProbeFit> =
            encoders.map(|encoder| probe.fit(encoder, self.context.encoder.device())).collect();
        let truth = probe.test_truth();
        let row = TransferRow {
            data: path.display().to_string(),
            fingerprint: set.train.fingerprint(),
            metric: transfer.metric,
            images: (parts.train.labels.unique_images().len(), parts.test.labels.unique_images().len()),
            trained: fits[0].figure,
            random_init: fits.get(1).map(|fit| fit.figure),
            lambda: fits[0].lambda,
            validation: validation.map_or(A_FIFTH, |_| "its own part").into(),
            per_class: per_class(set.train.classes(), &truth, &fits[0].decision),
            predictions: ResultsCache::file(&key),
            finetuned: None,
            fresh: None,
            notes: set.notes,
        };
        self.context.cache.store(&key, json!(row), Some(&truth.predictions(&fits[0].decision)))?;
        Ok(row)
    }

    /// The trained encoder, and the control if there is one.
    fn encoders(&self) -> Vec<&FrozenEncoder> {
        std::iter::once(self.context.encoder).chain(self.context.controls.first()).collect()
    }

    fn key(
        &self,
        transfer: &TransferSet,
        set: &LabelledSet,
        validation: Option<&(Dataset, Vec<i64>)>,
    ) -> FigureKey {
        let encoder = self.context.encoder;
        let control = self.context.controls.first().map(FrozenEncoder::fingerprint);
        let validation = validation.map(|(set, _)| set.identity());
        // Earlier versions ranked images by logits.
        let metric = match transfer.metric {
            Metric::Map11 => json!([Metric::Map11, "by log-probability"]),
            other => json!(other),
        };
        FigureKey::new(
            &transfer.name(),
            json!({
                "features": [Some(encoder.fingerprint()), control],
                "data": [json!(set.identities()), json!(validation)],
                "transform": encoder.transform().of_the_transfer_protocol(),
                "revision": EvalTransform::REVISION,
                "metric": metric,
                "seed": self.context.config.seed,
            }),
        )
    }

    fn features(
        &mut self,
        transfer: &TransferSet,
        set: &LabelledSet,
        validation: Option<&(Dataset, Vec<i64>)>,
    ) -> Result<Parts, EvalError> {
        let context = &mut *self.context;
        let encoders: Vec<&FrozenEncoder> =
            std::iter::once(context.encoder).chain(context.controls.first()).collect();
        let columns = Columns { encoders: &encoders, layers: &[Layer::H], pixels: false };
        let options = context.read_options();
        let transform = options.transform.of_the_transfer_protocol();
        let options = ReadOptions { transform, ..options };
        let mut cache = FeatureCache::of(context.run, options, context.observer, context.stop);
        let name = &transfer.name()[..];
        let mut split = |set, indices, labels| {
            let read = cache.read(&Part { name, set, indices }, &columns)?;
            let labels = ImageLabels::of(set, labels, &read.indices, transfer.metric);
            Ok::<_, EvalError>(FeatureSplit { features: read.features, labels })
        };
        let mut train = split(&set.train, &set.train_indices, &set.train_labels)?;
        let test = split(set.test_set(), &set.test_indices, &set.test_labels)?;
        let rows = match validation {
            Some((held, labels)) => {
                let all: Vec<usize> = (0..held.len()).collect();
                let before = train.labels.len();
                train.append(split(held, &all, labels)?);
                ((0..before).collect(), (before..train.labels.len()).collect())
            }
            None => train.labels.hold_out(set.train.classes().len(), HOLD_OUT, context.config.seed),
        };
        if rows.1.is_empty() {
            let reason = "too few images to hold some out for choosing lambda".into();
            return Err(EvalError::Labels { path: transfer.path.clone(), reason });
        }
        Ok(Parts { train, test, rows })
    }
}

fn per_class(classes: &[String], truth: &GroundTruth, decision: &Tensor) -> Vec<(String, Option<f64>)> {
    let known = |accuracy: f64| (!accuracy.is_nan()).then_some(accuracy);
    classes.iter().cloned().zip(truth.per_class(decision).into_iter().map(known)).collect()
}

/// Features and labels of a part.
struct FeatureSplit {
    /// `[n, F]` of each encoder.
    features: Vec<Tensor>,
    labels: ImageLabels,
}

impl FeatureSplit {
    fn append(&mut self, other: Self) {
        for (features, more) in self.features.iter_mut().zip(&other.features) {
            *features = Tensor::cat(&[&*features, more], 0);
        }
        self.labels.append(other.labels);
    }
}

struct Parts {
    /// Includes the validation part.
    train: FeatureSplit,
    test: FeatureSplit,
    /// Rows of `train` to fit on, and to choose lambda by.
    rows: Split,
}

/// A linear classifier on one set.
struct Probe<'a> {
    parts: &'a Parts,
    classes: usize,
    metric: Metric,
}

struct ProbeFit {
    /// `[n, K]` of the test images.
    decision: Tensor,
    lambda: f64,
    figure: f64,
}

impl Probe<'_> {
    fn fit(&self, encoder: usize, device: Device) -> ProbeFit {
        let Parts { train, test, rows: (fit, held) } = self.parts;
        // Each image counts once in the metric, however many labels it has.
        let held = train.labels.first_rows(held);
        let held_truth = train.labels.truth(&held, self.classes);
        let score =
            |decision: &Tensor, _: &[i64]| held_truth.metric(&decision.to_device(Device::Cpu), self.metric);
        let features = train.features[encoder].to_device(device);
        let labels = Tensor::from_slice(&train.labels.labels).to_device(device);
        let data = (&features, &labels, self.classes as i64);
        let parts = [(positions(fit), positions(&held))];
        let fit = linear::fit_by(data, &parts, &score, &LinearOptions::transfer());
        let rows = Tensor::from_slice(&positions(&test.labels.unique_images()));
        let queries = test.features[encoder].index_select(0, &rows).to_device(device);
        let decision = fit.classifier.decision(&queries).to_device(Device::Cpu);
        let figure = self.test_truth().metric(&decision, self.metric);
        ProbeFit { decision, lambda: fit.lambda, figure }
    }

    fn test_truth(&self) -> GroundTruth {
        let labels = &self.parts.test.labels;
        labels.truth(&labels.unique_images(), self.classes)
    }
}

fn positions(rows: &[usize]) -> Vec<i64> {
    rows.iter().map(|&row| row as i64).collect()
}
