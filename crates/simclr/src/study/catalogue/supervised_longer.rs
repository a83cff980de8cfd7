//! Longer training, contrastive and supervised (arXiv 2002.05709, B.3).

use super::super::{
    arm::{Arm, H, OWN},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "supervised-longer",
    question: "Does SimCLR gain more from longer training than supervised training does?",
    source: "SimCLR, B.3",
    finding: "supervised ResNet-50 does not gain from 1000 instead of 90 epochs (76.5, 75.8); SimCLR does",
    caution: "Three times the epochs of the recipe. Supervised training is judged by its own classifier, with crop and flip, and with \
              colour distortion in addition.",
    arms,
    parts,
    pictures,
    published: &[],
};

const NO_COLOR: [&str; 3] = ["augment.color=0", "augment.jitter=0", "augment.gray=0"];

fn arms(scale: &Scale) -> Vec<Arm> {
    let longer = |arm: Arm, name: &str| Arm { name: name.to_owned(), ..arm.with(scale.epochs(3.0)) };
    let simclr = Arm::fit(scale, "SimCLR", &[]);
    let crop = Arm::supervised(scale, "supervised, crop", &NO_COLOR);
    let color = Arm::supervised(scale, "supervised, crop + color", &[]);
    vec![
        longer(simclr.clone(), "SimCLR, 3 x epochs"),
        longer(crop.clone(), "supervised, crop, 3 x epochs"),
        longer(color.clone(), "supervised, crop + color, 3 x epochs"),
        simclr,
        crop,
        color,
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    let gain = |arm: &str, figure| of(format!("{arm}, 3 x epochs"), figure) - of(arm, figure);
    let simclr = || gain("SimCLR", H);
    vec![
        Part::new("SimCLR gains", simclr(), 0.0),
        Part::new(
            "SimCLR gains more than supervised training with crop",
            simclr() - gain("supervised, crop", OWN),
            0.0,
        ),
        Part::reported(
            "SimCLR gains more than supervised training with crop + color",
            simclr() - gain("supervised, crop + color", OWN),
            0.0,
        ),
        Part::reported(
            "supervised: colour distortion needs longer training",
            gain("supervised, crop + color", OWN) - gain("supervised, crop", OWN),
            0.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, and own classifier, %", &[H, OWN])]
}
