//! SimCLR v2: distillation with unlabelled images (arXiv 2006.10029, section 3.3, table 2).

use super::super::{
    arm::{Arm, How, OWN, Probe, Run},
    criterion::{Part, of},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "v2-distillation",
    question: "Does distillation with unlabelled images improve on the labels alone?",
    source: "SimCLR v2, section 3.3",
    finding: "students of unlabelled images are far better than networks trained on the labels alone; labels in the distillation add little; self-distillation improves on the teacher",
    caution: "The teacher is fine-tuned with a tenth of the labels. Students have as many steps as pretraining.",
    arms,
    parts,
    pictures,
    published: &[],
};

const LABELS: f64 = 0.1;
const TEACHER: &str = "teacher, fine-tuned";
const ALONE: &str = "labels alone";
const SAME: &str = "distilled, same network";
const BOTH: &str = "distilled with labels";
const HALF: &str = "distilled, half the width";

fn arms(scale: &Scale) -> Vec<Arm> {
    let pretrained = Arm::fit(scale, "SimCLR", &[]);
    let teacher = pretrained.finetuned(TEACHER, LABELS, 0);
    let student = |name: &str, set: Vec<String>, label_weight: f64| {
        let how = How::Distill {
            teacher: Box::new(teacher.run.clone()),
            labels: LABELS,
            temperature: 1.0,
            label_weight,
        };
        let run = Run { images: scale.given(), set, how };
        Arm { name: name.to_owned(), run, probes: vec![Probe::Classifier] }
    };
    let half = vec!["encoder.width=0.5".to_owned()];
    let students = [student(SAME, Vec::new(), 0.0), student(BOTH, Vec::new(), 0.5), student(HALF, half, 0.0)];
    let alone = pretrained.from_scratch(ALONE, LABELS);
    [teacher, alone].into_iter().chain(students).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    vec![
        Part::new("student over labels alone", of(SAME, OWN) - of(ALONE, OWN), 1.0),
        Part::new("student not below teacher", of(SAME, OWN) - of(TEACHER, OWN), -1.0),
        Part::new("without labels not below with labels", of(SAME, OWN) - of(BOTH, OWN), -1.0),
        Part::reported("student of half the width over labels alone", of(HALF, OWN) - of(ALONE, OWN), 1.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "test accuracy of the classifiers, %", &[OWN])]
}
