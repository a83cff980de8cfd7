//! Frozen features of other data sets under the paper's transfer protocol (B.8.1; spec 8.4, 8.6): logistic regression by
//! L-BFGS on the features as they are, `sum cross-entropy + lambda/2 |W|^2`, lambda chosen among 45 values by the set's
//! metric on its validation part (or a fifth of the training images), refitted on both.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use serde_json::json;
use simclr_data::{Dataset, Split, dataset::Channels};
use tch::{Kind, Tensor};

use super::{
    features::{Extracted, FrozenEncoder, ReadOptions},
    linear::{self, LinearOptions, Penalty, log_spaced},
    memory::{Answers, Key, Memory},
    protocol::EvalOptions,
    reading::{Part, Reading},
    results::{Metric, TransferRow},
    sets::{Sets, labels_as},
    splits,
};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// A data set and what it is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferSet {
    /// Class folders or any other labelled set.
    pub path: PathBuf,
    /// Reported figure.
    pub metric: Metric,
}

/// The protocol for one run.
pub(super) struct Transfer<'a> {
    pub(super) run: &'a RunFolder,
    /// The trained encoder, and the control beside it.
    pub(super) encoders: (&'a FrozenEncoder, Option<&'a FrozenEncoder>),
    pub(super) options: &'a EvalOptions,
    pub(super) memory: &'a Memory,
    pub(super) stop: &'a AtomicBool,
}

/// Share of the training images that lambda is chosen on where a set brings no validation part.
const HOLD_OUT: f64 = 0.2;

impl Transfer<'_> {
    /// One row for each set.
    pub(super) fn rows(&self, observer: &mut dyn Observer) -> Result<Vec<TransferRow>, EvalError> {
        self.options.transfer.iter().map(|set| self.row(set, observer)).collect()
    }

    fn row(&self, set: &TransferSet, observer: &mut dyn Observer) -> Result<TransferRow, EvalError> {
        let (trained, control) = self.encoders;
        let sets = Sets::open(&set.path, trained.channels(), self.options.seed)?;
        let validation = sets.validation(&set.path)?;
        let chosen_on = validation.as_ref().map(|(set, _)| set.fingerprint());
        let place = format!("transfer to {}", set.path.file_name().unwrap_or_default().to_string_lossy());
        let key = Key::new(
            &place,
            json!({
                "features": [Some(trained.fingerprint()), control.map(FrozenEncoder::fingerprint)],
                "data": [json!(sets.fingerprints()), json!(chosen_on)],
                "size": trained.image_size(), "metric": set.metric, "seed": self.options.seed,
            }),
        );
        let known = self.memory.note(&key).and_then(|(note, _)| serde_json::from_value(note).ok());
        if let Some(known) = known {
            return Ok(TransferRow { data: set.path.display().to_string(), ..known });
        }
        observer.message(&place);
        let encoders: Vec<&FrozenEncoder> = std::iter::once(trained).chain(control).collect();
        let read = ReadOptions::of(trained, self.options.batch, self.options.threads);
        // Shorter side to S, then the central S x S: the whole shorter side is seen.
        let mut reading = Reading::of(self.run, ReadOptions { crop: 1.0, ..read }, observer, self.stop);
        let mut part = |set, indices, labels, metric| {
            let read = reading.read(&Part { name: &place, set, indices }, &encoders, false)?;
            Half::of(set, labels, read, metric)
        };
        let mut train = part(&sets.train, &sets.train_indices, &sets.train_labels, set.metric)?;
        let test = part(sets.test_set(), &sets.test_indices, &sets.test_labels, set.metric)?;
        let parts = match &validation {
            Some((held, labels)) => {
                let all: Vec<usize> = (0..held.len()).collect();
                let before = train.labels.len();
                train.append(part(held, &all, labels, set.metric)?);
                ((0..before).collect(), (before..train.labels.len()).collect())
            }
            None => train.hold_out(sets.train.classes().len(), self.options.seed),
        };
        let classes = sets.train.classes();
        let judged: Vec<Judged> = (0..encoders.len())
            .map(|encoder| judge(encoder, &train, &test, &parts, (classes.len(), set.metric)))
            .collect();
        let truth = test.truth(&test.once(), classes.len());
        let per_class = truth.per_class(&judged[0].decision);
        let known = |accuracy: f64| (!accuracy.is_nan()).then_some(accuracy);
        let row = TransferRow {
            data: set.path.display().to_string(),
            fingerprint: sets.train.fingerprint(),
            metric: set.metric,
            images: (train.once().len(), test.once().len()),
            trained: judged[0].figure,
            random_init: judged.get(1).map(|judged| judged.figure),
            lambda: judged[0].lambda,
            validation: chosen_on.map_or("a fifth of the training images".into(), |_| "its own part".into()),
            per_class: classes.iter().cloned().zip(per_class.into_iter().map(known)).collect(),
            predictions: self.memory.file(&key),
        };
        self.memory.keep(&key, json!(row), Some(&truth.answers(&judged[0].decision)))?;
        Ok(row)
    }
}

