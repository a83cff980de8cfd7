//! The labelled images of each share of the labels: drawn class-balanced by seed, or given as lists of names. Every
//! protocol sees the same ones, so that fine-tuning and the linear classifier stand side by side.

use simclr_data::Dataset;

use super::{protocol::EvalOptions, sets::Sets, splits};
use crate::{EvalError, train::RunFolder};

/// For each share the subsets of the training images, as indices in the training split, ascending.
#[derive(Debug)]
pub(super) struct LabelSets {
    shares: Vec<(f64, Vec<Vec<usize>>)>,
}

impl LabelSets {
    /// Of the images `kept` (those that can be decoded). A given list stands for the share below 1 that it is nearest to,
    /// and takes the place of that share's drawn subsets.
    ///
    /// # Errors
    /// A list that names no image of the set, or one that is not in its training part.
    pub(super) fn of(sets: &Sets, kept: &[usize], options: &EvalOptions) -> Result<Self, EvalError> {
        let mut shares: Vec<(f64, Vec<Vec<usize>>)> =
            options.shares.iter().map(|&share| (share, Vec::new())).collect();
        for list in &options.lists {
            let mut listed = sets.train.listed(list)?;
            listed.retain(|index| kept.binary_search(index).is_ok());
            let its = listed.len() as f64 / kept.len() as f64;
            let few = shares.iter_mut().filter(|(share, _)| *share < 1.0);
            let distance = |share: f64| (share / its).ln().abs();
            let nearest = few.min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
            let (Some((_, given)), false) = (nearest, listed.is_empty()) else {
                let reason = format!("`{}`: none of its images can be trained on", list.display());
                return Err(EvalError::Refused(reason));
            };
            given.push(listed);
        }
        let labels: Vec<i64> = kept.iter().map(|&index| sets.train_labels[index]).collect();
        let classes = sets.train.classes().len();
        for (share, subsets) in shares.iter_mut().filter(|(_, subsets)| subsets.is_empty()) {
            if *share >= 1.0 {
                subsets.push(kept.to_vec());
                continue;
            }
            for draw in 0..options.draws as u64 {
                let positions = splits::balanced_subset(&labels, classes, *share, options.seed, draw);
                subsets.push(positions.into_iter().map(|position| kept[position]).collect());
            }
        }
        Ok(Self { shares })
    }

    /// The subsets of one share; none where the options do not name it.
    pub(super) fn at(&self, share: f64) -> &[Vec<usize>] {
        self.shares.iter().find(|(known, _)| *known == share).map_or(&[], |(_, subsets)| subsets)
    }

    /// The same without those that are all images: share and number of the draw, subset.
    fn few(&self) -> impl Iterator<Item = (f64, usize, &Vec<usize>)> {
        let few = self.shares.iter().filter(|(share, _)| *share < 1.0);
        few.flat_map(|(share, subsets)| {
            subsets.iter().enumerate().map(|(draw, subset)| (*share, draw, subset))
        })
    }

    /// Writes `evaluation/labels/SHAREpct-DRAW.txt`, names one a line: the lists that `--labels` takes.
    pub(super) fn write(&self, run: &RunFolder, set: &Dataset) -> Result<(), EvalError> {
        fs_err::create_dir_all(run.path().join("evaluation/labels"))?;
        for (share, draw, subset) in self.few() {
            let names: Vec<&str> = subset.iter().map(|&index| set.samples()[index].name.as_str()).collect();
            let name = format!("evaluation/labels/{}pct-{draw}.txt", 100.0 * share);
            run.write(&name, &(names.join("\n") + "\n"))
                .map_err(|error| EvalError::Training(Box::new(error)))?;
        }
        Ok(())
    }
}
