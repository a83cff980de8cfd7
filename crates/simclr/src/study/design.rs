//! A study: arms, criterion and pictures, stated before any result.

use super::{
    arm::{Arm, H, How, KNN, OWN, PRETEXT, Probe, Run, Z},
    criterion::Part,
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

/// One study of the paper. Its file holds all of it.
#[derive(Debug, Clone, Copy)]
pub struct Study {
    /// On the command line.
    pub name: &'static str,
    /// What is asked.
    pub question: &'static str,
    /// Section, figure or table of the source.
    pub source: &'static str,
    /// What the source found.
    pub finding: &'static str,
    /// Differences of this replication, and what it cannot decide.
    pub caution: &'static str,
    /// Rows of the table.
    pub arms: fn(&Scale) -> Vec<Arm>,
    /// The criterion of the verdict.
    pub parts: fn(&Scale) -> Vec<Part>,
    /// Pictures of the page.
    pub pictures: fn(&Scale, &Table) -> Vec<Picture>,
    /// Figures of the source by arm.
    pub published: &'static [(&'static str, f64)],
}

/// Rows for comparison, the same in every study.
pub const RANDOM_INIT: &str = "control: random init";
/// Supervised training with the same encoder, images and epochs.
pub const SUPERVISED: &str = "control: supervised";
/// A linear classifier on pixels.
pub const PIXELS: &str = "control: raw pixels";
/// Columns of tables, those that any arm has.
const COLUMNS: [&str; 5] = [H, Z, KNN, PRETEXT, OWN];

impl Study {
    /// The study's arms, then the controls.
    pub fn rows(&self, scale: &Scale) -> Vec<Arm> {
        let fresh = |name: &str, probe| {
            let run = Run { images: scale.given(), set: Vec::new(), how: How::Fresh };
            Arm { name: name.to_owned(), run, probes: vec![probe] }
        };
        let controls = [
            fresh(RANDOM_INIT, Probe::Frozen),
            Arm::supervised(scale, SUPERVISED, &[]),
            fresh(PIXELS, Probe::Pixels),
        ];
        (self.arms)(scale).into_iter().chain(controls).collect()
    }
}

/// Figures of a table, the usual ones first.
pub fn columns(table: &Table) -> Vec<String> {
    let mut found: Vec<String> = COLUMNS.map(str::to_owned).to_vec();
    for figures in table.arms.iter().flat_map(|(_, seeds)| seeds) {
        let new: Vec<String> = figures.values.keys().filter(|name| !found.contains(name)).cloned().collect();
        found.extend(new);
    }
    let is_used = |name: &String| table.arms.iter().any(|(arm, _)| table.values(arm, name).is_some());
    found.retain(is_used);
    found
}

/// Bars of `figures` for the arms that have any of them.
pub fn bars(table: &Table, title: &str, figures: &[&str]) -> Picture {
    let spread = |arm: &str, figure: &str| table.summary(arm, figure).map(|found| (found.mean, found.std));
    let group = |arm: &String| {
        let bars: Vec<_> = figures.iter().map(|figure| spread(arm, figure)).collect();
        bars.iter().any(Option::is_some).then(|| (arm.clone(), bars))
    };
    Picture::Bars {
        title: title.to_owned(),
        kinds: figures.iter().map(|figure| (*figure).to_owned()).collect(),
        groups: table.arms.iter().filter_map(|(arm, _)| group(arm)).collect(),
    }
}

/// A line through `figure` of arms at numbers.
pub fn line<N: AsRef<str>>(
    table: &Table,
    name: &str,
    arms: &[(f64, N)],
    figure: &str,
) -> (String, Vec<(f64, f64, f64)>) {
    let point = |(x, arm): &(f64, N)| {
        let found = table.summary(arm.as_ref(), figure)?;
        Some((*x, found.mean, found.std))
    };
    (name.to_owned(), arms.iter().filter_map(point).collect())
}
