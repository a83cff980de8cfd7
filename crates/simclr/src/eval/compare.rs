//! The results of several runs side by side: a table, tests of significance, and a plot of accuracy against the share of
//! the labels.

use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::{
    memory::Answers,
    results::{Cell, Metric, Results, TransferRow, aligned},
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
/// Rows that are no run's own merit.
const CONTROLS: [&str; 4] = ["random-init h", "module as given", "raw pixels", "chance"];

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
        let shares = self.shares();
        let mut headings = vec!["run".to_owned(), "row".into(), "kNN".into()];
        headings.extend(shares.iter().map(|share| format!("{} %", 100.0 * share)));
        let mut lines = vec![headings];
        for (name, results) in &self.runs {
            for row in &results.rows {
                let text = |cell: Option<&Cell>| cell.map_or("-".into(), Cell::text);
                let by_share = shares.iter().map(|share| text(row.at(*share)));
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
            if !names.contains(&&row.name[..]) && !CONTROLS.contains(&&row.name[..]) {
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

    /// A line for each data set, a column for each run.
    fn transfer_lines(&self) -> Vec<Vec<String>> {
        let mut sets: Vec<&TransferRow> = Vec::new();
        for row in self.runs.iter().flat_map(|(_, results)| &results.transfer) {
            if !sets.iter().any(|known| known.same_set(row)) {
                sets.push(row);
            }
        }
        let runs = self.runs.iter().map(|(run, _)| run.clone());
        let mut lines = vec!["data".to_owned(), "metric".into()];
        lines.extend(runs);
        let line = |set: &TransferRow| {
            let row_of =
                |results: &'_ Results| results.transfer.iter().find(|row| row.same_set(set)).cloned();
            let rows: Vec<_> = self.runs.iter().map(|(run, results)| (&run[..], row_of(results))).collect();
            let mut entries = Vec::new();
            for (run, row) in &rows {
                entries.extend(
                    row.as_ref().map(|row| (*run, row.trained, Path::new(run).join(&row.predictions))),
                );
            }
            let contest = Contest { metric: set.metric, entries };
            let text = |(run, row): &(&str, Option<TransferRow>)| match row {
                Some(row) => {
                    format!("{:.1}{}", 100.0 * row.trained, if contest.leads(run) { "*" } else { "" })
                }
                None => "-".into(),
            };
            [set.data.clone(), set.metric.name().into()].into_iter().chain(rows.iter().map(text)).collect()
        };
        std::iter::once(lines).chain(sets.iter().map(|set| line(set))).collect()
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

    fn shares(&self) -> Vec<f64> {
        let mut shares: Vec<f64> =
            self.runs.iter().flat_map(|(_, results)| results.shares()).map(|(share, _)| share).collect();
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        shares
    }

    /// Draws the trained rows of each run, and of the first one the controls, into an SVG file.
    ///
    /// # Errors
    /// Nothing to draw, or a file that cannot be written.
    pub fn plot(&self, out: &Path) -> Result<(), EvalError> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| EvalError::Other(format!("the plot: {error}")))?;
        Ok(write_atomically(out, svg.as_bytes())?)
    }

    /// Lines of the plot, the runs' own first, then the controls of the first run.
    fn lines(&self) -> Vec<Line> {
        let point = |cell: &Cell| (100.0 * cell.share, 100.0 * cell.mean, 100.0 * cell.std);
        let (mut own, mut controls) = (Vec::new(), Vec::new());
        for (at, (run, results)) in self.runs.iter().enumerate() {
            for row in results.rows.iter().filter(|row| !row.by_labels.is_empty()) {
                let control = CONTROLS.contains(&row.name.as_str());
                let name = if control { row.name.clone() } else { format!("{}: {}", short(run), row.name) };
                let line = Line { name, control, points: row.by_labels.iter().map(point).collect() };
                match control {
                    true if at == 0 => controls.push(line),
                    true => {}
                    false => own.push(line),
                }
            }
        }
        own.append(&mut controls);
        own
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let lines = self.lines();
        let values = || lines.iter().flat_map(|line| &line.points);
        let lowest = values().map(|(share, ..)| *share).fold(100.0, f64::min);
        let top = values().map(|(_, mean, std)| mean + std).fold(0.0, f64::max);
        let area = SVGBackend::with_string(svg, (960, 560)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d((lowest * 0.8..130.0).log_scale(), 0.0..(top * 1.05).min(100.0))?;
        chart
            .configure_mesh()
            .x_desc("share of the labels, %")
            .y_desc("test accuracy, %")
            .x_label_formatter(&|share| format!("{share}"))
            .y_label_formatter(&|accuracy| format!("{accuracy:.0}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .label_style(("sans-serif", 14))
            .draw()?;
        for (index, Line { name, control, points }) in lines.iter().enumerate() {
            let color = if *control { CONTROL } else { COLORS[index % COLORS.len()] };
            let style = color.stroke_width(if *control { 1 } else { 2 });
            let line = LineSeries::new(points.iter().map(|(share, mean, _)| (*share, *mean)), style);
            let drawn = chart.draw_series(line)?;
            if !control {
                drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
            }
            chart.draw_series(points.iter().map(|&(share, mean, std)| {
                ErrorBar::new_vertical(share, mean - std, mean, mean + std, color.filled(), 6)
            }))?;
            if *control {
                // Controls share a colour and carry their names, each at another point and side, as they may lie close.
                let (share, mean, _) = points[index % points.len()];
                let above = if index % 2 == 0 { 0.035 } else { -0.012 };
                let text = ("sans-serif", 13).into_font().color(&CONTROL);
                chart.draw_series([Text::new(name.clone(), (share * 1.04, mean + above * top), text)])?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(("sans-serif", 14))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// A line of the plot: its name, and (share, mean, spread) of its points, in percent.
struct Line {
    name: String,
    control: bool,
    points: Vec<(f64, f64, f64)>,
}

/// Colours that the colour-blind tell apart (Okabe and Ito 2008), without the yellow that white swallows.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
const CONTROL: RGBColor = RGBColor(120, 120, 120);

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
