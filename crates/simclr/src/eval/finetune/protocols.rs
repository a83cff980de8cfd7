//! Protocols that train on the evaluated set: fine-tuning with few and all labels (paper B.5), the linear classifier on
//! crops of frozen images (B.6), and the supervised baseline (B.3). Their rows; `training` trains, `recipes` says how.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use tch::Tensor;

use crate::eval::data::label_subsets::{Column, LabelSets};
use crate::eval::data::labelled_set::Sets;
use crate::eval::data::splits;
use crate::eval::features::frozen_encoder::label_tensor;
use crate::eval::finetune::grid::{Candidate, Grid};
use crate::eval::finetune::presets::{self, BATCH, FinetuneRecipe, LINEAR_RATE, Length};
use crate::eval::finetune::runner::{Exam, Lesson, RunPurpose, Source, Trainer};
use crate::eval::probes::frozen::Kept;
use crate::eval::report::results::{Cell, Row};
use crate::eval::report::results_cache::Figure;
use crate::{EvalError, RunConfig, optim::OptimKind};

/// Which of them to run, and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainedOptions {
    /// Fine-tune the whole network from the run's weights, and beside it from fresh ones.
    pub finetune: bool,
    /// The linear classifier by SGD on random crops of all training images, encoder frozen.
    pub linear_sgd: bool,
    /// The encoder from fresh weights with all labels, by the run's own recipe.
    pub supervised: bool,
    /// Layers of the projection head kept below the classifier in fine-tuning: a row for each (0: from h; SimCLRv2: 1).
    pub keep_head: Vec<usize>,
    /// Optimizer, rates and batch of fine-tuning.
    pub recipe: FinetuneRecipe,
    /// Base learning rates of fine-tuning; empty: the recipe's. Several are compared on a hold-out of the labels.
    pub rates: Vec<f64>,
    /// Several rates of fine-tuning are compared up to this many labels; with more, the first is taken.
    pub sweep_below: usize,
    /// Base learning rates of the linear classifier on crops, for 256 images; several are compared on a hold-out.
    pub linear_rates: Vec<f64>,
    /// Weight decays of the linear classifier on crops; several are compared on a hold-out.
    pub linear_decays: Vec<f64>,
    /// Optimizer of the linear classifier on crops: SGD, or LARS as the paper's alternative (B.6).
    pub linear_optim: OptimKind,
    /// Images per step of fine-tuning and of the linear classifier, at most; a quarter of the labels where that is fewer. None:
    /// 256, or the recipe's.
    pub batch: Option<usize>,
    /// Epochs; none: as in the paper, 60 below 5 % of the labels and 30 from there on, 90 of the linear classifier.
    pub epochs: Option<f64>,
    /// Subsets of labels, for each share below 1, that are fine-tuned on: the first of those of the linear classifier.
    pub draws: usize,
    /// Seeds of what is trained with all labels, counting up from the run's.
    pub seeds: u64,
}

impl Default for TrainedOptions {
    fn default() -> Self {
        Self {
            finetune: false,
            linear_sgd: false,
            supervised: false,
            keep_head: vec![0],
            recipe: FinetuneRecipe::default(),
            rates: Vec::new(),
            sweep_below: 10_000,
            linear_rates: vec![LINEAR_RATE],
            linear_decays: vec![0.0],
            linear_optim: OptimKind::Sgd,
            batch: None,
            epochs: None,
            draws: 3,
            seeds: 1,
        }
    }
}

/// Share of the labels on which candidates are compared.
const HOLD_OUT: f64 = 0.2;

