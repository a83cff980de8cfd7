//! Predicting the transformation of an image from h and from z (arXiv 2002.05709, section 4.2, table 3).

use super::super::{
    arm::{Arm, Probe},
    criterion::{Part, of},
    design::Study,
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "transformations",
    question: "Does h hold what z has lost: how an image was transformed?",
    source: "SimCLR, table 3",
    finding: "rotation is predicted by 67.6 % from h and 25.6 % from z; noise by 99.5 and 59.6, Sobel 96.6 and 56.3, grayscale 99.3 and 97.4",
    caution: "One run has all transformations in its augmentation; the paper adds them one at a time. Size and training of the \
              predicting network are ours. z is not at chance after short training, and the gaps of grayscale and Sobel are small: they \
              are reported only.",
    arms,
    parts,
    pictures,
    published: &[],
};

const ARM: &str = "crop + rotate + color + noise + Sobel";
const TASKS: [(&str, &str, &str); 4] = [
    ("rotation", "rotation h", "rotation z"),
    ("noise", "noise h", "noise z"),
    ("Sobel", "Sobel h", "Sobel z"),
    ("gray", "gray h", "gray z"),
];

fn arms(scale: &Scale) -> Vec<Arm> {
    let keys = ["augment.rotate=1", "augment.noise=1", "augment.sobel=0.5"];
    vec![Arm::fit(scale, ARM, &keys).measured(Probe::Transformations)]
}

fn parts(_: &Scale) -> Vec<Part> {
    let gap = |task: usize| of(ARM, TASKS[task].1) - of(ARM, TASKS[task].2);
    vec![
        Part::new("rotation: h over z", gap(0), 8.0),
        Part::new("noise: h over z", gap(1), 1.0),
        Part::reported("Sobel: h over z", gap(2), 0.0),
        Part::reported("grayscale: h over z", gap(3), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let spread = |figure: &str| table.summary(ARM, figure).map(|found| (found.mean, found.std));
    let group = |(name, h, z): (&str, &str, &str)| (name.to_owned(), vec![spread(h), spread(z)]);
    vec![Picture::Bars {
        title: "accuracy of predicting the transformation, %".to_owned(),
        kinds: vec!["from h".to_owned(), "from z".to_owned()],
        groups: TASKS.map(group).to_vec(),
    }]
}
