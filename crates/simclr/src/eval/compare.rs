//! The results of several runs side by side: a table, tests of significance, and a plot of accuracy against the share of
//! the labels.

use std::path::{Path, PathBuf};

use super::{
    memory::Answers,
    plot::{self, Line, Whose},
    results::{Cell, Metric, Results, TransferRow, Tuned, aligned, columns},
    significance::permutation_test,
};
use crate::{CheckpointError, EvalError, checkpoint::write_atomically, train::RunFolder};

/// Runs with their results, in the order given.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<(String, Results)>,
}

/// Above this p a run is not significantly worse than the best (paper, table 8).
const SIGNIFICANT: f64 = 0.05;
/// No smaller p can be seen in 100,000 permutations.
const LEAST: f64 = 1e-5;
/// Beginnings of the names of rows that are no run's own merit.
const CONTROLS: [&str; 4] = ["random-init ", "module as given", "raw pixels", "chance"];

fn is_control(row: &str) -> bool {
    CONTROLS.iter().any(|control| row.starts_with(control))
}

/// A protocol on transfer sets: its name; the figure and the file with its answers, where there is one.
type TransferProtocol = (&'static str, fn(&TransferRow) -> Option<(f64, &str)>);

const PROTOCOLS: [TransferProtocol; 3] = [
    ("linear", |row| Some((row.trained, &row.predictions))),
    ("fine-tuned", |row| tuned(&row.finetuned)),
    ("fresh weights", |row| tuned(&row.fresh)),
];

fn tuned(tuned: &Option<Tuned>) -> Option<(f64, &str)> {
    tuned.as_ref().map(|tuned| (tuned.figure, &tuned.predictions[..]))
}

/// Figures of one kind to be compared: the run's name, the figure, the file with its answers.
struct Contest<'a> {
    metric: Metric,
    entries: Vec<(&'a str, f64, PathBuf)>,
}

impl Comparison {
    /// Reads `results.json` of each run.
    ///
    /// # Errors
    /// A run that was not evaluated, or by a program whose results are laid out otherwise.
    pub fn read(folders: &[RunFolder]) -> Result<Self, EvalError> {
        let mut runs = Vec::new();
        for folder in folders {
            let path = folder.results_file();
            if !path.exists() {
                let reason = format!("`{}` has no results yet; evaluate it first", folder.path().display());
                return Err(EvalError::Refused(reason));
            }
            let results = serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| {
                let reason = format!("not results of this version: {error}; evaluate the run again");
                CheckpointError::Damaged { path: path.clone(), reason }
            })?;
            runs.push((folder.path().display().to_string(), results));
        }
        Ok(Self { runs })
    }

    /// Test accuracy in percent: one line for each row of each run, and what makes them hard to compare.
    pub fn table(&self) -> String {
        let shares = self.columns();
        let mut headings = vec!["run".to_owned(), "row".into(), "kNN".into()];
        headings.extend(shares.iter().map(|column| column.share_text().replace(" of labels", "")));
        let mut lines = vec![headings];
        for (name, results) in &self.runs {
            for row in &results.rows {
                let text = |cell: Option<&Cell>| cell.map_or("-".into(), Cell::text);
                let by_share = shares.iter().map(|column| text(row.like(column)));
                let knn = text(row.knn.as_ref());
                lines.push([name.clone(), row.name.clone(), knn].into_iter().chain(by_share).collect());
            }
        }
        let mut text = aligned(&lines);
        text.extend(self.verdicts().into_iter().map(|line| line + "\n"));
        if self.runs.iter().any(|(_, results)| !results.transfer.is_empty()) {
            text.push_str("\ntransfer, test figures in %; *: the best, or not significantly worse than it\n");
            text.push_str(&aligned(&self.transfer_lines()));
        }
        for note in self.notes() {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }

    /// For every kind of figure that several runs have: the best, and whether the others are significantly worse.
    fn verdicts(&self) -> Vec<String> {
        let mut names: Vec<&str> = Vec::new();
        for row in self.runs.iter().flat_map(|(_, results)| &results.rows) {
            if !names.contains(&&row.name[..]) && !is_control(&row.name) {
                names.push(&row.name);
            }
        }
        let all = |name: &str| format!("{name}, all labels");
        let kinds = names
            .into_iter()
            .flat_map(|name| [(name, true, format!("{name}, kNN")), (name, false, all(name))]);
        kinds
            .filter_map(|(name, knn, title)| Some(format!("{title}: {}", self.contest(name, knn).verdict()?)))
            .collect()
    }

    /// Figures of the row `name` that rest on one set of answers: kNN, or the classifier with all labels.
    fn contest(&self, name: &str, knn: bool) -> Contest<'_> {
        let entry = |(run, results): &'_ (String, Results)| {
            let row = results.row(name)?;
            let cell = if knn { row.knn.as_ref()? } else { row.at(1.0)? };
            let [file] = &cell.predictions[..] else { return None };
            Some((cell.mean, Path::new(run).join(file)))
        };
        let entries =
            self.runs.iter().filter_map(|run| entry(run).map(|(mean, file)| (&run.0[..], mean, file)));
        Contest { metric: Metric::Top1, entries: entries.collect() }
    }

    /// A line for each data set and protocol, a column for each run.
    fn transfer_lines(&self) -> Vec<Vec<String>> {
        let mut sets: Vec<&TransferRow> = Vec::new();
        for row in self.runs.iter().flat_map(|(_, results)| &results.transfer) {
            if !sets.iter().any(|known| known.same_set(row)) {
                sets.push(row);
            }
        }
        let runs = self.runs.iter().map(|(run, _)| run.clone());
        let mut lines =
            vec![["data", "metric", "protocol"].map(str::to_owned).into_iter().chain(runs).collect()];
        for set in sets {
            lines.extend(PROTOCOLS.iter().filter_map(|protocol| self.transfer_line(set, protocol)));
        }
        lines
    }

    /// None where no run has a figure.
    fn transfer_line(&self, set: &TransferRow, (protocol, figure): &TransferProtocol) -> Option<Vec<String>> {
        let figures: Vec<_> = self
            .runs
            .iter()
            .map(|(_, results)| figure(results.transfer.iter().find(|row| row.same_set(set))?))
            .collect();
        let named = self.runs.iter().map(|(run, _)| &run[..]).zip(&figures);
        let entry = |(run, figure): (&'_ str, &Option<(f64, &str)>)| {
            figure.map(|(value, file)| (run.to_owned(), value, Path::new(run).join(file)))
        };
        let entries: Vec<_> = named.clone().filter_map(entry).collect();
        if entries.is_empty() {
            return None;
        }
        let entries = entries.iter().map(|(run, value, file)| (&run[..], *value, file.clone())).collect();
        let contest = Contest { metric: set.metric, entries };
        let text = |(run, figure): (&str, &Option<(f64, &str)>)| match figure {
            Some((value, _)) => format!("{:.1}{}", 100.0 * value, if contest.leads(run) { "*" } else { "" }),
            None => "-".into(),
        };
        let what = [set.data.clone(), set.metric.name().into(), (*protocol).into()];
        Some(what.into_iter().chain(named.map(text)).collect())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let [(first, reference), others @ ..] = &self.runs[..] else { return notes };
        for (name, results) in others {
            let (a, b) = (&reference.data, &results.data);
            if (&a.train_fingerprint, &a.test_fingerprint) != (&b.train_fingerprint, &b.test_fingerprint) {
                notes.push(format!("{first} and {name} were evaluated on different images"));
            }
            if reference.protocol.knn_k != results.protocol.knn_k
                || reference.protocol.knn_temperature != results.protocol.knn_temperature
            {
                notes.push(format!("{first} and {name} were evaluated with different kNN settings"));
            }
        }
        notes
    }

    /// A cell of each column that any row of any run has.
    fn columns(&self) -> Vec<&Cell> {
        let rows = self.runs.iter().flat_map(|(_, results)| &results.rows);
        columns(rows.flat_map(|row| &row.by_labels))
    }

    /// Draws the trained rows of each run, and of the first one the controls, into an SVG file.
    ///
    /// # Errors
    /// Nothing to draw, or a file that cannot be written.
    pub fn plot(&self, out: &Path) -> Result<(), EvalError> {
        let svg =
            plot::draw(&self.lines()).map_err(|error| EvalError::Other(format!("the plot: {error}")))?;
        Ok(write_atomically(out, svg.as_bytes())?)
    }

    /// Lines of the plot, the runs' own first, then the controls of the first run.
    fn lines(&self) -> Vec<Line> {
        let point = |cell: &Cell| (cell.share, 100.0 * cell.mean, 100.0 * cell.std);
        let (mut own, mut controls) = (Vec::new(), Vec::new());
        for (at, (run, results)) in self.runs.iter().enumerate() {
            let mut rows = 0;
            for row in results.rows.iter().filter(|row| !row.by_labels.is_empty()) {
                let points = row.by_labels.iter().map(point).collect();
                if !is_control(&row.name) {
                    let name = format!("{}{}", self.prefix(run), row.name);
                    own.push(Line { name, whose: Whose::Run { run: at, row: rows }, points });
                    rows += 1;
                } else if at == 0 {
                    controls.push(Line { name: row.name.clone(), whose: Whose::Control, points });
                }
            }
        }
        own.append(&mut controls);
        own
    }

    /// What tells the rows of `run` from those of the others: the last part of its path, or all of it where that is not
    /// enough.
    fn prefix(&self, run: &str) -> String {
        let same = self.runs.iter().filter(|(other, _)| short(other) == short(run)).count();
        match (self.runs.len(), same) {
            (1, _) => String::new(),
            (_, 1) => format!("{}: ", short(run)),
            _ => format!("{run}: "),
        }
    }
}