impl TrainedOptions {
    /// # Errors
    /// A value that cannot be run.
    pub fn check(&self) -> Result<(), EvalError> {
        let positive = |rates: &[f64]| !rates.is_empty() && rates.iter().all(|r| r.is_finite() && *r > 0.0);
        let decays = &self.linear_decays;
        let fine = self.draws >= 1
            && self.seeds >= 1
            && self.batch.is_none_or(|batch| batch >= 2)
            && self.epochs.is_none_or(|epochs| epochs > 0.0)
            && (self.rates.is_empty() || positive(&self.rates))
            && positive(&self.linear_rates)
            && !decays.is_empty()
            && decays.iter().all(|decay| decay.is_finite() && *decay >= 0.0)
            && !self.keep_head.is_empty()
            && [OptimKind::Sgd, OptimKind::Lars].contains(&self.linear_optim);
        let wrong = "evaluation options: expected learning rates and epochs above 0, weight decays of at least 0, at least \
                     one draw, one seed and one layer to start from, a batch of 2, and sgd or lars for the linear classifier";
        if fine { Ok(()) } else { Err(EvalError::Refused(wrong.into())) }
    }
}

/// Everything that these protocols share.
pub(crate) struct Bench<'a, 'b> {
    pub(crate) trainer: &'a mut Trainer<'b>,
    pub(crate) data: &'a Path,
    pub(crate) sets: &'a Sets,
    pub(crate) kept: &'a Kept,
    pub(crate) labels: &'a LabelSets,
}

/// Rows, and the protocols in words by the name of their row.
pub(crate) type Rows = (Vec<Row>, Vec<(String, String)>);

