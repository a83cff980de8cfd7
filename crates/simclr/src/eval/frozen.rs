//! Protocols on frozen features: kNN, retrieval and the linear classifier with few and with all labels, for the trained
//! encoder, the random-init one and raw pixels, beside chance (spec 8.1, 8.2, 15.0). Nothing here trains an encoder.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tch::Tensor;

use super::{
    features::{BadImage, Extracted, FrozenEncoder, ReadOptions, label_tensor, pixel_dim},
    knn::{self, Neighbours},
    label_sets::LabelSets,
    linear::{self, LinearOptions},
    memory::{Figure, Key, Memory},
    protocol::EvalOptions,
    reading::{Part, Reading},
    results::{Cell, Row},
    sets::Sets,
};
use crate::{
    EvalError,
    train::{Observer, RunFolder},
};

/// Everything that the frozen protocols share.
pub(super) struct Frozen<'a> {
    pub(super) run: &'a RunFolder,
    pub(super) trained: &'a FrozenEncoder,
    pub(super) controls: &'a [FrozenEncoder],
    pub(super) sets: &'a Sets,
    pub(super) options: &'a EvalOptions,
    pub(super) memory: &'a Memory,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) stop: &'a AtomicBool,
}

/// What they found.
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    pub(super) kept: Kept,
    pub(super) labels: LabelSets,
}

/// Which images can be decoded, as indices in their split.
pub(super) struct Kept {
    pub(super) train: Vec<usize>,
    pub(super) test: Vec<usize>,
    pub(super) bad: Vec<BadImage>,
}

/// A row of the table: one encoder, several random ones, or the pixels themselves.
struct Subject {
    name: &'static str,
    dimensions: i64,
    /// Column of the features, and whose they are.
    members: Vec<(usize, String)>,
}

/// Features of the training and the test part.
struct Features {
    train: Extracted,
    test: Extracted,
}

impl Frozen<'_> {
    /// All rows. Images are read only where a figure is not known yet.
    pub(super) fn run(mut self) -> Result<Found, EvalError> {
        let mut features = None;
        let kept = self.kept(&mut features)?;
        let labels = LabelSets::of(self.sets, &kept.train, self.options)?;
        labels.write(self.run, &self.sets.train)?;
        let mut rows = Vec::new();
        for subject in self.subjects() {
            let mut judge = Judge { frozen: &mut self, kept: &kept, features: &mut features };
            rows.push(judge.row(&subject, &labels)?);
        }
        rows.push(self.chance(&kept, &labels));
        Ok(Found { rows, kept, labels })
    }

    fn subjects(&self) -> Vec<Subject> {
        let dimensions = self.trained.feature_dim();
        let whose = |at: usize, encoder: &FrozenEncoder| (at, encoder.fingerprint());
        let mut subjects =
            vec![Subject { name: "trained h", dimensions, members: vec![whose(0, self.trained)] }];
        if !self.controls.is_empty() {
            // A TorchScript module brings its own weights: the control is the module as it was given.
            let scripted = self.trained.config().encoder.file.is_some();
            let name = if scripted { "module as given" } else { "random-init h" };
            let members = self.controls.iter().enumerate().map(|(at, encoder)| whose(at + 1, encoder));
            subjects.push(Subject { name, dimensions, members: members.collect() });
        }
        let dimensions = pixel_dim(self.trained);
        let members = vec![(1 + self.controls.len(), "pixels".into())];
        subjects.push(Subject { name: "raw pixels", dimensions, members });
        subjects
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
        let sets = self.sets;
        let mut part = |name, set, indices| reading.read(&Part { name, set, indices }, &encoders, true);
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
        let cell = |share: f64| {
            let used = labels.at(share).first().map_or(0, Vec::len);
            Cell::of(share, used, vec![accuracy])
        };
        Row {
            name: "chance".into(),
            dimensions: 0,
            knn: Some(Cell::of(1.0, kept.train.len(), vec![accuracy])),
            knn_plain: Some(Cell::of(1.0, kept.train.len(), vec![accuracy])),
            retrieval: None,
            by_labels: self.options.shares.iter().map(|&share| cell(share)).collect(),
        }
    }
}

impl Sets {
    /// Labels of the training and of the test images that can be decoded.
    pub(super) fn labels_of(&self, kept: &Kept) -> (Tensor, Tensor) {
        (label_tensor(&self.train_labels, &kept.train), label_tensor(&self.test_labels, &kept.test))
    }
}

/// One row at a time.
struct Judge<'a, 'b> {
    frozen: &'a mut Frozen<'b>,
    kept: &'a Kept,
    features: &'a mut Option<Features>,
}

