//! Protocols that train on the evaluated set: fine-tuning with few and all labels (paper B.5), the linear classifier on crops
//! of images with the encoder frozen (B.6), and the supervised baseline (B.3).

use std::path::{Path, PathBuf};

use serde_json::json;
use tch::Tensor;

use super::{
    grid::{Candidate, Grid},
    presets::{self, BATCH, Length},
    runner::{EvalSplit, RunPurpose, Runner, TrainData, TrainSubset},
};
use crate::{
    EvalError, RunConfig,
    eval::{
        data::{Column, LabelSubsets, LabelledSet, splits},
        features::{DecodableImages, label_tensor},
        options::{EvalConfig, HOLD_OUT, Protocol, TrainedOptions},
        report::{Cell, Figure, Row},
    },
    optim::OptimKind,
};

pub(crate) const FINETUNED: &str = "fine-tuned";
const FRESH: &str = "fine-tuned, fresh weights";
const SUPERVISED: &str = "supervised";

/// The protocols that train on one set.
pub(crate) struct TrainedProtocols<'p, 'c, 'a> {
    pub(crate) runner: &'p mut Runner<'c, 'a>,
    pub(crate) data: &'p Path,
    pub(crate) set: &'p LabelledSet,
    pub(crate) images: &'p DecodableImages,
    pub(crate) subsets: &'p LabelSubsets,
}

/// Rows, and the name and description of each protocol.
pub(crate) type Rows = (Vec<Row>, Vec<(String, String)>);

impl<'p> TrainedProtocols<'p, '_, '_> {
    pub(crate) fn rows(&mut self) -> Result<Rows, EvalError> {
        let mut found = Vec::new();
        if self.config().runs(Protocol::LinearSgd) {
            found.push(self.linear_row()?);
        }
        if self.config().runs(Protocol::Finetune) {
            for head_layers in self.options().head_layers.clone() {
                found.push(self.finetuned_row(head_layers)?);
            }
            found.push((self.finetuned(FRESH, None, 0)?, "the same from fresh weights".into()));
        }
        if self.config().runs(Protocol::Supervised) {
            found.push(self.supervised_row()?);
        }
        let descriptions = found.iter().map(|(row, description)| (row.name.clone(), description.clone()));
        let descriptions = descriptions.collect();
        Ok((found.into_iter().map(|(row, _)| row).collect(), descriptions))
    }

    /// Number of models to train.
    pub(crate) fn trainings(&self) -> usize {
        let options = self.options();
        let (all, seeds) = (self.images.train.len(), options.seeds as usize);
        let linear = seeds + self.linear_grid().trainings(all);
        let grid = self.finetune_grid();
        let column = |column: &Column| {
            let finals = if column.has_all_labels() { seeds } else { 1 };
            let subsets = self.finetune_subsets(column).iter();
            subsets.map(|subset| finals + grid.trainings(subset.len())).sum::<usize>()
        };
        let finetuned =
            self.subsets.columns.iter().map(column).sum::<usize>() * (options.head_layers.len() + 1);
        let protocols =
            [(Protocol::LinearSgd, linear), (Protocol::Finetune, finetuned), (Protocol::Supervised, seeds)];
        let requested = protocols.iter().filter(|(protocol, _)| self.config().runs(*protocol));
        requested.map(|(_, trainings)| trainings).sum()
    }

    fn config(&self) -> &'p EvalConfig
    where
        Self: 'p,
    {
        self.runner.context.config
    }

    fn options(&self) -> &TrainedOptions {
        &self.runner.context.config.trained
    }

    /// Configuration and weights of the run.
    fn run(&self) -> (&RunConfig, Option<PathBuf>) {
        let encoder = self.runner.context.encoder;
        (encoder.config(), encoder.origin().checkpoint.clone())
    }

    fn length(&self, batch: usize) -> Length {
        let options = self.options();
        Length { epochs: options.epochs, batch: options.batch.unwrap_or(batch) }
    }

