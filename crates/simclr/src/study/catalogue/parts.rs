//! Flips and blur (arXiv 2002.05709, section 9.13 of our notes: appendix A).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "parts",
    question: "Do flips and Gaussian blur matter?",
    source: "SimCLR, appendix A",
    finding: "without flips 63.4, without blur 63.2, instead of 64.5",
    caution: "The paper does not blur at 32 pixels, so that blur is reported only.",
    arms,
    parts,
    pictures,
    published: &[("recipe", 64.5), ("without flips", 63.4)],
};

fn arms(scale: &Scale) -> Vec<Arm> {
    vec![
        Arm::fit(scale, "recipe", &[]),
        Arm::fit(scale, "without flips", &["augment.flip=0"]),
        Arm::fit(scale, "with blur", &["augment.blur=0.5", "augment.blur_sigma=[0.1, 1.0]"]),
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new("with flips over without", of("recipe", H) - of("without flips", H), 0.0),
        Part::reported("with blur over without", of("with blur", H) - of("recipe", H), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, %", &[H])]
}
