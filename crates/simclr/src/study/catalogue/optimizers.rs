//! Optimizers at a large batch (arXiv 1706.02677, 1708.03888, 1904.00962).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, best, of},
    design::{RANDOM_INIT, Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "optimizers",
    question: "Which optimizers train at a large batch with a scaled learning rate, and what is warm-up worth?",
    source: "ImageNet in 1 hour; LARS; LAMB",
    finding: "linear scaling needs warm-up; LARS and LAMB train at batches where SGD fails",
    caution: "1024 of 10,000 images per step, two learning rates each, of which the best counts. A run that diverges has the accuracy of \
              chance.",
    arms,
    parts,
    pictures,
    published: &[],
};

const LARS: [(&str, &str); 2] = [("LARS, 1", "optim.lr=1"), ("LARS, 4", "optim.lr=4")];
const LAMB: [(&str, &str); 2] = [("LAMB, 0.01", "optim.lr=0.01"), ("LAMB, 0.03", "optim.lr=0.03")];
/// 0.06 for 256 images (dkobak/simclr-cifar10), scaled linearly, and five times that.
const SGD: [(&str, &str); 2] = [("SGD, 0.24", "optim.lr=0.24"), ("SGD, 1.2", "optim.lr=1.2")];
const ABRUPT: [(&str, &str); 2] =
    [("SGD, 0.24, no warm-up", "optim.lr=0.24"), ("SGD, 1.2, no warm-up", "optim.lr=1.2")];

fn arms(scale: &Scale) -> Vec<Arm> {
    let batch = format!("train.batch={}", scale.batch(1024));
    let arm = |kind: &str, (name, rate): (&str, &str)| {
        Arm::fit(scale, name, &[kind, rate, "optim.scaling=none"]).with([batch.clone()])
    };
    let lars = LARS.map(|of| arm("optim.kind=lars", of));
    let lamb = LAMB.map(|of| arm("optim.kind=lamb", of));
    let sgd = SGD.map(|of| arm("optim.kind=sgd", of));
    let abrupt = ABRUPT.map(|of| arm("optim.kind=sgd", of).with(["optim.warmup_epochs=0".to_owned()]));
    lars.into_iter().chain(lamb).chain(sgd).chain(abrupt).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let tuned = |arms: [(&str, &str); 2]| best(&arms.map(|(name, _)| name), H);
    vec![
        Part::new("LARS over random init", tuned(LARS) - of(RANDOM_INIT, H), 3.0),
        Part::new("LAMB over random init", tuned(LAMB) - of(RANDOM_INIT, H), 3.0),
        Part::new("SGD at the higher rate: warm-up over none", of(SGD[1].0, H) - of(ABRUPT[1].0, H), 0.0),
        Part::reported("LARS over SGD", tuned(LARS) - tuned(SGD), 0.0),
        Part::reported("LAMB over SGD", tuned(LAMB) - tuned(SGD), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, %", &[H])]
}
