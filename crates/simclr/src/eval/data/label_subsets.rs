//! The labelled images of each column of the table (a share of the labels, or so many per class): drawn class-balanced by
//! seed, or given as lists of names. Every
//! protocol sees the same ones, so that fine-tuning and the linear classifier stand side by side.

use simclr_data::Dataset;

use crate::eval::data::labelled_set::Sets;
use crate::eval::data::splits;
use crate::eval::evaluate::EvalOptions;
use crate::eval::report::results::Cell;
use crate::eval::report::results_cache::Figure;
use crate::{EvalError, train::RunFolder};

/// Columns of the table, fewest labels first, the last one with all labels where the options ask for it.
#[derive(Debug)]
pub(crate) struct LabelSets {
    columns: Vec<Column>,
    /// What a reader must know of the choice of columns.
    pub(crate) note: Option<String>,
}

/// A number of labels, and the subsets of the training images that have them.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Share of the training labels: as asked for, or where labels per class were, as it comes out.
    pub(crate) share: f64,
    /// Labels per class, where these were asked for.
    pub(crate) shots: Option<usize>,
    /// Indices in the training split, ascending.
    pub(crate) subsets: Vec<Vec<usize>>,
}

/// Labels per class where shares of a small set would not differ.
const SHOTS: [usize; 3] = [1, 5, 20];

impl Column {
    fn new(share: f64, shots: Option<usize>) -> Self {
        Self { share, shots, subsets: Vec::new() }
    }

    /// Labels of each subset.
    pub(crate) fn labels(&self) -> usize {
        self.subsets.first().map_or(0, Vec::len)
    }

    /// For names of files: `10pct` or `5-per-class`.
    pub(crate) fn name(&self) -> String {
        self.shots.map_or_else(|| format!("{}pct", 100.0 * self.share), |shots| format!("{shots}-per-class"))
    }

    /// The cell of this column.
    pub(crate) fn cell(&self, figures: Vec<Figure>) -> Cell {
        Cell { shots: self.shots, ..Cell::of_figures(self.share, self.labels(), figures) }
    }
}

impl LabelSets {
    /// Of the images `kept` (those that can be decoded). A given list stands for the column with fewer than all labels that it
    /// is nearest to, and takes the place of that column's drawn subsets.
    ///
    /// # Errors
    /// A list that names no image of the set, or one that is not in its training part; more labels per class than any class
    /// has.
    pub(crate) fn of(sets: &Sets, kept: &[usize], options: &EvalOptions) -> Result<Self, EvalError> {
        let labels: Vec<i64> = kept.iter().map(|&index| sets.train_labels[index]).collect();
        let classes = sets.train.classes().len();
        let (mut columns, note) = columns(&labels, classes, options)?;
        for list in &options.lists {
            let mut listed = sets.train.listed(list)?;
            listed.retain(|index| kept.binary_search(index).is_ok());
            let its = listed.len() as f64 / kept.len() as f64;
            let few = columns.iter_mut().filter(|column| column.share < 1.0);
            let distance = |column: &Column| (column.share / its).ln().abs();
            let nearest = few.min_by(|a, b| distance(a).total_cmp(&distance(b)));
            let (Some(column), false) = (nearest, listed.is_empty()) else {
                let reason = format!("`{}`: none of its images can be trained on", list.display());
                return Err(EvalError::Refused(reason));
            };
            column.subsets.push(listed);
        }
        for column in columns.iter_mut().filter(|column| column.subsets.is_empty()) {
            if column.shots.is_none() && column.share >= 1.0 {
                column.subsets.push(kept.to_vec());
                continue;
            }
            let per_class =
                column.shots.unwrap_or_else(|| splits::per_class(labels.len(), classes, column.share));
            for draw in 0..options.draws as u64 {
                let positions = splits::few_shot(&labels, classes, per_class, options.seed, draw);
                column.subsets.push(positions.into_iter().map(|position| kept[position]).collect());
            }
        }
        Ok(Self { columns, note })
    }

    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Writes `evaluation/labels/NAME-DRAW.txt` of each column with fewer than all labels, names one a line: the lists that
    /// `--labels` takes.
    pub(crate) fn write(&self, run: &RunFolder, set: &Dataset) -> Result<(), EvalError> {
        fs_err::create_dir_all(run.path().join("evaluation/labels"))?;
        for column in self.columns.iter().filter(|column| column.share < 1.0) {
            for (draw, subset) in column.subsets.iter().enumerate() {
                let names: Vec<&str> =
                    subset.iter().map(|&index| set.samples()[index].name.as_str()).collect();
                let name = format!("evaluation/labels/{}-{draw}.txt", column.name());
                run.write(&name, &(names.join("\n") + "\n"))
                    .map_err(|error| EvalError::Training(Box::new(error)))?;
            }
        }
        Ok(())
    }
}

