//! Protocols on frozen features: kNN, retrieval and the linear classifier with few and with all labels, for the trained
//! encoder, the random-init one and raw pixels, beside chance (spec 8.1, 8.2, 15.0). Nothing here trains an encoder.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::eval::data::label_subsets::{Column, LabelSets};
use crate::eval::data::labelled_set::Sets;
use crate::eval::evaluate::EvalOptions;
use crate::eval::features::cache::{Part, Reading};
use crate::eval::features::frozen_encoder::{
    BadImage, Extracted, FrozenEncoder, ReadOptions, label_tensor, pixel_dim,
};
use crate::eval::layer::Layer;
use crate::eval::probes::linear::{self, LinearFit, LinearOptions};
use crate::eval::report::per_class::{self, PerClass};
use crate::eval::report::results::{Cell, Row};
use crate::eval::report::results_cache::{Figure, Key, Memory};
use crate::knn::{self, Neighbours};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// Everything that the frozen protocols share.
pub(crate) struct Frozen<'a> {
    pub(crate) run: &'a RunFolder,
    pub(crate) trained: &'a FrozenEncoder,
    pub(crate) controls: &'a [FrozenEncoder],
    pub(crate) sets: &'a Sets,
    pub(crate) options: &'a EvalOptions,
    pub(crate) memory: &'a Memory,
    pub(crate) observer: &'a mut dyn Observer,
    pub(crate) stop: &'a AtomicBool,
}

/// What they found.
pub(crate) struct Found {
    pub(crate) rows: Vec<Row>,
    pub(crate) kept: Kept,
    pub(crate) labels: LabelSets,
}

/// Which images can be decoded, as indices in their split.
pub(crate) struct Kept {
    pub(crate) train: Vec<usize>,
    pub(crate) test: Vec<usize>,
    pub(crate) bad: Vec<BadImage>,
}

/// A row of the table: one encoder, several random ones, or the pixels themselves.
struct Subject {
    name: String,
    dimensions: i64,
    /// Whether the encoder that is evaluated is the subject.
    trained: bool,
    members: Vec<Member>,
}

/// Features of one encoder.
struct Member {
    /// Column of what was read.
    column: usize,
    /// Dimensions of the column before those of the layer.
    before: i64,
    /// Of which weights, and which layer.
    whose: String,
}

/// Features of the training and the test part.
struct Features {
    train: Extracted,
    test: Extracted,
}

