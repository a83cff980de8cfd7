//! Comparison of several runs: a table, significance tests, and a plot of accuracy against the fraction of the labels.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use simclr_data::output;

use super::{
    figure::Predictions,
    history,
    plot::{self, Series, SeriesKind},
    results::{Cell, Results, TransferRow, Tuned, columns},
    row_options,
    significance::permutation_test,
    table::aligned,
};
use crate::{EvalError, checkpoint::write_atomically, eval::options::Metric, train::RunFolder};

/// Output of [`Comparison::plot`], and the only kind of file it replaces.
pub(super) const PLOT: output::Kind = output::Kind {
    name: "a plot of this command",
    is_earlier: |path| fs_err::read(path).is_ok_and(|svg| svg.ends_with(MARK.as_bytes())),
};
/// Last line of every plot.
pub(super) const MARK: &str = "<!-- simclr compare -->\n";

/// Path and results of each run, in the order given.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<(String, Results)>,
}

/// Above this p a difference is not significant (paper, table 8).
const SIGNIFICANT: f64 = 0.05;
/// Smallest p that 100,000 permutations resolve.
const LEAST: f64 = 1e-5;
/// Prefixes of the names of control rows.
const CONTROLS: [&str; 4] = ["random-init ", "module as given", "raw pixels", "chance"];

fn is_control(row: &str) -> bool {
    CONTROLS.iter().any(|control| row.starts_with(control))
}

