//! Width of the encoder (arXiv 2002.05709, section 4.1, figure 7).

use super::super::{
    arm::{Arm, H, OWN},
    criterion::{Part, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "model-size",
    question: "Do wider encoders give better features, and does the gap to supervised training shrink?",
    source: "SimCLR, figure 7",
    finding: "depth and width help; the gap to supervised training shrinks from 7.2 to 1.9 points with 4 times the width",
    caution: "Three widths of one encoder with equal epochs. That the gap shrinks is reported only: it is a weak effect on small data.",
    arms,
    parts,
    pictures,
    published: &[
        ("SimCLR, width 1", 69.3),
        ("SimCLR, width 2", 74.2),
        ("supervised, width 1", 76.5),
        ("supervised, width 2", 77.8),
    ],
};

const WIDTHS: [f64; 3] = [0.5, 1.0, 2.0];

fn arms(scale: &Scale) -> Vec<Arm> {
    let width = |width: f64| [format!("encoder.width={width:?}")];
    let simclr = WIDTHS.map(|w| Arm::fit(scale, format!("SimCLR, width {w}"), &[]).with(width(w)));
    let supervised =
        WIDTHS.map(|w| Arm::supervised(scale, format!("supervised, width {w}"), &[]).with(width(w)));
    simclr.into_iter().chain(supervised).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let simclr = |width: &str| of(format!("SimCLR, width {width}"), H);
    let gap = |width: &str| of(format!("supervised, width {width}"), OWN) - simclr(width);
    vec![
        Part::new("SimCLR: width 1 over 1/2", simclr("1") - simclr("0.5"), 0.0),
        Part::new("SimCLR: width 2 over 1", simclr("2") - simclr("1"), 0.0),
        Part::reported(
            "the gap to supervised is smaller with width 2 than with 1/2",
            gap("0.5") - gap("2"),
            0.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let arms = |method: &str| WIDTHS.map(|width| (width, format!("{method}, width {width}")));
    vec![Picture::Lines {
        title: "accuracy by width of the encoder, %".to_owned(),
        axes: ["width".to_owned(), "%".to_owned()],
        log: true,
        series: vec![
            line(table, "SimCLR, linear on h", &arms("SimCLR"), H),
            line(table, "supervised, own classifier", &arms("supervised"), OWN),
        ],
    }]
}