impl Frozen<'_> {
    /// All rows. Images are read only where a figure is not known yet.
    pub(crate) fn run(mut self) -> Result<Found, EvalError> {
        let mut features = None;
        let kept = self.kept(&mut features)?;
        let labels = LabelSets::of(self.sets, &kept.train, self.options)?;
        labels.write(self.run, &self.sets.train)?;
        let mut rows = Vec::new();
        for subject in self.subjects()? {
            let mut judge = Judge { frozen: &mut self, kept: &kept, features: &mut features, loaded: None };
            rows.push(judge.row(&subject, &labels)?);
        }
        rows.push(self.chance(&kept, &labels));
        Ok(Found { rows, kept, labels })
    }

    fn subjects(&self) -> Result<Vec<Subject>, EvalError> {
        let layers = self.options.layers.iter();
        let widths: Vec<(Layer, i64)> = layers
            .map(|&layer| Ok((layer, self.trained.layer_dim(layer)?)))
            .collect::<Result<_, EvalError>>()?;
        let subject = |what: &str, at: usize, encoders: &[FrozenEncoder], first: usize| {
            let (layer, dimensions) = widths[at];
            let before = widths[..at].iter().map(|(_, width)| width).sum();
            let name = if layer == Layer::H { String::new() } else { format!(", {layer}") };
            let member = |(at, encoder): (usize, &FrozenEncoder)| Member {
                column: first + at,
                before,
                whose: encoder.fingerprint() + &name,
            };
            let members = encoders.iter().enumerate().map(member).collect();
            Subject { name: format!("{what}{layer}"), dimensions, trained: first == 0, members }
        };
        let trained = std::slice::from_ref(self.trained);
        let mut subjects: Vec<Subject> =
            (0..widths.len()).map(|at| subject("trained ", at, trained, 0)).collect();
        if !self.controls.is_empty() {
            // A TorchScript module brings its own weights: the control is the module as it was given.
            let scripted = self.trained.config().encoder.file.is_some();
            subjects.extend((0..widths.len()).map(|at| match (scripted, widths[at].0) {
                (true, Layer::H) => Subject { name: MODULE.into(), ..subject("", at, self.controls, 1) },
                (true, _) => subject(&format!("{MODULE}, "), at, self.controls, 1),
                (false, _) => subject("random-init ", at, self.controls, 1),
            }));
        }
        let pixels = Member { column: 1 + self.controls.len(), before: 0, whose: "pixels".into() };
        let dimensions = pixel_dim(self.trained);
        let (name, members) = ("raw pixels".into(), vec![pixels]);
        subjects.push(Subject { name, dimensions, trained: false, members });
        Ok(subjects)
    }

    /// Which images can be decoded: remembered, or found by reading them.
    fn kept(&mut self, features: &mut Option<Features>) -> Result<Kept, EvalError> {
        let key = Key::new("images left out", json!({ "data": self.data() }));
        let all = [&self.sets.train_indices, &self.sets.test_indices];
        let kept = |bad: [Vec<usize>; 2], named| {
            let part = |at: usize| all[at].iter().copied().filter(|index| !bad[at].contains(index)).collect();
            Kept { train: part(0), test: part(1), bad: named }
        };
        type Note = ([Vec<usize>; 2], Vec<BadImage>);
        if let Some((bad, named)) =
            self.memory.note(&key).and_then(|(note, _)| serde_json::from_value::<Note>(note).ok())
        {
            return Ok(kept(bad, named));
        }
        let read = self.read()?;
        let missing = |all: &[usize], read: &Extracted| {
            all.iter().copied().filter(|index| read.indices.binary_search(index).is_err()).collect()
        };
        let bad = [missing(all[0], &read.train), missing(all[1], &read.test)];
        let named: Vec<BadImage> = read.train.bad.iter().chain(&read.test.bad).cloned().collect();
        self.memory.keep(&key, json!((&bad, &named)), None)?;
        *features = Some(read);
        Ok(kept(bad, named))
    }

    fn read(&mut self) -> Result<Features, EvalError> {
        let encoders: Vec<&FrozenEncoder> = std::iter::once(self.trained).chain(self.controls).collect();
        let options = ReadOptions::of(self.trained, self.options.batch, self.options.threads);
        let mut reading = Reading::of(self.run, options, self.observer, self.stop);
        let (sets, layers) = (self.sets, &self.options.layers[..]);
        let mut part =
            |name, set, indices| reading.read(&Part { name, set, indices }, &encoders, layers, true);
        let train = part("features of the training part", &sets.train, &sets.train_indices)?;
        let test = part("features of the test part", sets.test_set(), &sets.test_indices)?;
        Ok(Features { train, test })
    }

    /// What the images are, and how they are read.
    fn data(&self) -> Value {
        let trained = self.trained;
        json!([self.sets.identities(), trained.transform()])
    }

    /// Always naming the most frequent class of the training part (1 / K where classes are balanced).
    fn chance(&self, kept: &Kept, labels: &LabelSets) -> Row {
        let classes = self.sets.train.classes().len() as i64;
        let (train, test) = self.sets.labels_of(kept);
        let most = train.bincount::<Tensor>(None, classes).argmax(0, false);
        let accuracy = knn::accuracy(&most.expand_as(&test), &test);
        let cell = |column: &Column| Cell {
            shots: column.shots,
            ..Cell::of(column.share, column.labels(), vec![accuracy])
        };
        Row {
            name: "chance".into(),
            dimensions: 0,
            knn: Some(Cell::of(1.0, kept.train.len(), vec![accuracy])),
            knn_plain: Some(Cell::of(1.0, kept.train.len(), vec![accuracy])),
            retrieval: None,
            by_labels: labels.columns().iter().map(cell).collect(),
            per_class: Vec::new(),
        }
    }
}

impl Sets {
    /// Labels of the training and of the test images that can be decoded.
    pub(crate) fn labels_of(&self, kept: &Kept) -> (Tensor, Tensor) {
        (label_tensor(&self.train_labels, &kept.train), label_tensor(&self.test_labels, &kept.test))
    }
}

/// One row at a time.
struct Judge<'a, 'b> {
    frozen: &'a mut Frozen<'b>,
    kept: &'a Kept,
    features: &'a mut Option<Features>,
    /// The column on the encoder's device, training and test part.
    loaded: Option<(usize, (Tensor, Tensor))>,
}