/// The last part of a run's path.
fn short(run: &str) -> &str {
    Path::new(run).file_name().and_then(|name| name.to_str()).unwrap_or(run)
}

impl Contest<'_> {
    fn best(&self) -> Option<usize> {
        // The first of equals.
        (0..self.entries.len()).rev().max_by(|&a, &b| self.entries[a].1.total_cmp(&self.entries[b].1))
    }

    /// p of being as good as the best; none where the answers are not there or are to other images.
    fn p(&self, at: usize) -> Option<f64> {
        let answers = |at: usize| Answers::load(&self.entries[at].2).ok().flatten();
        permutation_test(&answers(self.best()?)?, &answers(at)?, self.metric, 0).ok()
    }

    /// The best of at least two, and what sets the others apart from it.
    fn verdict(&self) -> Option<String> {
        let best = self.best().filter(|_| self.entries.len() > 1)?;
        let of = |at: usize| {
            let (run, figure, _) = &self.entries[at];
            let words = match self.p(at) {
                Some(p) if p > SIGNIFICANT => format!("not significantly worse, p = {p:.2} by permutation"),
                Some(p) if p < LEAST => format!("worse, p < {LEAST:.5} by permutation"),
                Some(p) => format!("worse, p = {p:.5} by permutation"),
                None => "not tested: on other test images, or predictions are not there".into(),
            };
            format!("{run} {:.1} ({words})", 100.0 * figure)
        };
        let others: Vec<String> = (0..self.entries.len()).filter(|at| *at != best).map(of).collect();
        let (run, figure, _) = &self.entries[best];
        Some(format!("best {run} {:.1}; {}", 100.0 * figure, others.join(", ")))
    }

    /// Whether `run` is the best or not significantly worse.
    fn leads(&self, run: &str) -> bool {
        let at = self.entries.iter().position(|entry| entry.0 == run);
        at.is_some() && (at == self.best() || at.and_then(|at| self.p(at)).is_some_and(|p| p > SIGNIFICANT))
    }
}

impl TransferRow {
    fn same_set(&self, other: &Self) -> bool {
        (&self.fingerprint, self.metric) == (&other.fingerprint, other.metric)
    }
}
