//! Frozen features of other data sets under the paper's transfer protocol (B.8.1; spec 8.4, 8.6): logistic regression by
//! L-BFGS on the features as they are, `sum cross-entropy + lambda/2 |W|^2`, lambda chosen among 45 values by the set's
//! metric on its validation part (or a fifth of the training images), refitted on both. Fine-tuning on them: `transfer_finetune`.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use serde::Serialize;
use serde_json::json;
use simclr_data::{Dataset, dataset::Labels};
use tch::{Device, Tensor};

use crate::eval::data::image_labels::Members;
use crate::eval::data::labelled_set::Sets;
use crate::eval::evaluate::EvalOptions;
use crate::eval::features::cache::{Part, Reading};
use crate::eval::features::frozen_encoder::{FrozenEncoder, ReadOptions};
use crate::eval::layer::Layer;
use crate::eval::probes::linear::{self, LinearOptions, Penalty, log_spaced};
use crate::eval::report::results::{Metric, TransferRow};
use crate::eval::report::results_cache::{Key, Memory};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// A data set and what it is judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TransferSet {
    /// Class folders or any other labelled set.
    pub path: PathBuf,
    /// Reported figure.
    pub metric: Metric,
}

impl TransferSet {
    /// For people, and for the names of files.
    pub(crate) fn place(&self) -> String {
        format!("transfer to {}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

/// The protocol for one run.
pub(crate) struct Transfer<'a> {
    pub(crate) run: &'a RunFolder,
    /// The trained encoder, and the control beside it.
    pub(crate) encoders: (&'a FrozenEncoder, Option<&'a FrozenEncoder>),
    pub(crate) options: &'a EvalOptions,
    pub(crate) memory: &'a Memory,
    pub(crate) stop: &'a AtomicBool,
}

/// Share of the training images that lambda is chosen on where a set brings no validation part.
pub(crate) const HOLD_OUT: f64 = 0.2;
const A_FIFTH: &str = "a fifth of the training images";

impl Transfer<'_> {
    /// One row for each set.
    pub(crate) fn rows(&self, observer: &mut dyn Observer) -> Result<Vec<TransferRow>, EvalError> {
        self.options.transfer.iter().map(|set| self.row(set, observer)).collect()
    }

    fn row(&self, set: &TransferSet, observer: &mut dyn Observer) -> Result<TransferRow, EvalError> {
        let (trained, control) = self.encoders;
        let mut sets = Sets::open((&set.path, &Labels::Auto), &trained.decoding(), self.options.seed)?;
        sets.identify(self.run, observer)?;
        let validation = sets.validation(&set.path, self.run, observer)?;
        let chosen_on = validation.as_ref().map(|(set, _)| set.identity());
        let place = set.place();
        let key = Key::new(
            &place,
            json!({
                "features": [Some(trained.fingerprint()), control.map(FrozenEncoder::fingerprint)],
                "data": [json!(sets.identities()), json!(chosen_on)],
                "transform": trained.transform().of_the_transfer_protocol(), "metric": set.metric, "seed": self.options.seed,
            }),
        );
        let known = self.memory.note(&key).and_then(|(note, _)| serde_json::from_value(note).ok());
        if let Some(known) = known {
            return Ok(TransferRow { data: set.path.display().to_string(), notes: sets.notes, ..known });
        }
        observer.message(&place);
        let (train, test, parts) = self.features(set, &sets, validation.as_ref(), observer)?;
        let encoders = 1 + usize::from(control.is_some());
        let classes = sets.train.classes();
        let judged: Vec<Judged> = (0..encoders)
            .map(|encoder| {
                judge(encoder, &train, &test, &parts, (classes.len(), set.metric), trained.device())
            })
            .collect();
        let truth = test.members.truth(&test.members.once(), classes.len());
        let per_class = truth.per_class(&judged[0].decision);
        let known = |accuracy: f64| (!accuracy.is_nan()).then_some(accuracy);
        let row = TransferRow {
            data: set.path.display().to_string(),
            fingerprint: sets.train.fingerprint(),
            metric: set.metric,
            images: (train.members.once().len(), test.members.once().len()),
            trained: judged[0].figure,
            random_init: judged.get(1).map(|judged| judged.figure),
            lambda: judged[0].lambda,
            validation: chosen_on.map_or(A_FIFTH, |_| "its own part").into(),
            per_class: classes.iter().cloned().zip(per_class.into_iter().map(known)).collect(),
            predictions: self.memory.file(&key),
            finetuned: None,
            fresh: None,
            notes: sets.notes.clone(),
        };
        self.memory.keep(&key, json!(row), Some(&truth.answers(&judged[0].decision)))?;
        Ok(row)
    }

    /// Training part, validation part included, and test part of `set`; rows to fit on and rows to choose by.
    fn features(
        &self,
        set: &TransferSet,
        sets: &Sets,
        validation: Option<&(Dataset, Vec<i64>)>,
        observer: &mut dyn Observer,
    ) -> Result<(Half, Half, Parts), EvalError> {
        let (trained, control) = self.encoders;
        let encoders: Vec<&FrozenEncoder> = std::iter::once(trained).chain(control).collect();
        let read = ReadOptions::of(trained, self.options.batch, self.options.threads);
        let transform = read.transform.of_the_transfer_protocol();
        let mut reading = Reading::of(self.run, ReadOptions { transform, ..read }, observer, self.stop);
        let name = &set.place()[..];
        let mut part = |of, indices, labels| {
            let read = reading.read(&Part { name, set: of, indices }, &encoders, &[Layer::H], false)?;
            let members = Members::of(of, labels, &read.indices, set.metric);
            Ok::<_, EvalError>(Half { features: read.features, members })
        };
        let mut train = part(&sets.train, &sets.train_indices, &sets.train_labels)?;
        let test = part(sets.test_set(), &sets.test_indices, &sets.test_labels)?;
        let parts = match validation {
            Some((held, labels)) => {
                let all: Vec<usize> = (0..held.len()).collect();
                let before = train.members.len();
                train.append(part(held, &all, labels)?);
                ((0..before).collect(), (before..train.members.len()).collect())
            }
            None => train.members.hold_out(sets.train.classes().len(), HOLD_OUT, self.options.seed),
        };
        Ok((train, test, parts))
    }
}

/// Rows to fit on, and rows to choose by.
type Parts = (Vec<usize>, Vec<usize>);

/// Features and labels of a part.
struct Half {
    features: Vec<Tensor>,
    members: Members,
}

impl Half {
    fn append(&mut self, other: Self) {
        for (mine, more) in self.features.iter_mut().zip(&other.features) {
            *mine = Tensor::cat(&[&*mine, more], 0);
        }
        self.members.append(other.members);
    }
}

/// One encoder on one set.
struct Judged {
    /// `[n, K]` of the test images.
    decision: Tensor,
    lambda: f64,
    figure: f64,
}

fn judge(
    encoder: usize,
    train: &Half,
    test: &Half,
    (fit, held): &Parts,
    (classes, metric): (usize, Metric),
    device: Device,
) -> Judged {
    let options = LinearOptions {
        lambdas: log_spaced(1e-6, 1e5, 45),
        patience: None,
        penalty: Penalty::Sum,
        standardise: false,
        ..LinearOptions::default()
    };
    let rows = |rows: &[usize]| rows.iter().map(|&row| row as i64).collect::<Vec<_>>();
    // Each image counts once where it is judged, however many labels it has.
    let held = train.members.first_of(held);
    let chosen_by = train.members.truth(&held, classes);
    let by_metric = |decision: &Tensor, _: &[i64]| chosen_by.figure(&decision.to_device(Device::Cpu), metric);
    let features = train.features[encoder].to_device(device);
    let labels = Tensor::from_slice(&train.members.labels).to_device(device);
    let data = (&features, &labels, classes as i64);
    let fit = linear::fit_by(data, &[(rows(fit), rows(&held))], &by_metric, &options);
    let once = test.members.once();
    let queries = test.features[encoder].index_select(0, &Tensor::from_slice(&rows(&once)));
    let decision = fit.classifier.decision(&queries.to_device(device)).to_device(Device::Cpu);
    let figure = test.members.truth(&once, classes).figure(&decision, metric);
    Judged { decision, lambda: fit.lambda, figure }
}