/// A protocol on transfer sets: its name, and its figure with the file of predictions.
type TransferProtocol = (&'static str, fn(&TransferRow) -> Option<(f64, &str)>);

const PROTOCOLS: [TransferProtocol; 3] = [
    ("linear", |row| Some((row.trained, &row.predictions))),
    ("fine-tuned", |row| tuned(&row.finetuned)),
    ("fresh weights", |row| tuned(&row.fresh)),
];

fn tuned(tuned: &Option<Tuned>) -> Option<(f64, &str)> {
    tuned.as_ref().map(|tuned| (tuned.figure, &tuned.predictions[..]))
}

/// Figures of one kind: the run, the figure, its file of predictions.
struct Ranking<'a> {
    metric: Metric,
    entries: Vec<(&'a str, f64, PathBuf)>,
}

impl Comparison {
    /// The newest results of each run.
    ///
    /// # Errors
    /// A run without results, or with results of another layout; [`EvalError::Mixed`] if the runs were evaluated on different
    /// images or with different options.
    pub fn read(folders: &[RunFolder]) -> Result<Self, EvalError> {
        Self::choose(folders, |_| true, "")
    }

    /// The newest results of each run on the set `data`: the name of its folder or file, its path as given, or the beginning
    /// of the fingerprint of its training part.
    ///
    /// # Errors
    /// As [`Comparison::read`]; a run without such results.
    pub fn read_on(folders: &[RunFolder], data: &str) -> Result<Self, EvalError> {
        Self::choose(folders, |results| is_on(results, data), &format!(" on `{data}`"))
    }

    fn choose(folders: &[RunFolder], wanted: impl Fn(&Results) -> bool, on: &str) -> Result<Self, EvalError> {
        let mut runs: Vec<(String, Results)> = Vec::new();
        for folder in folders {
            let (run, all) = (folder.path().display().to_string(), history::read(folder)?);
            let candidates: Vec<&Results> = all.iter().filter(|results| wanted(results)).collect();
            let Some(newest) = candidates.first() else {
                let hint = format!("it was evaluated on {}", sets(&all));
                return Err(EvalError::Mixed { reason: format!("`{run}` has no results{on}"), hint });
            };
            // Prefer results with the options of the first run.
            let like_the_first = |results: &&&Results| {
                runs.first().is_none_or(|(_, first)| differences(first, results).is_empty())
            };
            let chosen = if on.is_empty() { None } else { candidates.iter().find(like_the_first) };
            runs.push((run, (*chosen.unwrap_or(newest)).clone()));
        }
        refuse_mixture(&runs)?;
        Ok(Self { runs })
    }

    /// Test accuracy in percent, one line for each row of each run; significance; notes of the runs.
    pub fn table(&self) -> String {
        let columns = self.columns();
        let mut headings = vec!["run".to_owned(), "row".into(), "kNN".into()];
        headings.extend(columns.iter().map(|column| column.column_name().replace(" of labels", "")));
        let mut lines = vec![headings];
        for (name, results) in &self.runs {
            for row in &results.rows {
                let text = |cell: Option<&Cell>| cell.map_or("-".into(), Cell::text);
                let by_labels = columns.iter().map(|column| text(row.in_column_of(column)));
                let knn = text(row.knn.as_ref());
                lines.push([name.clone(), row.name.clone(), knn].into_iter().chain(by_labels).collect());
            }
        }
        let mut text = aligned(&lines);
        text.extend(self.verdicts().into_iter().map(|line| line + "\n"));
        if self.runs.iter().any(|(_, results)| !results.transfer.is_empty()) {
            text.push_str("\ntransfer, test figures in %; *: the best, or not significantly worse than it\n");
            text.push_str(&aligned(&self.transfer_lines()));
        }
        for (run, results) in &self.runs {
            results.notes.iter().for_each(|note| text.push_str(&format!("note: {run}: {note}\n")));
        }
        text
    }

    /// The results of each run, and [`Comparison::verdicts`].
    pub fn facts(&self) -> Value {
        let runs: Vec<_> =
            self.runs.iter().map(|(run, results)| json!({"run": run, "results": results})).collect();
        json!({"runs": runs, "verdicts": self.verdicts()})
    }

    /// For every kind of figure that several runs share: the best run, and whether the others are significantly worse.
    pub fn verdicts(&self) -> Vec<String> {
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
            .filter_map(|(name, knn, title)| Some(format!("{title}: {}", self.ranking(name, knn).verdict()?)))
            .collect()
    }

    /// kNN or the classifier with all labels in the row `name`, if the figure follows from a single file of predictions.
    fn ranking(&self, name: &str, knn: bool) -> Ranking<'_> {
        let entry = |(run, results): &'_ (String, Results)| {
            let row = results.row(name)?;
            let cell = if knn { row.knn.as_ref()? } else { row.at(1.0)? };
            let [file] = &cell.predictions[..] else { return None };
            Some((cell.mean, Path::new(run).join(file)))
        };
        let entries =
            self.runs.iter().filter_map(|run| entry(run).map(|(mean, file)| (&run.0[..], mean, file)));
        Ranking { metric: Metric::Top1, entries: entries.collect() }
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

    /// None if no run has a figure.
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
        let ranking = Ranking { metric: set.metric, entries };
        let text = |(run, figure): (&str, &Option<(f64, &str)>)| match figure {
            Some((value, _)) => {
                format!("{:.1}{}", 100.0 * value, if ranking.is_among_best(run) { "*" } else { "" })
            }
            None => "-".into(),
        };
        let what = [set.data.clone(), set.metric.name().into(), (*protocol).into()];
        Some(what.into_iter().chain(named.map(text)).collect())
    }

    /// A cell of each column that any row of any run has.
    fn columns(&self) -> Vec<&Cell> {
        let rows = self.runs.iter().flat_map(|(_, results)| &results.rows);
        columns(rows.flat_map(|row| &row.by_labels))
    }

    /// Writes an SVG file with the trained rows of each run and the controls of the first one. Replaces an earlier plot only.
    ///
    /// # Errors
    /// A file that cannot be written or must not be replaced.
    pub fn plot(&self, out: &Path) -> Result<(), EvalError> {
        let _held = RunFolder::around(out, None).map_err(Box::new)?;
        output::check(out, PLOT, None)?;
        let svg = plot::draw(&self.series()).map_err(|error| EvalError::encoding("the plot", error))?;
        Ok(write_atomically(out, (svg.trim_end().to_owned() + "\n" + MARK).as_bytes())?)
    }

    /// The runs' own series, then the controls of the first run.
    fn series(&self) -> Vec<Series> {
        let point = |cell: &Cell| (cell.share, 100.0 * cell.mean, 100.0 * cell.std);
        let (mut own, mut controls) = (Vec::new(), Vec::new());
        for (at, (run, results)) in self.runs.iter().enumerate() {
            let mut rows = 0;
            for row in results.rows.iter().filter(|row| !row.by_labels.is_empty()) {
                let points = row.by_labels.iter().map(point).collect();
                if !is_control(&row.name) {
                    let name = format!("{}{}", self.prefix(run), row.name);
                    own.push(Series { name, kind: SeriesKind::Run { run: at, row: rows }, points });
                    rows += 1;
                } else if at == 0 {
                    controls.push(Series { name: row.name.clone(), kind: SeriesKind::Control, points });
                }
            }
        }
        own.append(&mut controls);
        own
    }

    /// Prefix of the rows of `run`: the last component of its path, or the whole path if that is ambiguous.
    fn prefix(&self, run: &str) -> String {
        let same = self.runs.iter().filter(|(other, _)| short(other) == short(run)).count();
        match (self.runs.len(), same) {
            (1, _) => String::new(),
            (_, 1) => format!("{}: ", short(run)),
            _ => format!("{run}: "),
        }
    }
}

