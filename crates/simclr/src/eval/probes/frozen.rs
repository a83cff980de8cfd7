//! Protocols on frozen features: kNN, retrieval and the linear classifier with few and with all labels, for the trained
//! encoder, random-init encoders and raw pixels, compared with chance. No encoder is trained.

use serde_json::{Value, json};
use simclr_data::augment::EvalTransform;
use tch::{Device, Kind, Tensor};

use super::{
    feature_sets::{FeatureColumn, FeatureSet, feature_sets},
    linear::{self, LinearFit},
};
use crate::{
    EvalError,
    eval::{
        context::EvalContext,
        data::{Column, LabelSubsets, LabelledSet, checksum},
        features::{BadImage, Columns, DecodableImages, Extracted, FeatureCache, FrozenEncoder, Part},
        options::LinearOptions,
        report::{
            Cell, Figure, FigureKey, Row,
            per_class::{self, PerClass},
        },
    },
    knn::{self, Neighbours},
};

/// Version of the linear solver within its tolerances, and of the content of its cached figures.
const SOLVER: u32 = 2;
/// Part of the keys of figures with an area under the ROC curve.
const AREA: &str = "auroc";

/// Evaluates frozen features. Images are read only if a figure is not cached.
pub(crate) struct FrozenEvaluator<'c, 'a> {
    context: &'c mut EvalContext<'a>,
    set: &'c LabelledSet,
    features: Option<PartFeatures>,
}

pub(crate) struct FrozenResults {
    pub(crate) rows: Vec<Row>,
    pub(crate) images: DecodableImages,
    pub(crate) subsets: LabelSubsets,
}

struct PartFeatures {
    train: Extracted,
    test: Extracted,
}

impl<'c, 'a> FrozenEvaluator<'c, 'a> {
    pub(crate) fn new(context: &'c mut EvalContext<'a>, set: &'c LabelledSet) -> Self {
        Self { context, set, features: None }
    }

    pub(crate) fn run(mut self) -> Result<FrozenResults, EvalError> {
        let images = self.decodable_images()?;
        let subsets = LabelSubsets::of(self.set, &images.train, self.context.config)?;
        subsets.write(self.context.run, &self.set.train, &self.context.config.label_lists)?;
        let mut rows = Vec::new();
        for source in feature_sets(self.context)? {
            let mut row = RowBuilder { evaluator: &mut self, images: &images, source: &source, loaded: None };
            rows.push(row.build(&subsets)?);
        }
        rows.push(chance(self.set, &images, &subsets));
        Ok(FrozenResults { rows, images, subsets })
    }

    /// From the cache, or found by extracting all features.
    fn decodable_images(&mut self) -> Result<DecodableImages, EvalError> {
        let key = FigureKey::new("images left out", json!({ "data": self.data() }));
        type Note = ([Vec<usize>; 2], Vec<BadImage>);
        let note = self.context.cache.note(&key);
        if let Some((excluded, bad)) = note.and_then(|(note, _)| serde_json::from_value::<Note>(note).ok()) {
            return Ok(DecodableImages::except(self.set, &excluded, bad));
        }
        let read = self.extract()?;
        let missing = |all: &[usize], read: &Extracted| {
            all.iter().copied().filter(|index| read.indices.binary_search(index).is_err()).collect()
        };
        let excluded =
            [missing(&self.set.train_indices, &read.train), missing(&self.set.test_indices, &read.test)];
        let bad: Vec<BadImage> = read.train.bad.iter().chain(&read.test.bad).cloned().collect();
        self.context.cache.store(&key, json!((&excluded, &bad)), None)?;
        self.features = Some(read);
        Ok(DecodableImages::except(self.set, &excluded, bad))
    }

    fn extract(&mut self) -> Result<PartFeatures, EvalError> {
        let context = &mut *self.context;
        let encoders: Vec<&FrozenEncoder> =
            std::iter::once(context.encoder).chain(context.controls).collect();
        let columns = Columns { encoders: &encoders, layers: &context.config.layers, pixels: true };
        let options = context.read_options();
        let mut cache = FeatureCache::of(context.run, options, context.observer, context.stop);
        let mut part = |name, set, indices| cache.read(&Part { name, set, indices }, &columns);
        let train = part("features of the training part", &self.set.train, &self.set.train_indices)?;
        let test = part("features of the test part", self.set.test_set(), &self.set.test_indices)?;
        Ok(PartFeatures { train, test })
    }

    /// Dependencies of every figure: the images and their transform.
    fn data(&self) -> Value {
        json!([self.set.identities(), self.context.encoder.transform(), EvalTransform::REVISION])
    }

    fn classes(&self) -> i64 {
        self.set.train.classes().len() as i64
    }
}

