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
    caution: "On CIFAR-10 both views are augmented, and there are cells without crop; the paper crops always and augments one view only, \
              which the arms \"one view\" do. Our operators have one fixed order, so that the matrix is symmetric. Runs have 1.25 times the \
              epochs of the recipe. Sobel, applied to a view with probability 0.5, hides colour as well: cutout or crop with Sobel was as \
              good as crop with colour after 6, 25 and 50 epochs (the latter with seeds 11 and 12 of these three pairs only: 50.6 and \
              50.9, 53.1 and 52.6, 53.1 and 53.0). The margins of 4 and 8 points come from a pilot with one seed of another program.",
    arms,
    parts,
    pictures,
    // The digits of figure 5 are not in the text of the paper.
    published: &[],
};

/// Name and keys; flips belong to the crop. Probabilities and strengths beyond crop and colour are ours, the paper publishes none.
const OPERATORS: [(&str, &[&str]); 7] = [
    ("crop", &["augment.crop=true", "augment.flip=0.5"]),
    ("cutout", &["augment.cutout=1"]),
    ("color", &["augment.color=0.5", "augment.jitter=0.8", "augment.gray=0.2"]),
    ("Sobel", &["augment.sobel=0.5"]),
    ("noise", &["augment.noise=1"]),
    ("blur", &["augment.blur=0.5"]),
    ("rotate", &["augment.rotate=1"]),
];
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
/// Pairs of operators by position, of which only one view is augmented.
const ONE_VIEW: [(usize, usize); 5] = [(0, 0), (2, 2), (6, 6), (0, 2), (0, 6)];
const EPOCHS: f64 = 1.25;

/// `crop` or `crop + color`.
fn name(first: usize, second: usize) -> String {
    let (first, second) = (first.min(second), first.max(second));
    match first == second {
        true => OPERATORS[first].0.to_owned(),
        false => format!("{} + {}", OPERATORS[first].0, OPERATORS[second].0),
    }
}

fn one_view(first: usize, second: usize) -> String {
    format!("{} (one view)", name(first, second))
}

fn keys(first: usize, second: usize) -> Vec<&'static str> {
    [&NOTHING, OPERATORS[first].1, OPERATORS[second].1].concat()
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..OPERATORS.len()).flat_map(|first| (first..OPERATORS.len()).map(move |second| (first, second)))
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let both = pairs().map(|(a, b)| Arm::fit(scale, name(a, b), &keys(a, b)));
    let one = ONE_VIEW.map(|(a, b)| Arm::fit(scale, one_view(a, b), &[&keys(a, b)[..], &IDENTITY].concat()));
    both.chain(one).map(|arm| arm.with(scale.epochs(EPOCHS))).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let others = pairs().filter(|(a, b)| a != b && (*a, *b) != (0, 2)).map(|(a, b)| name(a, b)).collect();
    let singles: Vec<&str> = OPERATORS[1..].iter().map(|(name, _)| *name).collect();
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
            of(one_view(0, 2), H) - of(one_view(0, 0), H),
            1.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![matrix(table, "linear classifier on h, %", H), matrix(table, "contrastive accuracy, %", PRETEXT)]
}

/// Row: one operator; column: the other; last column: mean of the row.
fn matrix(table: &Table, title: &str, figure: &str) -> Picture {
    let names = || OPERATORS.iter().map(|(name, _)| (*name).to_owned());
    let row = |first: usize| {
        let cell = |second| table.summary(&name(first, second), figure).map(|found| found.mean);
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
