//! Transfer to other classes and images (arXiv 2002.05709, section 6, table 8, and B.8).

use super::super::{
    arm::{Arm, How, Probe, Run},
    criterion::{Part, of},
    design::{Study, bars},
    images::{Classes, Images},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "transfer",
    question: "Are features useful for classes and images that pretraining has not used?",
    source: "SimCLR, table 8",
    finding: "features of SimCLR transfer to 12 data sets, about as well as supervised ones",
    caution: "The 12 data sets are not at hand: trained on the first half of the classes, tested on the second half and on synthetic \
              images, by the protocol of B.8.1 with its 45 penalties (the search stops when 4 in a row are clearly worse).",
    arms,
    parts,
    pictures,
    published: &[],
};

const CLASSES: &str = "transfer other classes";
const TINTED: &str = "transfer TintedShapes";
const SIMCLR: &str = "SimCLR, first half of the classes";
const LABELS: &str = "supervised, first half of the classes";
const INIT: &str = "random init";

fn arms(scale: &Scale) -> Vec<Arm> {
    let half = |classes| Images { classes, ..scale.share(0.5) };
    let probes = vec![
        Probe::Transfer("other classes", half(Classes::Second)),
        Probe::Transfer("TintedShapes", scale.tinted()),
    ];
    // Half of the images, twice the epochs: as many steps as in other studies.
    let on_half = |arm: Arm| {
        let arm = arm.on(half(Classes::First)).with(scale.epochs(2.0));
        Arm { probes: probes.clone(), ..arm }
    };
    let init = Arm::fit(scale, INIT, &[]);
    vec![
        on_half(Arm::fit(scale, SIMCLR, &[])),
        on_half(Arm::supervised(scale, LABELS, &[])),
        Arm { run: Run { how: How::Fresh, ..init.run }, probes: probes.clone(), ..init },
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new("other classes: SimCLR over random init", of(SIMCLR, CLASSES) - of(INIT, CLASSES), 1.0),
        Part::new("TintedShapes: SimCLR over random init", of(SIMCLR, TINTED) - of(INIT, TINTED), 1.0),
        Part::reported(
            "other classes: SimCLR over supervised",
            of(SIMCLR, CLASSES) - of(LABELS, CLASSES),
            0.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, other classes and images, %", &[CLASSES, TINTED])]
}
