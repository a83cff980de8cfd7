//! Composition of augmentations (arXiv 2002.05709, section 3.1, figure 5).

use super::super::{
    arm::{Arm, H, PRETEXT},
    criterion::{Part, Quantity, best, of},
    design::{RANDOM_INIT, Study},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "augmentations",
    question: "Which augmentation, alone or in a pair, gives the best features?",
    source: "SimCLR, figure 5",
    finding: "no augmentation alone suffices, although the contrastive task is then almost solved; crop with colour distortion is the best pair",
    caution: "Two matrices: both views augmented, Sobel and blur with probability 0.5; and, as in the paper, one view augmented and the \
              other left as it is, with Sobel and blur always. The paper crops both views in addition, because its images differ in \
              size. Our operators have one fixed order, so that the matrices are symmetric. Runs have 1.25 times the epochs of the \
              recipe. Sobel with probability 0.5 hides colour as well as colour distortion does. With both views augmented, cutout or \
              crop with Sobel was as good as crop with colour after 6, 25 and 50 epochs (the latter with seeds 11 and 12 of these three \
              pairs only: 50.6 and 50.9, 53.1 and 52.6, 53.1 and 53.0). The matrix of one view was added after that, and after a pilot \
              with seed 21: crop + color 49.7, crop + Sobel 47.7, cutout + Sobel 47.2, but crop + Sobel 50.9 if Sobel has probability \
              0.5 there, too. The margins of 4 and 8 points come from a pilot with one seed of another program.",
    arms,
    parts,
    pictures,
    // The digits of figure 5 are not in the text of the paper.
    published: &[],
};

/// Flips belong to the crop. Probabilities and strengths beyond crop and colour are ours, the paper publishes none.
struct Operator {
    name: &'static str,
    /// Of both views.
    keys: &'static [&'static str],
    /// Of the only augmented view, if they differ.
    one_view: &'static [&'static str],
}

const OPERATORS: [Operator; 7] = [
    Operator { name: "crop", keys: &["augment.crop=true", "augment.flip=0.5"], one_view: &[] },
    Operator { name: "cutout", keys: &["augment.cutout=1"], one_view: &[] },
    Operator {
        name: "color",
        keys: &["augment.color=0.5", "augment.jitter=0.8", "augment.gray=0.2"],
        one_view: &[],
    },
    Operator { name: "Sobel", keys: &["augment.sobel=0.5"], one_view: &["augment.sobel=1"] },
    Operator { name: "noise", keys: &["augment.noise=1"], one_view: &[] },
    Operator { name: "blur", keys: &["augment.blur=0.5"], one_view: &["augment.blur=1"] },
    Operator { name: "rotate", keys: &["augment.rotate=1"], one_view: &[] },
];
const CROP: usize = 0;
const COLOR: usize = 2;
const NOTHING: [&str; 5] =
    ["augment.crop=false", "augment.flip=0", "augment.color=0", "augment.jitter=0", "augment.gray=0"];
/// The second view of an image is the image itself.
const IDENTITY: [&str; 9] = [
    "augment.second_view.crop=false",
    "augment.second_view.flip=0",
    "augment.second_view.jitter=0",
    "augment.second_view.gray=0",
    "augment.second_view.sobel=0",
    "augment.second_view.noise=0",
    "augment.second_view.blur=0",
    "augment.second_view.rotate=0",
    "augment.second_view.cutout=0",
];
const EPOCHS: f64 = 1.25;

/// `crop` or `crop + color`.
fn name(first: usize, second: usize) -> String {
    let (first, second) = (first.min(second), first.max(second));
    match first == second {
        true => OPERATORS[first].name.to_owned(),
        false => format!("{} + {}", OPERATORS[first].name, OPERATORS[second].name),
    }
}

fn one_view(first: usize, second: usize) -> String {
    format!("{} (one view)", name(first, second))
}

fn keys(first: usize, second: usize) -> Vec<&'static str> {
    [&NOTHING, OPERATORS[first].keys, OPERATORS[second].keys].concat()
}

fn one_view_keys(first: usize, second: usize) -> Vec<&'static str> {
    let [first, second] = [first, second].map(|at| &OPERATORS[at]).map(|operator| match operator.one_view {
        [] => operator.keys,
        keys => keys,
    });
    [&NOTHING, first, second, &IDENTITY].concat()
}

fn cells() -> impl Iterator<Item = (usize, usize)> {
    (0..OPERATORS.len()).flat_map(|first| (first..OPERATORS.len()).map(move |second| (first, second)))
}

/// Pairs of two operators, without crop + color.
fn other_pairs() -> impl Iterator<Item = (usize, usize)> {
    cells().filter(|&(a, b)| a != b && (a, b) != (CROP, COLOR))
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let both = cells().map(|(a, b)| Arm::fit(scale, name(a, b), &keys(a, b)));
    let one = cells().map(|(a, b)| Arm::fit(scale, one_view(a, b), &one_view_keys(a, b)));
    both.chain(one).map(|arm| arm.with(scale.epochs(EPOCHS))).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let others = other_pairs().map(|(a, b)| name(a, b)).collect();
    let others_of_one_view = other_pairs().map(|(a, b)| one_view(a, b)).collect();
    let singles: Vec<&str> = OPERATORS[1..].iter().map(|operator| operator.name).collect();
    let pair = || of("crop + color", H);
    vec![
        Part::new("crop + color over crop", pair() - of("crop", H), 4.0),
        Part::new("crop + color over color", pair() - of("color", H), 8.0),
        Part::new("crop + color over the best other pair", pair() - Quantity::Best(others, H), 0.0),
        Part::new("crop over the best other single operator", of("crop", H) - best(&singles, H), 0.0),
        Part::new(
            "crop alone solves the contrastive task better than crop + color",
            of("crop", PRETEXT) - of("crop + color", PRETEXT),
            10.0,
        ),
        Part::new(
            "color alone solves the contrastive task better than crop + color",
            of("color", PRETEXT) - of("crop + color", PRETEXT),
            10.0,
        ),
        Part::reported("random init not below color alone", of(RANDOM_INIT, H) - of("color", H), -1.0),
        Part::reported(
            "one view augmented: crop + color over crop",
            of(one_view(CROP, COLOR), H) - of(one_view(CROP, CROP), H),
            1.0,
        ),
        Part::new(
            "one view augmented, as in the paper: crop + color over the best other pair",
            of(one_view(CROP, COLOR), H) - Quantity::Best(others_of_one_view, H),
            0.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![
        matrix(table, "linear classifier on h, %", H, name),
        matrix(table, "one view augmented: linear classifier on h, %", H, one_view),
        matrix(table, "contrastive accuracy, %", PRETEXT, name),
    ]
}

/// Row: one operator; column: the other; last column: mean of the row.
fn matrix(table: &Table, title: &str, figure: &str, arm: fn(usize, usize) -> String) -> Picture {
    let names = || OPERATORS.iter().map(|operator| operator.name.to_owned());
    let row = |first: usize| {
        let cell = |second| table.summary(&arm(first, second), figure).map(|found| found.mean);
        let cells: Vec<Option<f64>> = (0..OPERATORS.len()).map(cell).collect();
        let known: Vec<f64> = cells.iter().flatten().copied().collect();
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        [cells, vec![Some(mean)]].concat()
    };
    Picture::Heat {
        title: title.to_owned(),
        rows: names().collect(),
        columns: names().chain(["mean".to_owned()]).collect(),
        cells: (0..OPERATORS.len()).map(row).collect(),
    }
}
