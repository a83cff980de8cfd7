//! Linear evaluation against fine-tuning over the length of pretraining (arXiv 2002.05709, B.7).

use super::super::{
    arm::{Arm, H, OWN},
    criterion::{Part, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "linear-against-finetuning",
    question: "Do linear evaluation and fine-tuning rank encoders alike, over the length of pretraining?",
    source: "SimCLR, B.7",
    finding: "the two are almost linearly related over 50 to 3200 epochs; fine-tuning with few labels profits more from longer pretraining",
    caution: "Four lengths, fine-tuned with a tenth of the labels by one learning rate.",
    arms,
    parts,
    pictures,
    published: &[],
};

/// Multiples of the recipe's epochs.
const LENGTHS: [f64; 4] = [0.25, 0.5, 1.0, 3.0];
const LABELS: f64 = 0.1;

fn pretrained(length: f64) -> String {
    format!("SimCLR, {length} x epochs")
}

fn finetuned(length: f64) -> String {
    format!("fine-tuned, {length} x epochs")
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let pretraining = |length: f64| {
        // No keys at the recipe's length, so that the run is shared with other studies.
        let keys = if length == 1.0 { Vec::new() } else { scale.epochs(length) };
        Arm::fit(scale, pretrained(length), &[]).with(keys)
    };
    let both = |length: f64| {
        let arm = pretraining(length);
        let tuned = arm.finetuned(finetuned(length), LABELS, 0);
        [arm, tuned]
    };
    LENGTHS.into_iter().flat_map(both).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let linear = |length: f64| of(pretrained(length), H);
    let tuned = |length: f64| of(finetuned(length), OWN);
    vec![
        Part::new("linear: longest over shortest", linear(3.0) - linear(0.25), 1.0),
        Part::new("fine-tuned: longest over shortest", tuned(3.0) - tuned(0.25), 1.0),
        Part::reported(
            "fine-tuning profits more from longer pretraining",
            (tuned(3.0) - tuned(0.25)) - (linear(3.0) - linear(0.25)),
            0.0,
        ),
    ]
}

fn pictures(scale: &Scale, table: &Table) -> Vec<Picture> {
    let at = |name: fn(f64) -> String| LENGTHS.map(|length| (scale.epochs * length, name(length)));
    vec![Picture::Lines {
        title: "linear classifier with all labels, and fine-tuned with a tenth, %".to_owned(),
        axes: ["epochs of pretraining".to_owned(), "%".to_owned()],
        log: true,
        series: vec![
            line(table, "linear on h", &at(pretrained), H),
            line(table, "fine-tuned", &at(finetuned), OWN),
        ],
    }]
}