impl Sets {
    /// The set's own validation part, and its labels in the numbering of the training part.
    fn validation(&self, path: &Path) -> Result<Option<(Dataset, Vec<i64>)>, EvalError> {
        if !Dataset::has_validation_split(path) {
            return Ok(None);
        }
        let channels = Channels::Count(self.train.channels());
        let set = Dataset::open(path, Split::Validation, channels)?;
        let labels = labels_as(&set, &self.train, path)?;
        Ok(Some((set, labels)))
    }
}

/// Features and labels of a part, a row for each image; with mAP an image that lies in several class folders (VOC2007)
/// has a row for each of its classes.
struct Half {
    features: Vec<Tensor>,
    labels: Vec<i64>,
    /// Of the image that each row is of.
    names: Vec<String>,
}

impl Half {
    fn of(set: &Dataset, labels: &[i64], read: Extracted, metric: Metric) -> Result<Self, EvalError> {
        let whole = |index: &usize| Ok(set.samples()[*index].name.clone());
        let names = match metric {
            Metric::Map11 => file_names(set, &read.indices),
            Metric::Top1 | Metric::MeanPerClass => read.indices.iter().map(whole).collect(),
        };
        let labels = read.indices.iter().map(|&index| labels[index]).collect();
        Ok(Self { labels, names: names?, features: read.features })
    }

    fn append(&mut self, other: Self) {
        for (mine, more) in self.features.iter_mut().zip(&other.features) {
            *mine = Tensor::cat(&[&*mine, more], 0);
        }
        self.labels.extend(other.labels);
        // A name that both parts use is of two images.
        self.names.extend(other.names.into_iter().map(|name| format!("validation: {name}")));
    }

    /// The first row of each image.
    fn once(&self) -> Vec<usize> {
        let mut seen = HashSet::new();
        (0..self.names.len()).filter(|&row| seen.insert(&self.names[row])).collect()
    }

    /// Rows to fit on and rows to choose by: no image is on both sides.
    fn hold_out(&self, classes: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
        let once = self.once();
        let labels: Vec<i64> = once.iter().map(|&row| self.labels[row]).collect();
        let (_, held) = splits::hold_out(&labels, classes, HOLD_OUT, seed);
        let held: HashSet<&String> = held.into_iter().map(|at| &self.names[once[at]]).collect();
        (0..self.names.len()).partition(|&row| !held.contains(&self.names[row]))
    }

    /// What the images of `rows` hold.
    fn truth(&self, rows: &[usize], classes: usize) -> Truth {
        let mut of_image: HashMap<&str, Vec<i64>> = HashMap::new();
        for (name, &label) in self.names.iter().zip(&self.labels) {
            of_image.entry(name).or_default().push(label);
        }
        let mut holds = vec![false; rows.len() * classes];
        for (at, &row) in rows.iter().enumerate() {
            of_image[&self.names[row][..]]
                .iter()
                .for_each(|&class| holds[at * classes + class as usize] = true);
        }
        let labels: Vec<i64> = rows.iter().map(|&row| self.labels[row]).collect();
        let holds = Tensor::from_slice(&holds).view([-1, classes as i64]);
        Truth { labels: Tensor::from_slice(&labels), holds, classes: classes as i64 }
    }
}

/// The last part of each image's name; where several have it, with a checksum of the pixels: only copies of one image are
/// one image.
fn file_names(set: &Dataset, indices: &[usize]) -> Result<Vec<String>, EvalError> {
    let last = |index: usize| set.samples()[index].name.rsplit('/').next().unwrap_or_default();
    let mut times: HashMap<&str, usize> = HashMap::new();
    indices.iter().for_each(|&index| *times.entry(last(index)).or_default() += 1);
    let name = |&index: &usize| match times[last(index)] {
        1 => Ok(last(index).to_owned()),
        _ => Ok(format!("{} {:08x}", last(index), crc32c::crc32c(&set.decode(index)?.data))),
    };
    indices.iter().map(name).collect()
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
    (fit, held): &(Vec<usize>, Vec<usize>),
    (classes, metric): (usize, Metric),
) -> Judged {
    let options = LinearOptions {
        lambdas: log_spaced(1e-6, 1e5, 45),
        penalty: Penalty::Sum,
        standardise: false,
        ..LinearOptions::default()
    };
    let rows = |rows: &[usize]| rows.iter().map(|&row| row as i64).collect::<Vec<_>>();
    // Each image counts once where it is judged, however many labels it has.
    let once: HashSet<usize> = train.once().into_iter().collect();
    let mut held: Vec<usize> = held.clone();
    if metric == Metric::Map11 {
        held.retain(|row| once.contains(row));
    }
    let chosen_by = train.truth(&held, classes);
    let by_metric = |decision: &Tensor, _: &[i64]| chosen_by.figure(decision, metric);
    let labels = Tensor::from_slice(&train.labels);
    let data = (&train.features[encoder], &labels, classes as i64);
    let fit = linear::fit_by(data, &[(rows(fit), rows(&held))], &by_metric, &options);
    let once = test.once();
    let queries = test.features[encoder].index_select(0, &Tensor::from_slice(&rows(&once)));
    let decision = fit.classifier.decision(&queries);
    let figure = test.truth(&once, classes).figure(&decision, metric);
    Judged { decision, lambda: fit.lambda, figure }
}