/// The columns that the options ask for, still without images, and a note where others were chosen.
fn columns(
    labels: &[i64],
    classes: usize,
    options: &EvalOptions,
) -> Result<(Vec<Column>, Option<String>), EvalError> {
    let mut largest = vec![0; classes];
    labels.iter().for_each(|&label| largest[label as usize] += 1);
    let largest = largest.into_iter().max().unwrap_or(0);
    if let Some(shots) = options.shots.iter().find(|shots| **shots >= largest) {
        let reason = format!(
            "{shots} labels per class: expected fewer than the {largest} images of the largest class"
        );
        return Err(EvalError::Refused(reason));
    }
    let few: Vec<f64> = options.shares.iter().copied().filter(|share| *share < 1.0).collect();
    let counts: Vec<usize> =
        few.iter().map(|&share| splits::per_class(labels.len(), classes, share)).collect();
    let default = options.shots.is_empty()
        && options.lists.is_empty()
        && options.shares == EvalOptions::default().shares;
    let (mut shots, mut note) = (options.shots.clone(), None);
    let mut shares = options.shares.clone();
    if default && counts.windows(2).any(|pair| pair[0] == pair[1]) {
        shots = SHOTS.into_iter().filter(|shots| *shots < largest).collect();
        shares.retain(|share| *share >= 1.0);
        let percents: Vec<String> = few.iter().map(|share| format!("{} %", 100.0 * share)).collect();
        note = Some(format!(
            "{} of the labels are all {} per class on this set: columns are labels per class in their place",
            percents.join(" and "),
            counts[0]
        ));
    }
    let share = |shots: usize| ((shots * classes) as f64 / labels.len() as f64).min(1.0);
    let by_class = shots.into_iter().map(|shots| Column::new(share(shots), Some(shots)));
    let mut columns: Vec<Column> =
        shares.into_iter().map(|share| Column::new(share, None)).chain(by_class).collect();
    columns.sort_by(|a, b| a.share.total_cmp(&b.share).then(b.shots.cmp(&a.shots)));
    columns.dedup_by(|a, b| (a.share, a.shots) == (b.share, b.shots));
    Ok((columns, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(per_class: usize, options: &EvalOptions) -> (Vec<(Option<usize>, f64)>, Option<String>) {
        let labels: Vec<i64> = (0..3 * per_class as i64).map(|at| at % 3).collect();
        let (columns, note) = columns(&labels, 3, options).unwrap();
        (columns.iter().map(|column| (column.shots, column.share)).collect(), note)
    }

    #[test]
    fn percents_that_are_one_number_of_labels_become_labels_per_class() {
        let default = EvalOptions::default();
        let (columns, note) = chosen(1000, &default);
        assert_eq!((columns, note), (vec![(None, 0.01), (None, 0.1), (None, 1.0)], None));
        let (columns, note) = chosen(10, &default);
        assert_eq!(columns, [(Some(1), 0.1), (Some(5), 0.5), (None, 1.0)]);
        assert!(note.unwrap().contains("1 % and 10 % of the labels are all 1 per class"));
        // Shares that were asked for stay.
        let asked = EvalOptions { shares: vec![0.01, 0.02, 1.0], ..EvalOptions::default() };
        assert_eq!(chosen(10, &asked).0.len(), 3);
    }

    #[test]
    fn labels_per_class_are_columns_beside_the_shares() {
        let options = EvalOptions { shares: vec![1.0], shots: vec![5, 1], ..EvalOptions::default() };
        assert_eq!(chosen(100, &options).0, [(Some(1), 0.01), (Some(5), 0.05), (None, 1.0)]);
        let labels: Vec<i64> = (0..15).map(|at| at % 3).collect();
        let error = columns(&labels, 3, &options).unwrap_err().to_string();
        assert!(error.contains("fewer than the 5 images of the largest class"), "{error}");
    }
}
