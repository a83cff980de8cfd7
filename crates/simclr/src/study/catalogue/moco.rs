//! MoCo: momentum, size of the queue, small batches (arXiv 1911.05722, section 4.1).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "moco",
    question: "Does MoCo need its momentum and a large queue, and is it better than SimCLR at a small batch?",
    source: "MoCo, section 4.1",
    finding: "momentum 0 fails, 0.99 57.8, 0.999 59.0; queue of 256 54.7, of 65,536 60.6",
    caution: "The recipe's optimizer, temperature 0.2, one direction; half the epochs of the recipe.",
    arms,
    parts,
    pictures,
    published: &[],
};

const BASE: &str = "MoCo, m 0.99, K 2048";
const STILL: &str = "MoCo, m 0, K 2048";
const SHORT: &str = "MoCo, m 0.99, K 256";
const SMALL: &str = "MoCo, batch 64";
const SIMCLR: &str = "SimCLR, batch 64";

fn arms(scale: &Scale) -> Vec<Arm> {
    let moco = |name: &str, momentum: &str, queue: &str, batch: usize| {
        let keys = ["task.objective=moco", "loss.temperature=0.2", momentum, queue];
        Arm::fit(scale, name, &keys).with([format!("train.batch={}", scale.batch(batch))])
    };
    let (slow, long) = ("moco.momentum=0.99", "moco.queue=2048");
    let small = format!("train.batch={}", scale.batch(64));
    let arms = [
        moco(BASE, slow, long, 128),
        moco(STILL, "moco.momentum=0", long, 128),
        moco(SHORT, slow, "moco.queue=256", 128),
        moco(SMALL, slow, long, 64),
        Arm::fit(scale, SIMCLR, &["loss.temperature=0.2"]).with([small]),
    ];
    arms.map(|arm| arm.with(scale.epochs(0.5))).to_vec()
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new("momentum 0.99 over 0", of(BASE, H) - of(STILL, H), 1.0),
        Part::new("queue of 2048 not below 256", of(BASE, H) - of(SHORT, H), -1.0),
        Part::new("batch 64: MoCo not below SimCLR", of(SMALL, H) - of(SIMCLR, H), -1.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, %", &[H])]
}