impl Judge<'_, '_> {
    fn row(&mut self, subject: &Subject, labels: &LabelSets) -> Result<Row, EvalError> {
        self.frozen.observer.message(&format!("kNN on {}", subject.name));
        let mut votes = Vec::new();
        for member in &subject.members {
            votes.push(self.neighbours(subject, member)?);
        }
        let per_class = votes[0][0].as_ref().and_then(|figure| self.per_class("kNN", subject, figure));
        let cell = |at: usize| {
            let figures = votes.iter_mut().map(|votes| votes[at].take()).collect::<Option<Vec<Figure>>>();
            figures.map(|figures| Cell::of_figures(1.0, self.kept.train.len(), figures))
        };
        let [knn, knn_plain, retrieval] = [0, 1, 2].map(cell);
        let (by_labels, linear) = self.linear_cells(subject, labels)?;
        let (name, dimensions) = (subject.name.clone(), subject.dimensions);
        let per_class = per_class.into_iter().chain(linear).collect();
        Ok(Row { name, dimensions, knn, knn_plain, retrieval, by_labels, per_class })
    }

    /// The linear classifier in every column, and its answers by class in that with all labels.
    fn linear_cells(
        &mut self,
        subject: &Subject,
        labels: &LabelSets,
    ) -> Result<(Vec<Cell>, Option<(String, PerClass)>), EvalError> {
        let what = format!("linear classifier on {}", subject.name);
        self.frozen.observer.message(&what);
        let all: usize = labels.columns().iter().map(|column| column.subsets.len()).sum();
        let (mut cells, mut per_class, mut done) = (Vec::new(), None, 0);
        for column in labels.columns() {
            let mut members = Vec::new();
            for member in &subject.members {
                members.push(self.linear(subject, member, column)?.into_iter());
            }
            // Draw by draw, each with all members.
            let draw = |_| members.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>();
            let figures: Vec<Figure> = (0..column.subsets.len()).flat_map(draw).collect();
            if column.shots.is_none() && column.share >= 1.0 {
                per_class = figures.first().and_then(|figure| self.per_class("linear", subject, figure));
            }
            cells.push(column.cell(figures));
            done += column.subsets.len();
            self.frozen.observer.progress(&what, done, all);
        }
        Ok((cells, per_class))
    }

    /// A figure of the evaluated encoder by class.
    fn per_class(&self, classifier: &str, subject: &Subject, figure: &Figure) -> Option<(String, PerClass)> {
        let answers = figure.answers.as_ref().filter(|_| subject.trained)?;
        Some((classifier.into(), PerClass::of(answers, self.frozen.sets.train.classes(), figure.auroc)))
    }

    /// What a figure of `whose` features depends on, besides the protocol.
    fn key(&self, name: &str, whose: &str, protocol: Value) -> Key {
        let failed_images = [&self.kept.train, &self.kept.test].map(|indices| checksum(indices));
        Key::new(
            name,
            json!({
                "features": whose, "data": self.frozen.data(), "kept": failed_images, "protocol": protocol,
            }),
        )
    }

