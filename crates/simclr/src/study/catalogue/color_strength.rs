//! Strength of the colour distortion for contrastive and supervised training (arXiv 2002.05709, section 3.2, table 1).

use super::super::{
    arm::{Arm, H, OWN},
    criterion::{Part, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "color-strength",
    question: "Does contrastive learning need stronger colour distortion than supervised learning?",
    source: "SimCLR, table 1",
    finding: "stronger distortion helps SimCLR up to s = 1 and never helps supervised training",
    caution: "At 32 pixels the best strength of SimCLR is about 1/2, so that nothing is claimed above it. Supervised training is judged \
              by its own classifier: a linear classifier on its h did not fall with s in the pilot. s = 0 is crop and flip alone.",
    arms,
    parts,
    pictures,
    published: &[
        ("SimCLR, s = 1/8", 59.6),
        ("SimCLR, s = 1/4", 61.0),
        ("SimCLR, s = 1/2", 62.6),
        ("SimCLR, s = 1", 63.2),
        ("supervised, s = 1/8", 77.0),
        ("supervised, s = 1/4", 76.7),
        ("supervised, s = 1/2", 76.5),
        ("supervised, s = 1", 75.7),
    ],
};

const STRENGTHS: [(f64, &str); 5] = [(0.0, "0"), (0.125, "1/8"), (0.25, "1/4"), (0.5, "1/2"), (1.0, "1")];

fn keys(strength: f64) -> Vec<String> {
    let off = ["augment.jitter=0", "augment.gray=0"].map(str::to_owned);
    let keys = vec![format!("augment.color={strength:?}")];
    if strength > 0.0 { keys } else { [keys, off.to_vec()].concat() }
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let simclr = STRENGTHS.map(|(s, text)| Arm::fit(scale, format!("SimCLR, s = {text}"), &[]).with(keys(s)));
    let supervised = STRENGTHS
        .map(|(s, text)| Arm::supervised(scale, format!("supervised, s = {text}"), &[]).with(keys(s)));
    simclr.into_iter().chain(supervised).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let simclr = |s: &str| of(format!("SimCLR, s = {s}"), H);
    let supervised = |s: &str| of(format!("supervised, s = {s}"), OWN);
    vec![
        Part::new("SimCLR: s = 1/2 over s = 0", simclr("1/2") - simclr("0"), 3.0),
        Part::new("supervised: s = 0 not below s = 1/2", supervised("0") - supervised("1/2"), -1.0),
        Part::new("supervised: s = 0 over s = 1", supervised("0") - supervised("1"), 1.0),
        Part::reported("SimCLR: s = 1 over s = 1/2", simclr("1") - simclr("1/2"), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let arms = |method: &str| STRENGTHS.map(|(s, text)| (s, format!("{method}, s = {text}")));
    vec![Picture::Lines {
        title: "accuracy by strength of the colour distortion, %".to_owned(),
        axes: ["s".to_owned(), "%".to_owned()],
        log: false,
        series: vec![
            line(table, "SimCLR, linear on h", &arms("SimCLR"), H),
            line(table, "supervised, own classifier", &arms("supervised"), OWN),
        ],
    }]
}