/// Always predicts the most frequent class of the training part (1 / K for balanced classes).
fn chance(set: &LabelledSet, images: &DecodableImages, subsets: &LabelSubsets) -> Row {
    let (train, test) = images.labels(set);
    let most_frequent = train.bincount::<Tensor>(None, set.train.classes().len() as i64).argmax(0, false);
    let accuracy = knn::accuracy(&most_frequent.expand_as(&test), &test);
    let cell = |column: &Column| Cell {
        shots: column.per_class,
        ..Cell::of(column.fraction, column.labels(), vec![accuracy])
    };
    let all = || Some(Cell::of(1.0, images.train.len(), vec![accuracy]));
    let by_labels = subsets.columns.iter().map(cell).collect();
    Row { knn: all(), knn_plain: all(), ..Row::of("chance", 0, by_labels) }
}

/// Builds the row of one feature set.
struct RowBuilder<'r, 'c, 'a> {
    evaluator: &'r mut FrozenEvaluator<'c, 'a>,
    images: &'r DecodableImages,
    source: &'r FeatureSet,
    /// One feature column on the encoder's device, training and test part.
    loaded: Option<(usize, (Tensor, Tensor))>,
}

impl RowBuilder<'_, '_, '_> {
    fn build(&mut self, subsets: &LabelSubsets) -> Result<Row, EvalError> {
        let source = self.source;
        self.message(&format!("kNN on {}", source.name));
        let mut figures = Vec::new();
        for column in &source.columns {
            figures.push(self.neighbours(column)?);
        }
        let per_class = figures[0][0].as_ref().and_then(|figure| self.per_class("kNN", figure));
        let cell = |at: usize| {
            let figures = figures.iter_mut().map(|of| of[at].take()).collect::<Option<Vec<Figure>>>();
            figures.map(|figures| Cell::of_figures(1.0, self.images.train.len(), figures))
        };
        let [knn, knn_plain, retrieval] = [0, 1, 2].map(cell);
        let (by_labels, linear) = self.linear_cells(subsets)?;
        let per_class = per_class.into_iter().chain(linear).collect();
        Ok(Row {
            knn,
            knn_plain,
            retrieval,
            per_class,
            ..Row::of(&source.name, source.dimensions, by_labels)
        })
    }

    fn message(&mut self, text: &str) {
        self.evaluator.context.observer.message(text);
    }

    /// The linear classifier in every column of the table, and by class with all labels.
    fn linear_cells(
        &mut self,
        subsets: &LabelSubsets,
    ) -> Result<(Vec<Cell>, Option<(String, PerClass)>), EvalError> {
        let what = format!("linear classifier on {}", self.source.name);
        self.message(&what);
        let total: usize = subsets.columns.iter().map(|column| column.subsets.len()).sum();
        let (mut cells, mut per_class, mut done) = (Vec::new(), None, 0);
        for column in &subsets.columns {
            let mut by_source = Vec::new();
            for features in &self.source.columns {
                by_source.push(self.linear(features, column)?.into_iter());
            }
            // Ordered by draw, then by encoder.
            let draw = |_| by_source.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>();
            let figures: Vec<Figure> = (0..column.subsets.len()).flat_map(draw).collect();
            if column.has_all_labels() {
                per_class = figures.first().and_then(|figure| self.per_class("linear", figure));
            }
            cells.push(column.cell(figures));
            done += column.subsets.len();
            self.evaluator.context.observer.progress(&what, done, total);
        }
        Ok((cells, per_class))
    }

    /// A figure of the evaluated encoder by class; none for controls.
    fn per_class(&self, classifier: &str, figure: &Figure) -> Option<(String, PerClass)> {
        let predictions = figure.predictions.as_ref().filter(|_| self.source.is_trained)?;
        let classes = self.evaluator.set.train.classes();
        Some((classifier.into(), PerClass::of(predictions, classes, figure.auroc)))
    }

    fn key(&self, name: &str, features: &FeatureColumn, protocol: Value) -> FigureKey {
        let images = [&self.images.train, &self.images.test].map(|indices| checksum(indices));
        FigureKey::new(
            &format!("{}, {name}", self.source.name),
            json!({
                "features": features.identity, "data": self.evaluator.data(), "kept": images, "protocol": protocol,
            }),
        )
    }

    /// Bank and queries `[n, F]` of one encoder's layer.
    fn features(&mut self, column: &FeatureColumn) -> Result<(Tensor, Tensor), EvalError> {
        self.evaluator.context.check_stop()?;
        if self.evaluator.features.is_none() {
            self.evaluator.features = Some(self.evaluator.extract()?);
        }
        let read = self.evaluator.features.as_ref().expect("features were just extracted");
        if read.train.indices != self.images.train || read.test.indices != self.images.test {
            return Err(EvalError::ImagesChanged(
                "images can be decoded that could not before, or the other way round; evaluate with --fresh",
            ));
        }
        // One column at a time: all of them may exceed the memory of a GPU.
        let device = self.evaluator.context.encoder.device();
        let load = |part: &Extracted| part.features[column.index].to_device(device);
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != column.index) {
            self.loaded = Some((column.index, (load(&read.train), load(&read.test))));
        }
        let (_, (train, test)) = self.loaded.as_ref().expect("a column was just loaded");
        let layer = |part: &Tensor| part.narrow(1, column.offset, self.source.dimensions).contiguous();
        Ok((layer(train), layer(test)))
    }

    /// Weighted kNN, plain kNN, and retrieval if it runs.
    fn neighbours(&mut self, column: &FeatureColumn) -> Result<[Option<Figure>; 3], EvalError> {
        let config = self.evaluator.context.config;
        let (k, temperature) = (config.neighbours(self.images.train.len()), config.knn_temperature);
        let retrieval_k = config.retrieval_neighbours();
        let keys = [
            self.key("knn", column, json!(["knn", k, temperature, AREA])),
            self.key("knn plain", column, json!(["knn", k, AREA])),
            self.key("retrieval", column, json!(["retrieval", retrieval_k])),
        ];
        let wanted = if retrieval_k > 0 { 3 } else { 2 };
        let cache = self.evaluator.context.cache;
        let mut found: [Option<Figure>; 3] =
            std::array::from_fn(|at| (at < wanted).then(|| cache.figure(&keys[at])).flatten());
        if found[..wanted].iter().all(Option::is_some) {
            return Ok(found);
        }
        let (bank, queries) = self.features(column)?;
        let (labels, truth) = self.images.labels(self.evaluator.set);
        let labels = labels.to_device(bank.device());
        let neighbours = Neighbours::of(&bank, &queries, k.max(retrieval_k));
        let vote = |temperature: Option<f64>| {
            let scores = neighbours.scores(&labels, self.evaluator.classes(), k, temperature);
            figure_of_scores(&scores.to_device(Device::Cpu), &truth)
        };
        let retrieval = || {
            let precision = neighbours.precision(&labels, &truth.to_device(bank.device()), retrieval_k);
            Figure::of(precision.mean(Kind::Double).double_value(&[]))
        };
        let figures: [&dyn Fn() -> Figure; 3] = [&|| vote(temperature), &|| vote(None), &retrieval];
        for (at, figure) in figures[..wanted].iter().enumerate() {
            found[at] = Some(cache.store_figure(&keys[at], figure())?);
        }
        Ok(found)
    }

    /// The linear classifier on each subset of `column`; those that are not cached are fitted together.
    fn linear(&mut self, features: &FeatureColumn, column: &Column) -> Result<Vec<Figure>, EvalError> {
        let config = self.evaluator.context.config;
        let options = LinearOptions { seed: config.seed, ..config.linear.clone() };
        let key = |(draw, subset): (usize, &Vec<usize>)| {
            let protocol = json!(["linear", SOLVER, format!("{options:?}"), checksum(subset)]);
            self.key(&format!("linear, {}, {draw}", column.name()), features, protocol)
        };
        let keys: Vec<FigureKey> = column.subsets.iter().enumerate().map(key).collect();
        let cache = self.evaluator.context.cache;
        // Earlier versions stored figures without a lambda if no label could be held out.
        let cached = |key: &FigureKey| cache.figure(key).filter(|figure| figure.lambda.is_some());
        let mut figures: Vec<Option<Figure>> = keys.iter().map(cached).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&draw| figures[draw].is_none()).collect();
        if !missing.is_empty() {
            let subsets: Vec<&[usize]> = missing.iter().map(|&draw| &column.subsets[draw][..]).collect();
            for (draw, figure) in missing.into_iter().zip(self.fit(features, &subsets, &options)?) {
                figures[draw] = Some(cache.store_figure(&keys[draw], figure)?);
            }
        }
        Ok(figures.into_iter().flatten().collect())
    }

    fn fit(
        &mut self,
        features: &FeatureColumn,
        subsets: &[&[usize]],
        options: &LinearOptions,
    ) -> Result<impl Iterator<Item = Figure>, EvalError> {
        let (bank, test) = self.features(features)?;
        let row =
            |index: &usize| self.images.train.binary_search(index).expect("subsets are decodable") as i64;
        let rows: Vec<Vec<i64>> = subsets.iter().map(|subset| subset.iter().map(row).collect()).collect();
        let (labels, truth) = self.images.labels(self.evaluator.set);
        let labels = labels.to_device(bank.device());
        let fits = linear::fit_subsets((&bank, &labels, self.evaluator.classes()), &rows, options);
        Ok(fits.into_iter().map(move |fit| figure_of_fit(&fit, &test, &truth)))
    }
}

/// The figure of a classifier on the test images.
fn figure_of_fit(fit: &LinearFit, test: &Tensor, truth: &Tensor) -> Figure {
    let scores = fit.classifier.decision(test).to_device(Device::Cpu);
    let untuned = if fit.is_unscored() { "; no label could be held out: the largest lambda" } else { "" };
    let how = format!("{} after {} iterations{untuned}", fit.minimum.stop.describe(), fit.minimum.iterations);
    Figure { lambda: Some(fit.lambda), how, ..figure_of_scores(&scores, truth) }
}

/// The figure of scores `[n, K]`, with the area under the ROC curve for two classes.
fn figure_of_scores(scores: &Tensor, truth: &Tensor) -> Figure {
    let area = || per_class::auroc(&(scores.select(1, 1) - scores.select(1, 0)), truth);
    let auroc = if scores.size()[1] == 2 { area() } else { None };
    Figure { auroc, ..Figure::accuracy(&scores.argmax(1, false), truth) }
}