    /// Bank and queries `[n, F]` of one encoder's layer.
    fn features(&mut self, subject: &Subject, member: &Member) -> Result<(Tensor, Tensor), EvalError> {
        if self.frozen.stop.load(Ordering::Relaxed) {
            return Err(EvalError::Stopped);
        }
        if self.features.is_none() {
            *self.features = Some(self.frozen.read()?);
        }
        let read = self.features.as_ref().expect("it was just read");
        let agree = read.train.indices == self.kept.train && read.test.indices == self.kept.test;
        if !agree {
            let reason =
                "images can be decoded that could not before, or the other way round; evaluate with --fresh";
            return Err(EvalError::Refused(reason.into()));
        }
        // One column at a time: all of them may not fit a GPU.
        let (device, column) = (self.frozen.trained.device(), member.column);
        let load = |part: &Extracted| part.features[column].to_device(device);
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != column) {
            self.loaded = Some((column, (load(&read.train), load(&read.test))));
        }
        let (_, (train, test)) = self.loaded.as_ref().expect("it was just loaded");
        let layer = |part: &Tensor| part.narrow(1, member.before, subject.dimensions).contiguous();
        Ok((layer(train), layer(test)))
    }

    /// Weighted and plain kNN, and retrieval where it is asked for.
    fn neighbours(&mut self, subject: &Subject, member: &Member) -> Result<[Option<Figure>; 3], EvalError> {
        let (name, whose) = (&subject.name, &member.whose[..]);
        let options = self.frozen.options;
        let (k, temperature, retrieval_k) = (self.k(), options.knn_temperature, options.retrieval_k);
        let keys = [
            self.key(&format!("{name}, knn"), whose, json!(["knn", k, temperature, AREA])),
            self.key(&format!("{name}, knn plain"), whose, json!(["knn", k, AREA])),
            self.key(&format!("{name}, retrieval"), whose, json!(["retrieval", retrieval_k])),
        ];
        let wanted = if retrieval_k > 0 { 3 } else { 2 };
        let mut found: [Option<Figure>; 3] =
            std::array::from_fn(|at| (at < wanted).then(|| self.frozen.memory.figure(&keys[at])).flatten());
        if found[..wanted].iter().all(Option::is_some) {
            return Ok(found);
        }
        let (bank, queries) = self.features(subject, member)?;
        let (labels, truth) = self.frozen.sets.labels_of(self.kept);
        let (labels, truth) = (labels.to_device(bank.device()), truth.to_device(bank.device()));
        let classes = self.frozen.sets.train.classes().len() as i64;
        let neighbours = Neighbours::of(&bank, &queries, k.max(retrieval_k));
        for (at, temperature) in [Some(temperature), Some(None), None][..wanted].iter().enumerate() {
            let figure = match temperature {
                Some(temperature) => {
                    let scores = neighbours.scores(&labels, classes, k, *temperature).to_device(Device::Cpu);
                    answered(&scores, &truth.to_device(Device::Cpu))
                }
                None => {
                    let precision = neighbours.precision(&labels, &truth, retrieval_k);
                    Figure::of(precision.mean(tch::Kind::Double).double_value(&[]))
                }
            };
            found[at] = Some(self.frozen.memory.keep_figure(&keys[at], figure)?);
        }
        Ok(found)
    }

    /// Neighbours as used.
    fn k(&self) -> i64 {
        self.frozen.options.k(self.kept.train.len())
    }

    /// The linear classifier on each subset of `column`; those that are not known yet are fitted together.
    fn linear(
        &mut self,
        subject: &Subject,
        member: &Member,
        column: &Column,
    ) -> Result<Vec<Figure>, EvalError> {
        let options = LinearOptions { seed: self.frozen.options.seed, ..self.frozen.options.linear.clone() };
        let (place, subsets) = (format!("{}, linear, {}", subject.name, column.name()), &column.subsets);
        let key = |(draw, subset): (usize, &Vec<usize>)| {
            let protocol = json!(["linear", SOLVER, format!("{options:?}"), checksum(subset)]);
            self.key(&format!("{place}, {draw}"), &member.whose, protocol)
        };
        let keys: Vec<Key> = subsets.iter().enumerate().map(key).collect();
        let mut figures: Vec<Option<Figure>> =
            keys.iter().map(|key| self.frozen.memory.figure(key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&draw| figures[draw].is_none()).collect();
        if !missing.is_empty() {
            let (bank, test) = self.features(subject, member)?;
            let row = |index: &usize| self.kept.train.binary_search(index).expect("it is kept") as i64;
            let rows: Vec<Vec<i64>> =
                missing.iter().map(|&draw| subsets[draw].iter().map(row).collect()).collect();
            let (labels, truth) = self.frozen.sets.labels_of(self.kept);
            let classes = self.frozen.sets.train.classes().len() as i64;
            let labels = labels.to_device(bank.device());
            let fits = linear::fit_subsets((&bank, &labels, classes), &rows, &options);
            for (draw, fit) in missing.into_iter().zip(fits) {
                let figure = fitted(&fit, &test, &truth);
                figures[draw] = Some(self.frozen.memory.keep_figure(&keys[draw], figure)?);
            }
        }
        Ok(figures.into_iter().flatten().collect())
    }
}

/// Raised where the linear classifier is solved otherwise, within its tolerances, or more is kept of it.
const SOLVER: u32 = 2;
/// In the keys of figures that know their area under the ROC curve.
const AREA: &str = "auroc";
/// The control of a TorchScript module.
const MODULE: &str = "module as given";

/// The figure of a classifier on the test images.
fn fitted(fit: &LinearFit, test: &Tensor, truth: &Tensor) -> Figure {
    let scores = fit.classifier.decision(test).to_device(Device::Cpu);
    let how = format!("{} after {} iterations", linear::ending(fit.minimum.stop), fit.minimum.iterations);
    Figure { lambda: Some(fit.lambda), how, ..answered(&scores, truth) }
}

/// The figure of scores `[n, K]`; with two classes their area under the ROC curve, too.
fn answered(scores: &Tensor, truth: &Tensor) -> Figure {
    let area = || per_class::auroc(&(scores.select(1, 1) - scores.select(1, 0)), truth);
    let auroc = if scores.size()[1] == 2 { area() } else { None };
    Figure { auroc, ..Figure::accuracy(&scores.argmax(1, false), truth) }
}

/// Which images, in 32 hex digits.
pub(crate) fn checksum(indices: &[usize]) -> String {
    let bytes: Vec<u8> = indices.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..32].to_owned()
}
