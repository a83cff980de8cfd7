//! Colour histograms identify images unless colours are distorted (arXiv 2002.05709, section 3.1, figure 6).

use super::super::{
    arm::{Arm, H, How, Probe, Run},
    criterion::{Part, Quantity, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "color-histograms",
    question: "Do colour histograms alone identify the image that a crop is from, and does colour distortion prevent it?",
    source: "SimCLR, figure 6",
    finding: "crops of one image share their distribution of intensities; colour distortion changes it",
    caution: "The retrieval is our quantitative version of the figure: 1000 images, two crops each, histograms of 16 bins for each of \
              the channels, nearest by L1 distance. TintedShapes are synthetic images in which colour identifies the image and is \
              independent of the class.",
    arms,
    parts,
    pictures,
    published: &[],
};

const RETRIEVAL: &str = "retrieval";
const CROP: &str = "crop";
const WEAK: &str = "crop + color, s = 1/2";
const STRONG: &str = "crop + color, s = 1";
const TINTED_CROP: &str = "TintedShapes: crop";
const TINTED_COLOR: &str = "TintedShapes: crop + color";
const TINTED_INIT: &str = "TintedShapes: random init";
const NO_COLOR: [&str; 3] = ["augment.color=0", "augment.jitter=0", "augment.gray=0"];

fn arms(scale: &Scale) -> Vec<Arm> {
    let histograms = |name: &str, set: &[&str]| {
        let arm = Arm::fit(scale, name, set);
        Arm { run: Run { how: How::Fresh, ..arm.run }, probes: vec![Probe::Histograms], ..arm }
    };
    let tinted = |name: &str, set: &[&str]| Arm::fit(scale, name, set).on(scale.tinted());
    let init = tinted(TINTED_INIT, &[]);
    vec![
        histograms(CROP, &NO_COLOR),
        histograms(WEAK, &["augment.color=0.5"]),
        histograms(STRONG, &["augment.color=1"]),
        tinted(TINTED_CROP, &NO_COLOR),
        tinted(TINTED_COLOR, &["augment.color=1"]),
        Arm { run: Run { how: How::Fresh, ..init.run }, ..init },
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new(
            "retrieval by colour without distortion, over 10 times chance",
            of(CROP, RETRIEVAL) - Quantity::Constant(1.0),
            0.0,
        ),
        Part::new(
            "retrieval without distortion over three times that with s = 1/2",
            of(CROP, RETRIEVAL) - 3.0 * of(WEAK, RETRIEVAL),
            0.0,
        ),
        Part::new(
            "TintedShapes: random init not below crop alone",
            of(TINTED_INIT, H) - of(TINTED_CROP, H),
            -1.0,
        ),
        Part::new(
            "TintedShapes: crop + color over random init",
            of(TINTED_COLOR, H) - of(TINTED_INIT, H),
            1.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let curves = [CROP, STRONG].into_iter().filter_map(|arm| intensities(table, arm));
    curves.chain([bars(table, "retrieval of the other crop by colour, %", &[RETRIEVAL])]).collect()
}

/// Shares of the intensities of a few crops of two images.
fn intensities(table: &Table, arm: &str) -> Option<Picture> {
    let rows = table.series(arm, "histogram")?;
    let curve = |row: &Vec<f64>| {
        let bins = row.len() - 2;
        let point = |(bin, share): (usize, &f64)| ((bin as f64 + 0.5) / bins as f64, *share, 0.0);
        let name = format!("image {}, crop {}", row[0] + 1.0, row[1] + 1.0);
        (name, row[2..].iter().enumerate().map(point).collect())
    };
    Some(Picture::Lines {
        title: format!("histograms of intensities, {arm}"),
        axes: ["intensity".to_owned(), "share of the pixels".to_owned()],
        log: false,
        series: rows.iter().map(curve).collect(),
    })
}