impl Judge<'_, '_> {
    fn row(&mut self, subject: &Subject, labels: &LabelSets) -> Result<Row, EvalError> {
        let options = self.frozen.options;
        self.frozen.observer.message(&format!("kNN on {}", subject.name));
        let mut votes = Vec::new();
        for (column, whose) in &subject.members {
            votes.push(self.neighbours(subject.name, *column, whose)?);
        }
        let cell = |at: usize| {
            let figures = votes.iter_mut().map(|votes| votes[at].take()).collect::<Option<Vec<Figure>>>();
            figures.map(|figures| Cell::of_figures(1.0, self.kept.train.len(), figures))
        };
        let [knn, knn_plain, retrieval] = [0, 1, 2].map(cell);
        self.frozen.observer.message(&format!("linear classifier on {}", subject.name));
        let all: usize = options.shares.iter().map(|&share| labels.at(share).len()).sum();
        let (mut by_labels, mut done) = (Vec::new(), 0);
        for &share in &options.shares {
            let mut figures = Vec::new();
            for (draw, subset) in labels.at(share).iter().enumerate() {
                for (column, whose) in &subject.members {
                    let name = format!("{}, linear, {}pct, {draw}", subject.name, 100.0 * share);
                    figures.push(self.linear(&name, (*column, whose), subset)?);
                }
                done += 1;
                self.frozen.observer.progress(&format!("linear classifier on {}", subject.name), done, all);
            }
            let used = labels.at(share).first().map_or(0, Vec::len);
            by_labels.push(Cell::of_figures(share, used, figures));
        }
        let (name, dimensions) = (subject.name.into(), subject.dimensions);
        Ok(Row { name, dimensions, knn, knn_plain, retrieval, by_labels })
    }

    /// What a figure of `whose` features depends on, besides the protocol.
    fn key(&self, name: &str, whose: &str, protocol: Value) -> Key {
        let left_out = [&self.kept.train, &self.kept.test].map(|indices| checksum(indices));
        Key::new(
            name,
            json!({
                "features": whose, "data": self.frozen.data(), "kept": left_out, "protocol": protocol,
            }),
        )
    }

    /// Bank and queries `[n, F]` of one column.
    fn features(&mut self, column: usize) -> Result<(Tensor, Tensor), EvalError> {
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
        Ok((read.train.features[column].shallow_clone(), read.test.features[column].shallow_clone()))
    }

    /// Weighted and plain kNN, and retrieval where it is asked for.
    fn neighbours(
        &mut self,
        name: &str,
        column: usize,
        whose: &str,
    ) -> Result<[Option<Figure>; 3], EvalError> {
        let options = self.frozen.options;
        let (k, temperature, retrieval_k) = (self.k(), options.knn_temperature, options.retrieval_k);
        let keys = [
            self.key(&format!("{name}, knn"), whose, json!(["knn", k, temperature])),
            self.key(&format!("{name}, knn plain"), whose, json!(["knn", k])),
            self.key(&format!("{name}, retrieval"), whose, json!(["retrieval", retrieval_k])),
        ];
        let wanted = if retrieval_k > 0 { 3 } else { 2 };
        let mut found: [Option<Figure>; 3] =
            std::array::from_fn(|at| (at < wanted).then(|| self.frozen.memory.figure(&keys[at])).flatten());
        if found[..wanted].iter().all(Option::is_some) {
            return Ok(found);
        }
        let (bank, queries) = self.features(column)?;
        let (labels, truth) = self.frozen.sets.labels_of(self.kept);
        let classes = self.frozen.sets.train.classes().len() as i64;
        let neighbours = Neighbours::of(&bank, &queries, k.max(retrieval_k));
        for (at, temperature) in [Some(temperature), Some(None), None][..wanted].iter().enumerate() {
            let figure = match temperature {
                Some(temperature) => {
                    Figure::accuracy(&neighbours.vote(&labels, classes, k, *temperature), &truth)
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

    /// The linear classifier of one column on one subset of the training images.
    fn linear(
        &mut self,
        name: &str,
        (column, whose): (usize, &str),
        subset: &[usize],
    ) -> Result<Figure, EvalError> {
        let options = LinearOptions { seed: self.frozen.options.seed, ..self.frozen.options.linear.clone() };
        let key = self.key(name, whose, json!(["linear", format!("{options:?}"), checksum(subset)]));
        if let Some(known) = self.frozen.memory.figure(&key) {
            return Ok(known);
        }
        let (bank, test) = self.features(column)?;
        let row = |index: &usize| self.kept.train.binary_search(index).expect("it is kept") as i64;
        let rows: Vec<i64> = subset.iter().map(row).collect();
        let bank = if rows.len() as i64 == bank.size()[0] {
            bank
        } else {
            bank.index_select(0, &Tensor::from_slice(&rows))
        };
        let labels = label_tensor(&self.frozen.sets.train_labels, subset);
        let classes = self.frozen.sets.train.classes().len() as i64;
        let fit = linear::fit(&bank, &labels, classes, &options);
        let (_, truth) = self.frozen.sets.labels_of(self.kept);
        let how = format!("{} after {} iterations", linear::ending(fit.minimum.stop), fit.minimum.iterations);
        let figure = Figure::accuracy(&fit.classifier.predict(&test), &truth);
        let figure = Figure { lambda: Some(fit.lambda), how, ..figure };
        self.frozen.memory.keep_figure(&key, figure)
    }
}

/// Which images, in 32 hex digits.
pub(super) fn checksum(indices: &[usize]) -> String {
    let bytes: Vec<u8> = indices.iter().flat_map(|&index| (index as u64).to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..32].to_owned()
}
