//! The results of several runs side by side: a table, and a plot of accuracy against the share of the labels.

use std::path::Path;

use plotters::prelude::*;

use super::results::{Cell, Results, aligned};
use crate::{CheckpointError, EvalError, checkpoint::write_atomically, train::RunFolder};

/// Runs with their results, in the order given.
#[derive(Debug)]
pub struct Comparison {
    runs: Vec<(String, Results)>,
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
        for note in self.notes() {
            text.push_str(&format!("note: {note}\n"));
        }
        text
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

    /// Lines of the plot: a name and (share, mean, spread), all in percent.
    fn lines(&self) -> Vec<(String, Vec<(f64, f64, f64)>)> {
        let mut lines = Vec::new();
        for (at, (run, results)) in self.runs.iter().enumerate() {
            for row in &results.rows {
                let control = ["random-init h", "raw pixels", "chance"].contains(&row.name.as_str());
                if control && at > 0 {
                    continue;
                }
                let point = |cell: &Cell| (100.0 * cell.share, 100.0 * cell.mean, 100.0 * cell.std);
                let points: Vec<_> = row.by_labels.iter().map(point).collect();
                let name = if control { row.name.clone() } else { format!("{run}: {}", row.name) };
                lines.push((name, points));
            }
        }
        lines.retain(|(_, points)| !points.is_empty());
        lines
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let lines = self.lines();
        let values = || lines.iter().flat_map(|(_, points)| points);
        let lowest = values().map(|(share, ..)| *share).fold(100.0, f64::min);
        let top = values().map(|(_, mean, std)| mean + std).fold(0.0, f64::max);
        let area = SVGBackend::with_string(svg, (960, 560)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d((lowest * 0.8..130.0).log_scale(), 0.0..(top * 1.05).min(100.0))?;
        chart.configure_mesh().x_desc("share of the labels, %").y_desc("test accuracy, %").draw()?;
        for (index, (name, points)) in lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let line =
                LineSeries::new(points.iter().map(|(share, mean, _)| (*share, *mean)), color.stroke_width(2));
            chart
                .draw_series(line)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
            chart.draw_series(points.iter().map(|&(share, mean, std)| {
                ErrorBar::new_vertical(share, mean - std, mean, mean + std, color.filled(), 6)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}
