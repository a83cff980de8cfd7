//! Broader augmentation (arXiv 2002.05709, B.2).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "broader-augmentation",
    question: "Do Sobel filtering, equalization, solarization and motion blur improve the features further?",
    source: "SimCLR, B.2",
    finding: "70.0 instead of 69.3 with ResNet-50",
    caution: "Probabilities and strengths are ours; the paper publishes none. Motion blur is up to 5 pixels long at 32 pixels.",
    arms,
    parts,
    pictures,
    published: &[("recipe", 69.3), ("broader", 70.0)],
};

const SETS: [(&str, &[&str]); 4] = [
    ("recipe", &[]),
    ("with Sobel", &["augment.sobel=0.1"]),
    ("with equalize and solarize", &["augment.equalize=0.1", "augment.solarize=0.1"]),
    (
        "broader",
        &[
            "augment.sobel=0.1",
            "augment.equalize=0.1",
            "augment.solarize=0.1",
            "augment.motion_blur=0.1",
            "augment.motion_blur_length=[1.0, 5.0]",
        ],
    ),
];

fn arms(scale: &Scale) -> Vec<Arm> {
    SETS.map(|(name, keys)| Arm::fit(scale, name, keys)).to_vec()
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![Part::new("broader augmentation over the recipe", of("broader", H) - of("recipe", H), 0.0)]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, %", &[H])]
}