impl<'a> Bench<'a, '_> {
    /// The rows that the options ask for.
    pub(crate) fn rows(&mut self) -> Result<Rows, EvalError> {
        let (mut rows, mut protocols) = (Vec::new(), Vec::new());
        let mut add = |found: Option<(Row, String)>| {
            if let Some((row, words)) = found {
                protocols.push((row.name.clone(), words));
                rows.push(row);
            }
        };
        add(self.linear_row()?);
        if self.options().finetune {
            for keep in self.options().keep_head.clone() {
                add(Some(self.finetuned_row(keep)?));
            }
            add(Some((self.finetuned(FRESH, None, 0)?, "the same from fresh weights".into())));
        }
        add(self.supervised_row()?);
        Ok((rows, protocols))
    }

    fn options(&self) -> &TrainedOptions {
        &self.trainer.options.trained
    }

    /// The run's configuration and weights.
    fn run(&self) -> (&RunConfig, Option<PathBuf>) {
        let frozen = self.trainer.frozen;
        (frozen.config(), frozen.origin().checkpoint.clone())
    }

    fn length(&self, batch: usize) -> Length {
        let options = self.options();
        Length { epochs: options.epochs, batch: options.batch.unwrap_or(batch) }
    }

    fn finetune_length(&self) -> Length {
        self.length(self.options().recipe.batch())
    }

    fn finetune_rates(&self) -> Vec<f64> {
        let options = self.options();
        if options.rates.is_empty() { options.recipe.rates() } else { options.rates.clone() }
    }

    fn linear_row(&mut self) -> Result<Option<(Row, String)>, EvalError> {
        if !self.options().linear_sgd {
            return Ok(None);
        }
        let kind = self.options().linear_optim;
        let (run, start) = self.run();
        let config = presets::linear(run, start, kind, self.kept.train.len(), self.length(BATCH));
        let grid = self.linear_grid();
        let place = format!("linear-{}", if kind == OptimKind::Sgd { "sgd" } else { "lars" });
        let cell = self.with_all(&place, &config, &grid)?;
        let name = format!("linear on crops ({kind:?})").to_lowercase();
        let words = format!("{}{}", presets::words(&config), grid.words());
        Ok(Some((self.row(&name, vec![cell]), words)))
    }

    fn finetuned_row(&mut self, keep: usize) -> Result<(Row, String), EvalError> {
        let (run, start) = self.run();
        let all = (1.0, self.kept.train.len());
        let config =
            presets::finetune(run, start.clone(), (self.options().recipe, keep), all, self.finetune_length());
        let words = presets::words(&config) + &self.finetune_grid().words();
        let row = self.finetuned(&finetuned_name(keep), start.as_ref(), keep)?;
        Ok((row, format!("from the run's weights; {words}")))
    }

    fn supervised_row(&mut self) -> Result<Option<(Row, String)>, EvalError> {
        if !self.options().supervised {
            return Ok(None);
        }
        let config = presets::supervised(self.run().0, self.kept.train.len());
        let only = Grid::one(config.optim.lr, config.optim.weight_decay);
        let cell = self.with_all("supervised", &config, &only)?;
        let words = format!("the run's own recipe with labels: {}", presets::words(&config));
        Ok(Some((self.row(SUPERVISED, vec![cell]), words)))
    }

    /// How many models the options ask for.
    pub(crate) fn count(&self) -> usize {
        let options = self.options();
        let (all, seeds) = (self.kept.train.len(), options.seeds as usize);
        let linear = seeds + self.linear_grid().size(all);
        let column = |column: &Column| {
            let grid = self.finetune_grid();
            let finals = if column.share < 1.0 { 1 } else { seeds };
            self.finetune_sets(column).iter().map(|subset| finals + grid.size(subset.len())).sum::<usize>()
        };
        let finetuned =
            self.labels.columns().iter().map(column).sum::<usize>() * (options.keep_head.len() + 1);
        let asked =
            [(options.linear_sgd, linear), (options.finetune, finetuned), (options.supervised, seeds)];
        asked.iter().filter(|(asked, _)| *asked).map(|(_, count)| count).sum()
    }

    fn linear_grid(&self) -> Grid {
        Grid::product(&self.options().linear_rates, &self.options().linear_decays)
    }

    fn finetune_grid(&self) -> Grid {
        Grid { below: self.options().sweep_below, ..Grid::product(&self.finetune_rates(), &[0.0]) }
    }

    /// The subsets of one column that are fine-tuned on.
    fn finetune_sets<'c>(&self, column: &'c Column) -> &'c [Vec<usize>] {
        let subsets = &column.subsets;
        // Lists were given to be used, all of them.
        let given = !self.trainer.options.lists.is_empty();
        let count = if given { subsets.len() } else { self.options().draws };
        &subsets[..count.min(subsets.len())]
    }

    /// A cell of what is trained with all labels, over seeds.
    fn with_all(&mut self, place: &str, config: &RunConfig, grid: &Grid) -> Result<Cell, EvalError> {
        let all = self.kept.train.clone();
        let chosen = self.best(place, config, &all, grid)?;
        let figures = (0..self.options().seeds).map(|seed| {
            let mut config = chosen.put(config);
            config.train.seed = config.train.seed.wrapping_add(seed);
            let place = if seed == 0 { place.to_owned() } else { format!("{place}-seed-{seed}") };
            let figure = self.figure(&place, &config, &all)?;
            Ok(Figure { how: chosen.said(), ..figure })
        });
        Ok(Cell::of_figures(1.0, all.len(), figures.collect::<Result<_, EvalError>>()?))
    }

    /// One row of fine-tuning: a cell for each column.
    fn finetuned(&mut self, name: &str, start: Option<&PathBuf>, keep: usize) -> Result<Row, EvalError> {
        let mut cells = Vec::new();
        let labels = self.labels;
        for column in labels.columns() {
            let place = |draw: usize| format!("{}-{}-{draw}", name.replace([' ', ','], "-"), column.name());
            cells.push(self.finetuned_cell(&place, column, start, keep)?);
        }
        Ok(self.row(name, cells))
    }

    fn finetuned_cell(
        &mut self,
        place: &dyn Fn(usize) -> String,
        column: &Column,
        start: Option<&PathBuf>,
        keep: usize,
    ) -> Result<Cell, EvalError> {
        let share = column.share;
        let (run, grid, length) =
            (self.trainer.frozen.config(), self.finetune_grid(), self.finetune_length());
        let how = (self.options().recipe, keep);
        let config = |labels: usize| presets::finetune(run, start.cloned(), how, (share, labels), length);
        if share >= 1.0 {
            return self.with_all(&place(0), &config(self.kept.train.len()), &grid);
        }
        let (subsets, mut figures) = (self.finetune_sets(column).to_vec(), Vec::new());
        for (draw, subset) in subsets.iter().enumerate() {
            let config = config(subset.len());
            let chosen = self.best(&place(draw), &config, subset, &grid)?;
            let figure = self.figure(&place(draw), &chosen.put(&config), subset)?;
            figures.push(Figure { how: chosen.said(), ..figure });
        }
        Ok(column.cell(figures))
    }

    fn row(&self, name: &str, by_labels: Vec<Cell>) -> Row {
        let dimensions = self.trainer.frozen.feature_dim();
        let (name, per_class) = (name.into(), Vec::new());
        Row { name, dimensions, knn: None, knn_plain: None, retrieval: None, by_labels, per_class }
    }

    /// The candidate with the highest accuracy on a stratified fifth of the labels; the first of equals.
    fn best(
        &mut self,
        place: &str,
        config: &RunConfig,
        subset: &[usize],
        grid: &Grid,
    ) -> Result<Candidate, EvalError> {
        if grid.size(subset.len()) == 0 {
            return Ok(grid.candidates[0]);
        }
        let sets = self.sets;
        let labels: Vec<i64> = subset.iter().map(|&index| sets.train_labels[index]).collect();
        let classes = sets.train.classes().len();
        let (fit, held) = splits::hold_out(&labels, classes, HOLD_OUT, self.trainer.options.seed);
        if held.is_empty() || fit.len() < 2 {
            self.trainer.trained.0 += grid.candidates.len();
            return Ok(grid.candidates[0]);
        }
        let pick =
            |positions: &[usize]| positions.iter().map(|&position| subset[position]).collect::<Vec<_>>();
        let (fit, held) = (pick(&fit), pick(&held));
        let mut config = config.clone();
        config.train.batch = config.train.batch.min(fit.len());
        let lesson = self.lesson(&fit);
        let accuracy = accuracy(&sets.train_labels);
        let exam = Exam { set: &sets.train, images: &held, of: json!("held out"), figure: &accuracy };
        self.trainer.choose(place, &grid.candidates, &config, lesson, &exam)
    }

    /// Test accuracy of the classifier trained by `config` on the images `indices`.
    fn figure(&mut self, place: &str, config: &RunConfig, indices: &[usize]) -> Result<Figure, EvalError> {
        let (lesson, sets) = (self.lesson(indices), self.sets);
        let accuracy = accuracy(&sets.test_labels);
        let (images, of) = (&self.kept.test[..], json!(sets.identities()));
        let exam = Exam { set: sets.test_set(), images, of, figure: &accuracy };
        self.trainer.figure(place, config, lesson, &exam, RunPurpose::Reported)
    }

    fn lesson<'c>(&self, images: &'c [usize]) -> Lesson<'c>
    where
        'a: 'c,
    {
        let (data, labels, set) = (self.data, self.sets.labels(), &self.sets.train);
        let source = Source { data, labels, set, validation: false };
        Lesson { source, images }
    }
}

/// The share of images whose label is the most likely one.
fn accuracy(labels: &[i64]) -> impl Fn(&Tensor, &[usize]) -> Figure {
    |logits, images| Figure::accuracy(&logits.argmax(1, false), &label_tensor(labels, images))
}

pub(crate) const FINETUNED: &str = "fine-tuned";
const FRESH: &str = "fine-tuned, fresh weights";
const SUPERVISED: &str = "supervised";

fn finetuned_name(keep: usize) -> String {
    if keep == 0 { FINETUNED.into() } else { format!("fine-tuned from head layer {keep}") }
}
