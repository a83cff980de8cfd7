//! SimCLR, SimCLR v2, MoCo v2 and supervised training at equal compute (arXiv 2006.10029, 2003.04297).

use super::super::{
    arm::{Arm, H, OWN},
    criterion::{Part, best, of},
    design::{RANDOM_INIT, Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "neighbours",
    question: "How do SimCLR, SimCLR v2, MoCo v2 and supervised training compare at equal compute?",
    source: "SimCLR v2, section 2.1; MoCo v2, table 2",
    finding: "the memory of SimCLR v2 gains about 1 %; MoCo v2 equals SimCLR with smaller batches; supervised features are better at equal epochs",
    caution: "Epochs are chosen for equal compute: 3/4 with a second encoder, twice with one view. A gain of 1 % is below what three \
              seeds resolve, so that it is reported only.",
    arms,
    parts,
    pictures,
    published: &[],
};

const SIMCLR: &str = "SimCLR";
const V2: &str = "SimCLR v2";
const MOCO: &str = "MoCo v2";
const SUPERVISED: &str = "supervised, 2 x epochs";

fn arms(scale: &Scale) -> Vec<Arm> {
    let memory = ["moco.queue=2048", "moco.momentum=0.99"];
    let v2 = [&["task.objective=simclr-momentum", "head.layers=3"][..], &memory].concat();
    let moco = [&["task.objective=moco", "loss.temperature=0.2"][..], &memory].concat();
    vec![
        Arm::fit(scale, SIMCLR, &[]),
        Arm::fit(scale, V2, &v2).with(scale.epochs(0.75)),
        Arm::fit(scale, MOCO, &moco).with(scale.epochs(0.75)),
        Arm::supervised(scale, SUPERVISED, &[]).with(scale.epochs(2.0)),
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new(
            "the best contrastive method over random init",
            best(&[SIMCLR, V2, MOCO], H) - of(RANDOM_INIT, H),
            5.0,
        ),
        Part::new(
            "supervised over the best contrastive method",
            of(SUPERVISED, OWN) - best(&[SIMCLR, V2, MOCO], H),
            0.0,
        ),
        Part::reported("SimCLR v2 not below SimCLR", of(V2, H) - of(SIMCLR, H), -1.0),
        Part::reported("MoCo v2 not below SimCLR", of(MOCO, H) - of(SIMCLR, H), -1.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, and own classifier, %", &[H, OWN])]
}