/// Which classes each image holds.
struct Truth {
    /// `[n]`: the class of its first folder.
    labels: Tensor,
    /// `[n, K]` bool.
    holds: Tensor,
    classes: i64,
}

impl Truth {
    /// Predicted and true labels; of an image of several classes the one that was named counts as true.
    fn answers(&self, decision: &Tensor) -> Answers {
        let predicted = decision.argmax(1, false);
        let right = self.holds.gather(1, &predicted.unsqueeze(1), false).squeeze_dim(1);
        Answers::new(&predicted, &predicted.where_self(&right, &self.labels))
    }

    fn figure(&self, decision: &Tensor, metric: Metric) -> f64 {
        let present = |values: Vec<f64>| {
            let values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        match metric {
            Metric::Top1 => super::knn::accuracy(&decision.argmax(1, false), &self.labels),
            Metric::MeanPerClass => present(self.per_class(decision)),
            Metric::Map11 => {
                present((0..self.classes).map(|class| self.average_precision(decision, class)).collect())
            }
        }
    }

    /// Accuracy on the test images of each class; NaN where there are none.
    fn per_class(&self, decision: &Tensor) -> Vec<f64> {
        let right = decision.argmax(1, false).eq_tensor(&self.labels).to_kind(Kind::Double);
        let count =
            |weights: Option<&Tensor>| self.labels.bincount(weights, self.classes).to_kind(Kind::Double);
        Vec::try_from(count(Some(&right)) / count(None)).expect("one number for each class")
    }

    /// The mean of the highest precision at recalls of at least 0, 0.1, ... 1 (VOC2007 devkit); NaN without positives.
    fn average_precision(&self, decision: &Tensor, class: i64) -> f64 {
        let order = decision.select(1, class).argsort(0, true);
        let holds = self.holds.select(1, class).index_select(0, &order);
        let holds: Vec<bool> = Vec::try_from(holds).expect("one truth value for each image");
        eleven_points(&holds)
    }
}

/// 11-point interpolated average precision of a ranking, most likely first.
fn eleven_points(ranked: &[bool]) -> f64 {
    let positives = ranked.iter().filter(|&&holds| holds).count();
    if positives == 0 {
        return f64::NAN;
    }
    let mut best = [0.0f64; 11];
    let mut found = 0;
    for (rank, _) in ranked.iter().enumerate().filter(|(_, holds)| **holds) {
        found += 1;
        let precision = f64::from(found) / (rank + 1) as f64;
        // Every level that this recall reaches.
        let levels = 10 * found as usize / positives;
        best[..=levels].iter_mut().for_each(|best| *best = best.max(precision));
    }
    best.iter().sum::<f64>() / 11.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_points_by_hand() {
        assert_eq!(eleven_points(&[true, true, false]), 1.0);
        assert!(eleven_points(&[false, false]).is_nan());
        // Recall 1/2 at precision 1 (levels 0 to 5), recall 1 at precision 2/3 (levels 6 to 10).
        assert!((eleven_points(&[true, false, true]) - (6.0 + 5.0 * 2.0 / 3.0) / 11.0).abs() < 1e-12);
        // Precision 1/2 at recall 1 counts for all levels.
        assert!((eleven_points(&[false, true]) - 0.5).abs() < 1e-12);
    }

    /// Nine images of class 0, one of class 1, everything called 0: top-1 hides what the mean over classes shows.
    #[test]
    fn the_mean_per_class_counts_rare_classes_in_full() {
        let labels = Tensor::from_slice(&[0i64, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let holds = labels.one_hot(3).to_kind(Kind::Bool);
        let truth = Truth { labels, holds, classes: 3 };
        let decision = Tensor::from_slice(&[1.0f64, 0.0, 0.0]).repeat([10, 1]);
        assert!((truth.figure(&decision, Metric::Top1) - 0.9).abs() < 1e-12);
        assert!(
            (truth.figure(&decision, Metric::MeanPerClass) - 0.5).abs() < 1e-12,
            "the third class is not there"
        );
        assert!(truth.per_class(&decision)[2].is_nan());
    }
}
