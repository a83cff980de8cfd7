//! Online kNN accuracy of several runs against the seconds of their training steps.

use std::path::Path;

use plotters::prelude::*;
use serde::Serialize;
use serde_json::Value;
use simclr_data::output;

use super::{
    compare::{MARK, PLOT},
    table::aligned,
};
use crate::{EvalError, checkpoint::write_atomically, picture::COLORS, train::RunFolder};

/// A step is counted with at most this multiple of the median duration: a longer one contains a pause, such as a stop and resume.
const LONGEST_STEP: f64 = 10.0;

/// Curves of runs, in the order given.
#[derive(Debug, Serialize)]
pub struct Curves {
    runs: Vec<Curve>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Curve {
    run: String,
    /// Of all steps.
    seconds: f64,
    /// Seconds of the steps so far, accuracy in percent.
    points: Vec<(f64, f64)>,
}

impl Curves {
    /// From `metrics.jsonl` of each run. Evaluations and pauses are no training time.
    ///
    /// # Errors
    /// A run without online kNN; a file that cannot be read.
    pub fn read(folders: &[RunFolder]) -> Result<Self, EvalError> {
        Ok(Self { runs: folders.iter().map(Curve::read).collect::<Result<_, _>>()? })
    }

    /// Final accuracy and duration of each run, and the time at which it first reached the lowest of the final accuracies.
    pub fn table(&self) -> String {
        let common = self.runs.iter().map(Curve::last).fold(f64::INFINITY, f64::min);
        let to_common = format!("seconds to {common:.1} %");
        let mut lines = vec![["run", "online kNN, %", "seconds", &to_common].map(str::to_owned).to_vec()];
        for run in &self.runs {
            let first = run.points.iter().find(|point| point.1 >= common).map_or(f64::NAN, |point| point.0);
            let figures =
                [format!("{:.1}", run.last()), format!("{:.0}", run.seconds), format!("{first:.0}")];
            lines.push([vec![run.run.clone()], figures.to_vec()].concat());
        }
        aligned(&lines)
    }

    /// Writes an SVG file. Replaces an earlier plot only.
    ///
    /// # Errors
    /// A file that cannot be written or must not be replaced.
    pub fn plot(&self, out: &Path) -> Result<(), EvalError> {
        let _held = RunFolder::around(out, None).map_err(Box::new)?;
        output::check(out, PLOT, None)?;
        let svg = self.draw().map_err(|error| EvalError::encoding("the plot", error))?;
        Ok(write_atomically(out, (svg.trim_end().to_owned() + "\n" + MARK).as_bytes())?)
    }

    fn draw(&self) -> Result<String, Box<dyn std::error::Error>> {
        let points = || self.runs.iter().flat_map(|run| &run.points);
        let longest = self.runs.iter().map(|run| run.seconds).fold(1.0, f64::max);
        let low = points().map(|point| point.1).fold(100.0, f64::min);
        let high = points().map(|point| point.1).fold(0.0, f64::max);
        let margin = (0.05 * (high - low)).max(0.5);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (760, 520)).into_drawing_area();
            area.fill(&WHITE).map_err(|error| error.to_string())?;
            let mut chart = ChartBuilder::on(&area)
                .margin(16)
                .x_label_area_size(44)
                .y_label_area_size(52)
                .build_cartesian_2d(0.0..longest, low - margin..high + margin)
                .map_err(|error| error.to_string())?;
            let mesh = &mut chart.configure_mesh();
            let mesh = mesh.x_desc("seconds of training").y_desc("online kNN accuracy, %");
            mesh.light_line_style(WHITE).draw().map_err(|error| error.to_string())?;
            for (run, color) in self.runs.iter().zip(COLORS.iter().cycle()) {
                let line = LineSeries::new(run.points.iter().copied(), color.stroke_width(2)).point_size(2);
                let drawn = chart.draw_series(line).map_err(|error| error.to_string())?;
                let color = *color;
                drawn
                    .label(run.run.clone())
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
            }
            let labels = &mut chart.configure_series_labels();
            let labels = labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8));
            labels.draw().map_err(|error| error.to_string())?;
            area.present().map_err(|error| error.to_string())?;
        }
        Ok(svg)
    }
}

impl Curve {
    fn read(folder: &RunFolder) -> Result<Self, EvalError> {
        let run = folder.path().display().to_string();
        let text = fs_err::read_to_string(folder.metrics_file())?;
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let curve = Self::of(run, &lines);
        if curve.points.is_empty() {
            let reason = format!("`{}` has no online kNN", curve.run);
            let hint = "it needs labels and train.knn_every above 0 while the run trains".into();
            return Err(EvalError::Mixed { reason, hint });
        }
        Ok(curve)
    }

    /// From the lines of `metrics.jsonl`. The first step, before which nothing is recorded, counts as the median.
    fn of(run: String, lines: &[Value]) -> Self {
        let times: Vec<f64> = lines.iter().map(|line| line["time"].as_f64().unwrap_or(f64::NAN)).collect();
        let since_last = |at: usize| (at > 0).then(|| times[at] - times[at - 1]);
        let is_step = |line: &Value| line["loss"].is_number();
        let steps = (0..lines.len()).filter(|&at| is_step(&lines[at]));
        let mut durations: Vec<f64> =
            steps.filter_map(since_last).filter(|seconds| *seconds >= 0.0).collect();
        durations.sort_by(f64::total_cmp);
        let median = durations.get(durations.len() / 2).copied().unwrap_or(0.0);
        let (mut seconds, mut points) = (0.0, Vec::new());
        for (at, line) in lines.iter().enumerate() {
            if is_step(line) {
                let duration = since_last(at).filter(|seconds| *seconds >= 0.0).unwrap_or(median);
                seconds += duration.min(LONGEST_STEP * median);
            }
            points.extend(line["online_knn"].as_f64().map(|accuracy| (seconds, 100.0 * accuracy)));
        }
        Self { run, seconds, points }
    }

    fn last(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |point| point.1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Steps of one second; an evaluation of five seconds and a pause of 1000 are left out.
    fn lines() -> Vec<Value> {
        let step = |time: f64| json!({ "time": time, "loss": 1.0 });
        let knn = |time: f64, accuracy: f64| json!({ "time": time, "online_knn": accuracy });
        vec![
            step(100.0),
            step(101.0),
            knn(106.0, 0.25),
            step(107.0),
            step(108.0),
            json!({ "time": 108.0, "health": {} }),
            step(1109.0),
            knn(1114.0, 0.5),
        ]
    }

    #[test]
    fn seconds_are_those_of_training_steps() {
        let curve = Curve::of("a".into(), &lines());
        assert_eq!(curve.points, [(2.0, 25.0), (14.0, 50.0)], "the pause counts as ten steps");
        assert_eq!(curve.seconds, 14.0);
    }

    #[test]
    fn table_and_plot_name_every_run() {
        let other = Curve { run: "b".into(), seconds: 9.0, points: vec![(3.0, 40.0), (9.0, 60.0)] };
        let curves = Curves { runs: vec![Curve::of("a".into(), &lines()), other] };
        let table = curves.table();
        assert!(table.contains("seconds to 50.0 %"), "{table}");
        let words: Vec<Vec<&str>> =
            table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [["a", "50.0", "14", "14"], ["b", "60.0", "9", "9"]]);
        let svg = curves.draw().unwrap();
        for text in ["seconds of training", "a", "b"] {
            assert!(svg.lines().any(|line| line.trim() == text), "{text}: {svg}");
        }
    }
}
