//! Pictures as SVG text for a page.

mod bars; // arms and figures -> bars with spread
mod canvas; // areas, colours, text
mod heat; // matrix -> colours
mod lines; // series -> lines with spread
mod scatter; // points by class

pub(crate) use canvas::{COLORS, color};

/// A value with its spread.
pub type Spread = (f64, f64);

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Picture {
    /// A matrix.
    Heat {
        /// Above the picture.
        title: String,
        /// Names of rows.
        rows: Vec<String>,
        /// Names of columns.
        columns: Vec<String>,
        /// By row; none is left white.
        cells: Vec<Vec<Option<f64>>>,
    },
    /// Horizontal bars.
    Bars {
        /// Above the picture.
        title: String,
        /// Names of the bars of a group.
        kinds: Vec<String>,
        /// Name of a group, and its bars.
        groups: Vec<(String, Vec<Option<Spread>>)>,
    },
    /// Lines over numbers.
    Lines {
        /// Above the picture.
        title: String,
        /// Names of both axes.
        axes: [String; 2],
        /// Logarithmic first axis.
        log: bool,
        /// Name of a line, and its points: x, y and spread of y.
        series: Vec<(String, Vec<(f64, f64, f64)>)>,
    },
    /// Points by class, in panels.
    Scatter {
        /// Above the picture.
        title: String,
        /// Name of a panel, and its points: x, y and class.
        panels: Vec<(String, Vec<[f64; 3]>)>,
    },
}

impl Picture {
    /// SVG text.
    ///
    /// # Errors
    /// A message of the drawing library.
    pub fn svg(&self) -> Result<String, String> {
        let drawn = match self {
            Self::Heat { title, rows, columns, cells } => heat::draw(title, (rows, columns), cells),
            Self::Bars { title, kinds, groups } => bars::draw(title, kinds, groups),
            Self::Lines { title, axes, log, series } => lines::draw(title, axes, *log, series),
            Self::Scatter { title, panels } => scatter::draw(title, panels),
        };
        drawn.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(svg: &str) -> Vec<&str> {
        svg.lines().map(str::trim).filter(|line| !line.starts_with('<')).collect()
    }

    #[test]
    fn every_value_of_a_matrix_is_written() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cells = vec![vec![Some(51.24), None], vec![Some(37.0), Some(40.0)]];
        let picture = Picture::Heat {
            title: "accuracy".into(),
            rows: names(&["crop", "colour"]),
            columns: names(&["crop", "rotate"]),
            cells,
        };
        let svg = picture.svg().unwrap();
        for text in ["accuracy", "crop", "rotate", "51.2", "37.0", "40.0"] {
            assert!(texts(&svg).contains(&text), "{text}: {svg}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn bars_lines_and_points_have_their_names() {
        let bars = Picture::Bars {
            title: "bars".into(),
            kinds: vec!["h".into(), "z".into()],
            groups: vec![("none".into(), vec![Some((44.0, 0.5)), None])],
        };
        let point = |x: f64| (x, 50.0 + x, 0.3);
        let lines = Picture::Lines {
            title: "lines".into(),
            axes: ["temperature".into(), "accuracy".into()],
            log: true,
            series: vec![("SimCLR".into(), vec![point(0.1), point(1.0)])],
        };
        let scatter =
            Picture::Scatter { title: "points".into(), panels: vec![("h".into(), vec![[0.0, 1.0, 2.0]])] };
        for (picture, names) in [
            (bars, ["bars", "none", "z"]),
            (lines, ["temperature", "SimCLR", "0.1"]),
            (scatter, ["points", "h", "h"]),
        ] {
            let svg = picture.svg().unwrap();
            assert!(names.iter().all(|name| texts(&svg).contains(name)), "{names:?}: {svg}");
        }
    }

    #[test]
    fn pictures_without_values_are_drawn() {
        let lines =
            Picture::Lines { title: String::new(), axes: Default::default(), log: false, series: Vec::new() };
        let one = vec![("a".into(), vec![(3.0, f64::NAN, 0.0)])];
        let flat = Picture::Lines { title: String::new(), axes: Default::default(), log: false, series: one };
        let bars = Picture::Bars {
            title: String::new(),
            kinds: vec!["h".into()],
            groups: vec![("a".into(), vec![None])],
        };
        assert!([lines, flat, bars].iter().all(|picture| picture.svg().is_ok()));
    }
}
