//! Labelled images of each column of the table (a fraction of the labels, or labels per class): class-balanced subsets drawn
//! by seed, or given as lists of names. All protocols use the same subsets.

use std::path::PathBuf;

use simclr_data::{Dataset, output};

use super::{labelled_set::LabelledSet, splits};
use crate::{
    EvalError,
    checkpoint::write_atomically,
    eval::{
        options::EvalConfig,
        report::{Cell, Figure},
    },
    train::RunFolder,
};

/// Columns of the table, fewest labels first.
#[derive(Debug)]
pub(crate) struct LabelSubsets {
    pub(crate) columns: Vec<Column>,
    /// Explains columns other than the requested ones.
    pub(crate) note: Option<String>,
}

/// A number of labels, and the subsets of the training images of that size.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// Fraction of the training labels, requested or resulting from `per_class`.
    pub(crate) fraction: f64,
    /// Requested labels per class, in columns of that kind.
    pub(crate) per_class: Option<usize>,
    /// Indices in the training split, ascending.
    pub(crate) subsets: Vec<Vec<usize>>,
}

/// Labels per class that replace the default fractions on small sets.
const PER_CLASS: [usize; 3] = [1, 5, 20];

impl Column {
    fn new(fraction: f64, per_class: Option<usize>) -> Self {
        Self { fraction, per_class, subsets: Vec::new() }
    }

    /// Labels of each subset.
    pub(crate) fn labels(&self) -> usize {
        self.subsets.first().map_or(0, Vec::len)
    }

    pub(crate) fn has_all_labels(&self) -> bool {
        self.per_class.is_none() && self.fraction >= 1.0
    }

    /// Part of file names: `10pct` or `5-per-class`.
    pub(crate) fn name(&self) -> String {
        let fraction = || format!("{}pct", 100.0 * self.fraction);
        self.per_class.map_or_else(fraction, |labels| format!("{labels}-per-class"))
    }

    pub(crate) fn cell(&self, figures: Vec<Figure>) -> Cell {
        Cell { shots: self.per_class, ..Cell::of_figures(self.fraction, self.labels(), figures) }
    }

    /// Without subsets yet: all of the images `usable`, or `draws` subsets of them.
    fn draw(&mut self, usable: &[usize], labels: &[i64], classes: usize, config: &EvalConfig) {
        if self.has_all_labels() {
            self.subsets.push(usable.to_vec());
            return;
        }
        let by_fraction = || splits::per_class(labels.len(), classes, self.fraction);
        let per_class = self.per_class.unwrap_or_else(by_fraction);
        for draw in 0..config.draws as u64 {
            let positions = splits::few_shot(labels, classes, per_class, config.seed, draw);
            self.subsets.push(positions.into_iter().map(|position| usable[position]).collect());
        }
    }
}

impl LabelSubsets {
    /// Subsets of the training images `usable`. A given list replaces the drawn subsets of the column nearest to it in size
    /// among those with fewer than all labels.
    ///
    /// # Errors
    /// A list with no image of the training part; more labels per class than any class has.
    pub(crate) fn of(set: &LabelledSet, usable: &[usize], config: &EvalConfig) -> Result<Self, EvalError> {
        let labels: Vec<i64> = usable.iter().map(|&index| set.train_labels[index]).collect();
        let classes = set.train.classes().len();
        let (mut columns, note) = columns(&labels, classes, config)?;
        for list in &config.label_lists {
            let mut listed = set.train.listed(list)?;
            listed.retain(|index| usable.binary_search(index).is_ok());
            let fraction = listed.len() as f64 / usable.len() as f64;
            let few = columns.iter_mut().filter(|column| !column.has_all_labels());
            let distance = |column: &Column| (column.fraction / fraction).ln().abs();
            let nearest = few.min_by(|a, b| distance(a).total_cmp(&distance(b)));
            let (Some(column), false) = (nearest, listed.is_empty()) else {
                let reason = "none of its images can be trained on".into();
                return Err(EvalError::File { path: list.clone(), reason });
            };
            column.subsets.push(listed);
        }
        for column in columns.iter_mut().filter(|column| column.subsets.is_empty()) {
            column.draw(usable, &labels, classes, config);
        }
        Ok(Self { columns, note })
    }

