//! Figures of the arms of a study, a value for each seed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Figure of a run that ended with a loss, gradient or weight that is not finite.
pub const DIVERGED: &str = "diverged";

/// The measurements on one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// By name.
    pub values: BTreeMap<String, f64>,
    /// Rows of numbers for a picture, by name.
    pub series: BTreeMap<String, Vec<Vec<f64>>>,
}

impl Figures {
    /// A single figure.
    pub fn of(name: &str, value: f64) -> Self {
        let mut figures = Self::default();
        figures.set(name, value);
        figures
    }

    /// Adds a figure.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.values.insert(name.into(), value);
    }

    /// Adds those of another probe.
    pub fn extend(&mut self, other: Self) {
        self.values.extend(other.values);
        self.series.extend(other.series);
    }
}

/// The figures of a study: arms in order, and in each of them the figures of every seed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Name and figures by seed.
    pub arms: Vec<(String, Vec<Figures>)>,
}

/// Mean and spread over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean.
    pub mean: f64,
    /// Standard deviation (n - 1); 0 for one value.
    pub std: f64,
    /// Values.
    pub count: usize,
}

impl Summary {
    /// Of `values`; none without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
        (count > 0).then_some(Self { mean, std, count })
    }

    /// Standard error of the mean.
    pub fn error(&self) -> f64 {
        self.std / (self.count as f64).sqrt()
    }

    /// `51.2 ± 0.3`, without the spread of one value.
    pub fn text(&self) -> String {
        let digits = if self.mean.abs() < 10.0 { 2 } else { 1 };
        match self.count {
            1 => format!("{:.digits$}", self.mean),
            _ => format!("{:.digits$} ± {:.digits$}", self.mean, self.std),
        }
    }
}

impl Table {
    /// The values of `figure` in `arm`, by seed; none if any seed lacks it.
    pub fn values(&self, arm: &str, figure: &str) -> Option<Vec<f64>> {
        let (_, seeds) = self.arms.iter().find(|(name, _)| name == arm)?;
        let values: Option<Vec<f64>> = seeds.iter().map(|seed| seed.values.get(figure).copied()).collect();
        values.filter(|values| !values.is_empty())
    }

    /// Their mean and spread.
    pub fn summary(&self, arm: &str, figure: &str) -> Option<Summary> {
        Summary::of(&self.values(arm, figure)?)
    }

    /// A series of the first seed.
    pub fn series(&self, arm: &str, name: &str) -> Option<&Vec<Vec<f64>>> {
        let (_, seeds) = self.arms.iter().find(|(own, _)| own == arm)?;
        seeds.first()?.series.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_mean_and_spread() {
        let summary = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((summary.mean, summary.std, summary.count), (2.0, 1.0, 3));
        assert!((summary.error() - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(
            (summary.text(), Summary::of(&[51.23]).unwrap().text()),
            ("2.00 ± 1.00".into(), "51.2".into())
        );
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_figure_that_one_seed_lacks_is_absent() {
        let seeds = vec![Figures::of("a", 1.0), Figures::of("b", 2.0)];
        let table = Table { arms: vec![("arm".into(), seeds)] };
        assert_eq!((table.values("arm", "a"), table.values("other", "a")), (None, None));
    }
}
