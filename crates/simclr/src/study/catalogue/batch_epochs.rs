//! Batch size and epochs (arXiv 2002.05709, section 5.2, figure 9, table B.1).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "batch-epochs",
    question: "Do larger batches help, and does the advantage shrink with more epochs?",
    source: "SimCLR, figure 9 and table B.1",
    finding: "with few epochs and linear scaling of the learning rate larger batches are clearly better (57.5 with 256, 64.8 with 8192); the gap closes with more epochs",
    caution: "Two arms: (i) the paper's, the learning rate linear in the batch and equal to the recipe's at the largest one; (iii) a fixed \
              number of steps. The arm (ii) of our notes, fewer negatives at a fixed batch, needs a loss with K random negatives, which \
              this program does not have. With a learning rate that is not scaled down the effect reverses on 10,000 images, because \
              steps, not negatives, are the bottleneck.",
    arms,
    parts,
    pictures,
    published: &[],
};

/// Batches of the first arm, and of the second.
const BATCHES: [usize; 3] = [32, 128, 512];
const FIXED: [usize; 3] = [64, 256, 1024];
/// Multiples of the recipe's epochs.
const LENGTHS: [(f64, &str); 2] = [(0.25, "few"), (1.0, "many")];
/// Epochs of the second arm at 256 images, as a multiple of the recipe's.
const STEPS: f64 = 0.5;

fn name(batch: usize, length: &str) -> String {
    format!("linear rate, batch {batch}, {length} epochs")
}

fn fixed(batch: usize) -> String {
    format!("fixed steps, batch {batch}")
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let batch = |batch: usize| format!("train.batch={}", scale.batch(batch));
    // The recipe's square-root scaling at the largest batch, linear below.
    let anchor = scale.batch(BATCHES[2]) as f64 / 256.0;
    let rate =
        ["optim.scaling=linear".to_owned(), format!("optim.lr={:?}", scale.rate() * anchor.sqrt() / anchor)];
    let linear = LENGTHS.into_iter().flat_map(|(factor, length)| BATCHES.map(|size| (factor, length, size)));
    let linear = linear.map(|(factor, length, size)| {
        let arm = Arm::fit(scale, name(size, length), &[]).with(scale.epochs(factor));
        arm.with(rate.clone()).with([batch(size)])
    });
    let steps = FIXED.map(|size| {
        let factor = STEPS * size as f64 / 256.0;
        Arm::fit(scale, fixed(size), &["optim.scaling=sqrt-of256"])
            .with(scale.epochs(factor))
            .with([batch(size)])
    });
    linear.chain(steps).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let gap = |length: &str| of(name(BATCHES[2], length), H) - of(name(BATCHES[0], length), H);
    vec![
        Part::new("linear rate, few epochs: batch 512 over 32", gap("few"), 0.0),
        Part::new("linear rate: the gap is smaller with more epochs", gap("few") - gap("many"), 0.0),
        Part::new("fixed steps: batch 1024 over 64", of(fixed(1024), H) - of(fixed(64), H), 1.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let linear = |length: &str| BATCHES.map(|batch| (batch as f64, name(batch, length)));
    let steps = FIXED.map(|batch| (batch as f64, fixed(batch)));
    let mut series: Vec<_> = LENGTHS
        .iter()
        .map(|(_, length)| line(table, &format!("linear rate, {length} epochs"), &linear(length), H))
        .collect();
    series.push(line(table, "fixed steps", &steps, H));
    vec![Picture::Lines {
        title: "linear classifier on h by batch size, %".to_owned(),
        axes: ["images per step".to_owned(), "%".to_owned()],
        log: true,
        series,
    }]
}