    /// Writes `evaluation/labels/NAME-DRAW.txt` of each column with fewer than all labels: one name a line, the format of
    /// `label_lists`. A file that is one of `lists` stays as it is.
    pub(crate) fn write(&self, run: &RunFolder, set: &Dataset, lists: &[PathBuf]) -> Result<(), EvalError> {
        let (folder, given) = (run.evaluation().join("labels"), list_files(lists)?);
        fs_err::create_dir_all(&folder)?;
        for column in self.columns.iter().filter(|column| !column.has_all_labels()) {
            for (draw, subset) in column.subsets.iter().enumerate() {
                let file = folder.join(format!("{}-{draw}.txt", column.name()));
                if !given.contains(&output::resolved(&file)?) {
                    write_atomically(&file, name_lines(set, subset).as_bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// The files of `lists`, absolute: the paths as given, and those that they link to.
pub(crate) fn list_files(lists: &[PathBuf]) -> Result<Vec<PathBuf>, EvalError> {
    let mut files = Vec::new();
    for list in lists {
        files.extend([output::resolved(list)?, fs_err::canonicalize(list)?]);
    }
    Ok(files)
}

/// Names of the images `indices`, one a line.
pub(crate) fn name_lines(set: &Dataset, indices: &[usize]) -> String {
    let names: Vec<&str> = indices.iter().map(|&index| set.samples()[index].name.as_str()).collect();
    names.join("\n") + "\n"
}

/// The columns without their images, and a note if they are not the requested ones.
fn columns(
    labels: &[i64],
    classes: usize,
    config: &EvalConfig,
) -> Result<(Vec<Column>, Option<String>), EvalError> {
    let mut largest = vec![0; classes];
    labels.iter().for_each(|&label| largest[label as usize] += 1);
    let largest = largest.into_iter().max().unwrap_or(0);
    if let Some(&requested) = config.labels_per_class.iter().find(|labels| **labels >= largest) {
        return Err(EvalError::LabelsPerClass { requested, largest });
    }
    let (mut fractions, mut per_class) = (config.label_fractions.clone(), config.labels_per_class.clone());
    let note = equal_fractions(labels.len(), classes, config);
    if note.is_some() {
        per_class = PER_CLASS.into_iter().filter(|labels| *labels < largest).collect();
        fractions.retain(|fraction| *fraction >= 1.0);
    }
    let fraction = |per_class: usize| ((per_class * classes) as f64 / labels.len() as f64).min(1.0);
    let by_class = per_class.into_iter().map(|labels| Column::new(fraction(labels), Some(labels)));
    let by_fraction = fractions.into_iter().map(|fraction| Column::new(fraction, None));
    let mut columns: Vec<Column> = by_fraction.chain(by_class).collect();
    columns.sort_by(|a, b| a.fraction.total_cmp(&b.fraction).then(b.per_class.cmp(&a.per_class)));
    columns.dedup_by(|a, b| (a.fraction, a.per_class) == (b.fraction, b.per_class));
    Ok((columns, note))
}

/// A note if the default fractions below 1 come to the same number of labels.
fn equal_fractions(labels: usize, classes: usize, config: &EvalConfig) -> Option<String> {
    let default = config.labels_per_class.is_empty()
        && config.label_lists.is_empty()
        && config.label_fractions == EvalConfig::default().label_fractions;
    let few = || config.label_fractions.iter().filter(|fraction| **fraction < 1.0);
    let counts: Vec<usize> = few().map(|&fraction| splits::per_class(labels, classes, fraction)).collect();
    if !default || counts.windows(2).all(|pair| pair[0] != pair[1]) {
        return None;
    }
    let percents: Vec<String> = few().map(|fraction| format!("{} %", 100.0 * fraction)).collect();
    Some(format!(
        "{} of the labels are all {} per class on this set: columns are labels per class in their place",
        percents.join(" and "),
        counts[0]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(per_class: usize, config: &EvalConfig) -> (Vec<(Option<usize>, f64)>, Option<String>) {
        let labels: Vec<i64> = (0..3 * per_class as i64).map(|at| at % 3).collect();
        let (columns, note) = columns(&labels, 3, config).unwrap();
        (columns.iter().map(|column| (column.per_class, column.fraction)).collect(), note)
    }

    #[test]
    fn fractions_with_equal_label_counts_become_labels_per_class() {
        let default = EvalConfig::default();
        let (columns, note) = chosen(1000, &default);
        assert_eq!((columns, note), (vec![(None, 0.01), (None, 0.1), (None, 1.0)], None));
        let (columns, note) = chosen(10, &default);
        assert_eq!(columns, [(Some(1), 0.1), (Some(5), 0.5), (None, 1.0)]);
        assert!(note.unwrap().contains("1 % and 10 % of the labels are all 1 per class"));
        // Requested fractions stay.
        let requested = EvalConfig { label_fractions: vec![0.01, 0.02, 1.0], ..EvalConfig::default() };
        assert_eq!(chosen(10, &requested).0.len(), 3);
    }

    #[test]
    fn labels_per_class_add_columns() {
        let config =
            EvalConfig { label_fractions: vec![1.0], labels_per_class: vec![5, 1], ..EvalConfig::default() };
        assert_eq!(chosen(100, &config).0, [(Some(1), 0.01), (Some(5), 0.05), (None, 1.0)]);
        let labels: Vec<i64> = (0..15).map(|at| at % 3).collect();
        let error = columns(&labels, 3, &config).unwrap_err().to_string();
        assert!(error.contains("fewer than the 5 images of the largest class"), "{error}");
    }
}
