//! The projection head (arXiv 2002.05709, section 4.2, figure 8, and B.4).

use super::super::{
    arm::{Arm, H, Probe, Z},
    criterion::{Part, Quantity, of},
    design::{Study, bars},
    scale::{Budget, Scale},
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "head",
    question: "Which projection head, and is h or z the better feature?",
    source: "SimCLR, figure 8",
    finding: "a nonlinear head is 3 points better than a linear one and 10 better than none, whatever its output dimension; h is 10 points better than z",
    caution: "Nonlinear against linear was a tie in the pilot, so that only a loss of more than a point is excluded. Without a head z is \
              h. The eigenvalues are those of a square linear head (B.4: W is approximately of low rank).",
    arms,
    parts,
    pictures,
    published: &[],
};

const NONE: &str = "none";
const SQUARE: &str = "linear, square";
const DIMENSIONS: [i64; 3] = [16, 64, 128];

fn name(kind: &str, dimension: i64) -> String {
    format!("{kind}, {dimension} dimensions")
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let head = |kind: &str, dimension: i64| {
        let keys = [format!("head.kind={kind}"), format!("head.out={dimension}")];
        Arm::fit(scale, name(kind, dimension), &[]).with(keys)
    };
    let features = match scale.budget {
        Budget::Cpu => 128,
        Budget::Gpu => 512,
        Budget::Quick => 32,
    };
    let square = ["head.kind=linear".to_owned(), "head.norm=none".to_owned(), format!("head.out={features}")];
    let none = Arm::fit(scale, NONE, &["head.kind=none"]);
    let linear = DIMENSIONS.map(|dimension| head("linear", dimension));
    let nonlinear = DIMENSIONS.map(|dimension| head("nonlinear", dimension));
    let square = Arm::fit(scale, SQUARE, &[]).with(square).measured(Probe::Spectrum);
    let mut all: Vec<Arm> = [none].into_iter().chain(linear).chain(nonlinear).chain([square]).collect();
    for arm in all.iter_mut().filter(|arm| arm.name == name("nonlinear", 64)) {
        arm.probes.push(Probe::Projection);
    }
    all
}

fn parts(_: &Scale) -> Vec<Part> {
    let nonlinear = || of(name("nonlinear", 64), H);
    let linear = || of(name("linear", 64), H);
    let dimensions = DIMENSIONS.map(|dimension| name("nonlinear", dimension)).to_vec();
    vec![
        Part::new("nonlinear head over none", nonlinear() - of(NONE, H), 4.0),
        Part::new("linear head over none", linear() - of(NONE, H), 4.0),
        Part::new("h over z, nonlinear head", nonlinear() - of(name("nonlinear", 64), Z), 3.0),
        Part::new(
            "output dimension matters less than 2 points",
            Quantity::Constant(2.0) - Quantity::Range(dimensions, H),
            0.0,
        ),
        Part::new("nonlinear not below linear", nonlinear() - linear(), -1.0),
        Part::reported(
            "a tenth of the squared eigenvalues has more than half of their sum",
            of(SQUARE, "leading share") - Quantity::Constant(50.0),
            0.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let mut pictures = vec![bars(table, "linear classifier on h and on z, %", &[H, Z])];
    if let Some(values) = table.series(SQUARE, "eigenvalues").and_then(|rows| rows.first()) {
        let points = values.iter().enumerate().map(|(at, value)| (at as f64 + 1.0, *value, 0.0));
        pictures.push(Picture::Lines {
            title: "squared eigenvalues of a linear head".to_owned(),
            axes: ["number".to_owned(), "squared eigenvalue".to_owned()],
            log: true,
            series: vec![("seed 1".to_owned(), points.collect())],
        });
    }
    let panel = |layer: &str| {
        let rows = table.series(&name("nonlinear", 64), layer)?;
        let points = rows.iter().filter_map(|row| Some([*row.first()?, *row.get(1)?, *row.get(2)?]));
        Some((layer.to_owned(), points.collect::<Vec<_>>()))
    };
    let panels: Vec<_> = ["h", "z"].into_iter().filter_map(panel).collect();
    let title = "two principal components of test images, coloured by class".to_owned();
    pictures.push(Picture::Scatter { title, panels });
    pictures
}
