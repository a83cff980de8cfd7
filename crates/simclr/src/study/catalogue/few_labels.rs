//! Few labels: fine-tuned, linear, from scratch (arXiv 2002.05709, section 6, table 7, and B.5).

use super::super::{
    arm::{Arm, OWN, Probe},
    criterion::{Part, of},
    design::Study,
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "few-labels",
    question: "What is pretraining worth with 1 % and 10 % of the labels?",
    source: "SimCLR, table 7 and B.5",
    finding: "top-1 of ResNet-50 with 1 % and 10 % of the labels: fine-tuned 48.3 and 65.6, supervised from scratch 25.4 and 56.4. The \
              69.3 of linear evaluation uses all labels, so that 48.3 is no loss by fine-tuning but the price of 99 % of the labels",
    caution: "One learning rate for all; 1 % are 10 labels of each class. With so few labels a linear classifier can beat fine-tuning, \
              which is reported.",
    arms,
    parts,
    pictures,
    published: &[
        ("fine-tuned, 1 %", 48.3),
        ("fine-tuned, 10 %", 65.6),
        ("from scratch, 1 %", 25.4),
        ("from scratch, 10 %", 56.4),
    ],
};

const LINEAR: &str = "SimCLR, linear on h";
const FEW: &str = "linear 1 %";
const MORE: &str = "linear 10 %";

fn arms(scale: &Scale) -> Vec<Arm> {
    let simclr = Arm::fit(scale, LINEAR, &[]).measured(Probe::FewLabels(vec![0.01, 0.1]));
    vec![
        simclr.finetuned("fine-tuned, 1 %", 0.01, 0),
        simclr.finetuned("fine-tuned, 10 %", 0.1, 0),
        simclr.from_scratch("from scratch, 1 %", 0.01),
        simclr.from_scratch("from scratch, 10 %", 0.1),
        simclr,
    ]
}

fn parts(_: &Scale) -> Vec<Part> {
    let gain =
        |labels: &str| of(format!("fine-tuned, {labels}"), OWN) - of(format!("from scratch, {labels}"), OWN);
    vec![
        Part::new("1 %: fine-tuned over from scratch", gain("1 %"), 5.0),
        Part::new("10 %: fine-tuned over from scratch", gain("10 %"), 0.0),
        Part::new("the gain is larger with 1 % than with 10 %", gain("1 %") - gain("10 %"), 0.0),
        Part::reported("1 %: linear over fine-tuned", of(LINEAR, FEW) - of("fine-tuned, 1 %", OWN), 0.0),
        Part::reported("10 %: fine-tuned over linear", of("fine-tuned, 10 %", OWN) - of(LINEAR, MORE), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let spread = |arm: &str, figure: &str| table.summary(arm, figure).map(|found| (found.mean, found.std));
    let group = |labels: &str, linear: &str| {
        let tuned = spread(&format!("fine-tuned, {labels}"), OWN);
        let scratch = spread(&format!("from scratch, {labels}"), OWN);
        (format!("{labels} of the labels"), vec![tuned, spread(LINEAR, linear), scratch])
    };
    vec![Picture::Bars {
        title: "test accuracy with few labels, %".to_owned(),
        kinds: ["fine-tuned", "linear on h", "from scratch"].map(str::to_owned).to_vec(),
        groups: vec![group("1 %", FEW), group("10 %", MORE)],
    }]
}
