//! Linear against square-root scaling of the learning rate (arXiv 2002.05709, B.1).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "lr-scaling",
    question: "Is square-root scaling of the learning rate better than linear scaling at small batches?",
    source: "SimCLR, table B.1",
    finding: "with 256 images and 100 epochs 62.8 by square-root and 57.5 by linear scaling; equal at 4096",
    caution: "LARS, both rules anchored at the largest batch, where they are one run. The rate at the anchor, 2, is that of the official \
              CIFAR-10 recipe, not tuned. Runs have half the epochs of the recipe.",
    arms,
    parts,
    pictures,
    published: &[],
};

const BATCHES: [usize; 3] = [64, 256, 1024];
const RULES: [&str; 2] = ["linear", "sqrt"];
/// Learning rate at the largest batch.
const ANCHOR: f64 = 2.0;

fn name(rule: &str, batch: usize) -> String {
    if batch == BATCHES[2] { format!("anchor, batch {batch}") } else { format!("{rule}, batch {batch}") }
}

fn arm(scale: &Scale, rule: &str, batch: usize) -> Arm {
    let share = batch as f64 / BATCHES[2] as f64;
    let rate = ANCHOR * if rule == "sqrt" { share.sqrt() } else { share };
    let keys = [format!("optim.lr={rate:?}"), format!("train.batch={}", scale.batch(batch))];
    let lars = ["optim.kind=lars", "optim.scaling=none"];
    Arm::fit(scale, name(rule, batch), &lars).with(scale.epochs(0.5)).with(keys)
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let small =
        RULES.into_iter().flat_map(|rule| [BATCHES[0], BATCHES[1]].map(|batch| arm(scale, rule, batch)));
    small.chain([arm(scale, "linear", BATCHES[2])]).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let gain = |batch: usize| of(name("sqrt", batch), H) - of(name("linear", batch), H);
    vec![
        Part::new("batch 64: square root over linear", gain(64), 0.0),
        Part::reported("batch 256: square root over linear", gain(256), 0.0),
        Part::reported("the gain is larger with 64 than with 256", gain(64) - gain(256), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let arms = |rule: &str| BATCHES.map(|batch| (batch as f64, name(rule, batch)));
    vec![Picture::Lines {
        title: "linear classifier on h by batch size and scaling, %".to_owned(),
        axes: ["images per step".to_owned(), "%".to_owned()],
        log: true,
        series: RULES.map(|rule| line(table, rule, &arms(rule), H)).to_vec(),
    }]
}