/// Facts of a protocol that do not affect comparability: they follow from the run or are descriptions.
const OF_THE_RUN: [&str; 3] = ["random_init_seeds", "trained", "linear"];

/// Differences between the evaluations of two runs, each with both values.
fn differences(one: &Results, other: &Results) -> Vec<String> {
    let (a, b) = (&one.data, &other.data);
    let content = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    if (&a.train_fingerprint, &a.test_fingerprint) != (&b.train_fingerprint, &b.test_fingerprint) {
        return vec![format!("the images: {} and {}", set(one), set(other))];
    }
    if content(&a.train_content, &b.train_content) || content(&a.test_content, &b.test_content) {
        let set = set(one);
        return vec![format!("the images: some of {set} changed under the same names and sizes in between")];
    }
    let facts = |results: &Results| serde_json::to_value(&results.protocol).unwrap_or_default();
    let (a, b) = (facts(one), facts(other));
    let keys = a.as_object().into_iter().flat_map(|facts| facts.keys());
    let keys = keys.filter(|key| !OF_THE_RUN.contains(&&key[..]) && a[&key[..]] != b[&key[..]]);
    let of_protocol = keys.map(|key| (key.clone(), &a[&key[..]], &b[&key[..]]));
    let all = of_protocol.chain(row_options::differing(one, other));
    all.map(|(key, a, b)| format!("{key}: {} and {}", brief(a), brief(b))).collect()
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 80 { format!("{}...", text.chars().take(77).collect::<String>()) } else { text }
}

/// Path and fingerprints of the evaluated set.
fn set(results: &Results) -> String {
    let data = &results.data;
    let test = data.test_fingerprint.as_deref().unwrap_or("held out");
    format!("`{}` (training {}, test {test})", data.path, data.train_fingerprint)
}

/// The distinct sets of all results.
fn sets(all: &[Results]) -> String {
    let mut sets: Vec<String> = Vec::new();
    for set in all.iter().map(set) {
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    sets.join(", ")
}

fn is_on(results: &Results, data: &str) -> bool {
    let fingerprint = &results.data.train_fingerprint;
    let is_fingerprint = data.len() >= 6 && fingerprint.starts_with(data);
    results.data.path == data || history::data_name(results) == data || is_fingerprint
}

fn refuse_mixture(runs: &[(String, Results)]) -> Result<(), EvalError> {
    let [(first, reference), others @ ..] = runs else { return Ok(()) };
    for (run, results) in others {
        let differences = differences(reference, results);
        if !differences.is_empty() {
            let reason = format!(
                "`{first}` and `{run}` cannot be compared, they were evaluated with different values of {}",
                differences.join("; ")
            );
            let hint = "evaluate both on the same images with the same options, or choose earlier results of both with \
                        --data NAME"
                .into();
            return Err(EvalError::Mixed { reason, hint });
        }
    }
    Ok(())
}

/// Last component of the run's path.
fn short(run: &str) -> &str {
    Path::new(run).file_name().and_then(|name| name.to_str()).unwrap_or(run)
}

impl Ranking<'_> {
    fn best(&self) -> Option<usize> {
        // The first of equals.
        (0..self.entries.len()).rev().max_by(|&a, &b| self.entries[a].1.total_cmp(&self.entries[b].1))
    }

    /// p of being as good as the best; none without predictions, or if they are for other images.
    fn p(&self, at: usize) -> Option<f64> {
        let predictions = |at: usize| Predictions::load(&self.entries[at].2).ok().flatten();
        permutation_test(&predictions(self.best()?)?, &predictions(at)?, self.metric, 0).ok()
    }

    /// The best of at least two, and the significance of its lead over each other run.
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

    /// Whether `run` is the best, or not significantly worse.
    fn is_among_best(&self, run: &str) -> bool {
        let at = self.entries.iter().position(|entry| entry.0 == run);
        at.is_some() && (at == self.best() || at.and_then(|at| self.p(at)).is_some_and(|p| p > SIGNIFICANT))
    }
}

impl TransferRow {
    pub(super) fn same_set(&self, other: &Self) -> bool {
        (&self.fingerprint, self.metric) == (&other.fingerprint, other.metric)
    }
}
