//! Batch norm within groups leaks which views belong together (arXiv 2002.05709, appendix A; arXiv 1911.05722, section 3.3, A.9).

use super::super::{
    arm::{Arm, H, PRETEXT},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "batch-norm",
    question: "Does batch norm over small groups leak which views belong together, and do global and shuffled statistics prevent it?",
    source: "SimCLR, appendix A; MoCo, figure A.1",
    finding: "MoCo without shuffling: contrastive accuracy above 99.9 %, kNN accuracy 28 % and falling; with shuffling 97 % and 42 %",
    caution: "Groups of 8 images on one device, both views of an image in one group. Runs have half the epochs of the recipe.",
    arms,
    parts,
    pictures,
    published: &[],
};

const GLOBAL: &str = "SimCLR, global";
const GROUPS: &str = "SimCLR, groups";
const LEAKY: &str = "MoCo, groups";
const SHUFFLED: &str = "MoCo, groups, shuffled keys";

fn arms(scale: &Scale) -> Vec<Arm> {
    let batch = scale.batch(128);
    let size = format!("train.batch={batch}");
    let groups = format!("train.batch_norm_groups={}", (batch / 8).max(2));
    let moco = ["task.objective=moco", "moco.queue=2048", "moco.momentum=0.99", "loss.temperature=0.2"];
    let arm = |name: &str, keys: &[&str], groups: Option<&String>| {
        Arm::fit(scale, name, keys).with([size.clone()]).with(groups.cloned()).with(scale.epochs(0.5))
    };
    vec![
        arm(GLOBAL, &[], None),
        arm(GROUPS, &[], Some(&groups)),
        arm(LEAKY, &[&moco[..], &["moco.shuffle=false"]].concat(), Some(&groups)),
        arm(SHUFFLED, &[&moco[..], &["moco.shuffle=true"]].concat(), Some(&groups)),
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new(
            "SimCLR: contrastive accuracy in groups over global",
            of(GROUPS, PRETEXT) - of(GLOBAL, PRETEXT),
            1.0,
        ),
        Part::new("SimCLR: features of global over groups", of(GLOBAL, H) - of(GROUPS, H), 1.0),
        Part::new(
            "MoCo: contrastive accuracy without shuffling over with",
            of(LEAKY, PRETEXT) - of(SHUFFLED, PRETEXT),
            1.0,
        ),
        Part::new("MoCo: features with shuffling over without", of(SHUFFLED, H) - of(LEAKY, H), 1.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "features and contrastive task, %", &[H, PRETEXT])]
}
