//! SimCLR v2: deeper heads, fine-tuned from a middle layer (arXiv 2006.10029, section 3.2, figures 5 and 6).

use super::super::{
    arm::{Arm, OWN},
    criterion::{Part, Quantity, of},
    design::{Study, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "v2-head",
    question: "Is a deeper head better with few labels, fine-tuned from one of its layers?",
    source: "SimCLR v2, section 3.2",
    finding: "three layers are better than two, and fine-tuning from the first layer of the head better than from h, by up to 14 % (relative) with 1 % of the labels",
    caution: "Differences are small: 5 seeds or more may be needed. One learning rate for all.",
    arms,
    parts,
    pictures,
    published: &[],
};

const DEPTHS: [usize; 3] = [2, 3, 4];
const LABELS: [(f64, &str); 2] = [(0.01, "1 %"), (0.1, "10 %")];

fn name(depth: usize, from: usize, labels: &str) -> String {
    format!("{depth} layers, from layer {from}, {labels}")
}

/// Layers that a head of `depth` can be fine-tuned from; 0 is h.
fn layers(depth: usize) -> std::ops::Range<usize> {
    0..depth.min(3)
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let mut arms = Vec::new();
    for depth in DEPTHS {
        let keys = if depth == 2 { Vec::new() } else { vec![format!("head.layers={depth}")] };
        let pretrained = Arm::fit(scale, format!("pretrained, {depth} layers"), &[]).with(keys);
        for (share, labels) in LABELS {
            arms.extend(
                layers(depth).map(|from| pretrained.finetuned(name(depth, from, labels), share, from)),
            );
        }
        arms.push(pretrained);
    }
    arms
}

fn parts(_: &Scale) -> Vec<Part> {
    let from = |layer: usize| of(name(3, layer, "1 %"), OWN);
    let best =
        |depth: usize| Quantity::Best(layers(depth).map(|layer| name(depth, layer, "1 %")).collect(), OWN);
    vec![
        Part::new("1 %, three layers: from the first layer over from h", from(1) - from(0), 0.0),
        Part::new("1 %: three layers over two, each from its best layer", best(3) - best(2), 0.0),
        Part::reported("1 %, three layers: from the first layer over the second", from(1) - from(2), 0.0),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let lines = |labels: &str| {
        let series = DEPTHS.map(|depth| {
            let arms: Vec<_> = layers(depth).map(|from| (from as f64, name(depth, from, labels))).collect();
            line(table, &format!("{depth} layers"), &arms, OWN)
        });
        Picture::Lines {
            title: format!("fine-tuned with {labels} of the labels, %"),
            axes: ["layer of the head".to_owned(), "%".to_owned()],
            log: false,
            series: series.to_vec(),
        }
    };
    LABELS.map(|(_, labels)| lines(labels)).to_vec()
}