    fn finetune_config(
        &self,
        start: Option<PathBuf>,
        head_layers: usize,
        fraction: f64,
        labels: usize,
    ) -> RunConfig {
        let recipe = self.options().finetune_recipe;
        let length = self.length(recipe.batch());
        presets::finetune(self.run().0, start, (recipe, head_layers), (fraction, labels), length)
    }

    fn linear_grid(&self) -> Grid {
        Grid::product(&self.options().linear_rates, &self.options().linear_decays)
    }

    fn finetune_grid(&self) -> Grid {
        let options = self.options();
        let recipe = || options.finetune_recipe.rates();
        let given = Some(options.finetune_rates.clone()).filter(|rates| !rates.is_empty());
        Grid { below: options.sweep_below, ..Grid::product(&given.unwrap_or_else(recipe), &[0.0]) }
    }

    /// The subsets of a column to fine-tune on: all given lists, or the first of the drawn ones.
    fn finetune_subsets<'s>(&self, column: &'s Column) -> &'s [Vec<usize>] {
        let (subsets, given) = (&column.subsets, !self.config().label_lists.is_empty());
        let count = if given { subsets.len() } else { self.options().finetune_draws };
        &subsets[..count.min(subsets.len())]
    }

    fn linear_row(&mut self) -> Result<(Row, String), EvalError> {
        let kind = self.options().linear_optim;
        let (run, start) = self.run();
        let config = presets::linear(run, start, kind, self.images.train.len(), self.length(BATCH));
        let grid = self.linear_grid();
        let folder = format!("linear-{}", if kind == OptimKind::Sgd { "sgd" } else { "lars" });
        let cell = self.cell_with_all_labels(&folder, &config, &grid)?;
        let name = format!("linear on crops ({kind:?})").to_lowercase();
        Ok((self.row(&name, vec![cell]), presets::describe(&config) + &grid.describe()))
    }

    fn finetuned_row(&mut self, head_layers: usize) -> Result<(Row, String), EvalError> {
        let start = self.run().1;
        let config = self.finetune_config(start.clone(), head_layers, 1.0, self.images.train.len());
        let description = presets::describe(&config) + &self.finetune_grid().describe();
        let row = self.finetuned(&finetuned_name(head_layers), start.as_ref(), head_layers)?;
        Ok((row, format!("from the run's weights; {description}")))
    }

    fn supervised_row(&mut self) -> Result<(Row, String), EvalError> {
        let config = presets::supervised(self.run().0, self.images.train.len());
        let grid = Grid::single(config.optim.lr, config.optim.weight_decay);
        let cell = self.cell_with_all_labels("supervised", &config, &grid)?;
        let description = format!("the run's own recipe with labels: {}", presets::describe(&config));
        Ok((self.row(SUPERVISED, vec![cell]), description))
    }

    /// Over seeds.
    fn cell_with_all_labels(
        &mut self,
        name: &str,
        config: &RunConfig,
        grid: &Grid,
    ) -> Result<Cell, EvalError> {
        let images = self.images;
        let chosen = self.best_candidate(name, config, &images.train, grid)?;
        let figures = (0..self.options().seeds).map(|seed| {
            let mut config = chosen.apply(config);
            config.train.seed = config.train.seed.wrapping_add(seed);
            let name = if seed == 0 { name.to_owned() } else { format!("{name}-seed-{seed}") };
            let figure = self.figure(&name, &config, &images.train)?;
            Ok(Figure { how: chosen.describe(), ..figure })
        });
        let figures = figures.collect::<Result<_, EvalError>>()?;
        Ok(Cell::of_figures(1.0, images.train.len(), figures))
    }

    /// Fine-tuning in every column.
    fn finetuned(
        &mut self,
        name: &str,
        start: Option<&PathBuf>,
        head_layers: usize,
    ) -> Result<Row, EvalError> {
        let mut cells = Vec::new();
        for column in &self.subsets.columns {
            let name = format!("{}-{}", name.replace([' ', ','], "-"), column.name());
            let config = |of: &Self, labels: usize| {
                of.finetune_config(start.cloned(), head_layers, column.fraction, labels)
            };
            cells.push(self.finetuned_cell(&name, column, &config)?);
        }
        Ok(self.row(name, cells))
    }

    fn finetuned_cell(
        &mut self,
        name: &str,
        column: &Column,
        config: &dyn Fn(&Self, usize) -> RunConfig,
    ) -> Result<Cell, EvalError> {
        let grid = self.finetune_grid();
        if column.has_all_labels() {
            let config = config(self, self.images.train.len());
            return self.cell_with_all_labels(&format!("{name}-0"), &config, &grid);
        }
        let mut figures = Vec::new();
        for (draw, subset) in self.finetune_subsets(column).iter().enumerate() {
            let (name, config) = (format!("{name}-{draw}"), config(self, subset.len()));
            let chosen = self.best_candidate(&name, &config, subset, &grid)?;
            let figure = self.figure(&name, &chosen.apply(&config), subset)?;
            figures.push(Figure { how: chosen.describe(), ..figure });
        }
        Ok(column.cell(figures))
    }

    fn row(&self, name: &str, by_labels: Vec<Cell>) -> Row {
        Row::of(name, self.runner.context.encoder.feature_dim(), by_labels)
    }

    /// The candidate with the highest accuracy on a stratified hold-out of the labels, of equal ones the first.
    fn best_candidate(
        &mut self,
        name: &str,
        config: &RunConfig,
        subset: &[usize],
        grid: &Grid,
    ) -> Result<Candidate, EvalError> {
        if grid.trainings(subset.len()) == 0 {
            return Ok(grid.candidates[0]);
        }
        let set = self.set;
        let labels: Vec<i64> = subset.iter().map(|&index| set.train_labels[index]).collect();
        let (fit, held) = splits::hold_out(&labels, set.train.classes().len(), HOLD_OUT, self.config().seed);
        if held.is_empty() || fit.len() < 2 {
            self.runner.done += grid.candidates.len();
            return Ok(grid.candidates[0]);
        }
        let images = |positions: &[usize]| positions.iter().map(|&at| subset[at]).collect::<Vec<_>>();
        let (fit, held) = (images(&fit), images(&held));
        let mut config = config.clone();
        config.train.batch = config.train.batch.min(fit.len());
        let metric = accuracy(&set.train_labels);
        let split = EvalSplit { set: &set.train, images: &held, key: json!("held out"), metric: &metric };
        let subset = self.train_subset(&fit);
        self.runner.best_candidate(name, &grid.candidates, &config, subset, &split)
    }

    /// Test accuracy of the classifier trained by `config` on the images `indices`.
    fn figure(&mut self, name: &str, config: &RunConfig, indices: &[usize]) -> Result<Figure, EvalError> {
        let (subset, set) = (self.train_subset(indices), self.set);
        let metric = accuracy(&set.test_labels);
        let (images, key) = (&self.images.test[..], json!(set.identities()));
        let split = EvalSplit { set: set.test_set(), images, key, metric: &metric };
        self.runner.figure(name, config, subset, &split, RunPurpose::Reported)
    }

    fn train_subset<'s>(&self, images: &'s [usize]) -> TrainSubset<'s>
    where
        'p: 's,
    {
        let (path, labels, set) = (self.data, &self.set.labels, &self.set.train);
        TrainSubset { data: TrainData { path, labels, set, validation: false }, images }
    }
}

fn accuracy(labels: &[i64]) -> impl Fn(&Tensor, &[usize]) -> Figure {
    |logits, images| Figure::accuracy(&logits.argmax(1, false), &label_tensor(labels, images))
}

fn finetuned_name(head_layers: usize) -> String {
    if head_layers == 0 { FINETUNED.into() } else { format!("fine-tuned from head layer {head_layers}") }
}
