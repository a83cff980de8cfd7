//! Contrastive losses (arXiv 2002.05709, section 5.1, table 4).

use super::super::{
    arm::{Arm, H},
    criterion::{Part, Quantity},
    design::{Study, bars},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "losses",
    question: "Is NT-Xent better than NT-Logistic and margin losses, with and without semi-hard negatives?",
    source: "SimCLR, table 4",
    finding: "NT-Xent 63.9; NT-Logistic 51.6, with semi-hard negatives 57.9; margin 50.9, with semi-hard negatives 57.5",
    caution: "Every loss has three learning rates, of which the best counts; temperature 0.5 and margin 0.4 are not tuned, as they are in \
              the paper. Negatives are of the other view only. Runs have half the epochs of the recipe.",
    arms,
    parts,
    pictures,
    published: &[],
};

const LOSSES: [(&str, &[&str]); 5] = [
    ("NT-Xent", &[]),
    ("NT-Logistic", &["loss.kind=nt-logistic"]),
    ("NT-Logistic (sh)", &["loss.kind=nt-logistic", "loss.semi_hard=true"]),
    ("margin", &["loss.kind=margin"]),
    ("margin (sh)", &["loss.kind=margin", "loss.semi_hard=true"]),
];
/// Multiples of the recipe's learning rate.
const RATES: [f64; 3] = [1.0 / 3.0, 1.0, 3.0];

fn name(loss: &str, rate: f64) -> String {
    format!("{loss}, rate x {rate:.2}")
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let recipe = scale.rate();
    let arm = |(loss, keys): &(&str, &[&str]), rate: f64| {
        let keys = [&["loss.negatives=other-view"], *keys].concat();
        let rated = [format!("optim.lr={:?}", rate * recipe)];
        Arm::fit(scale, name(loss, rate), &keys).with(scale.epochs(0.5)).with(rated)
    };
    LOSSES.iter().flat_map(|loss| RATES.map(|rate| arm(loss, rate))).collect()
}

fn tuned(loss: &str) -> Quantity {
    Quantity::Best(RATES.map(|rate| name(loss, rate)).to_vec(), H)
}

fn parts(_: &Scale) -> Vec<Part> {
    let over = |loss: &str| Part::new(format!("NT-Xent over {loss}"), tuned("NT-Xent") - tuned(loss), 0.0);
    let mined = |loss: &str| {
        let claim = format!("{loss}: semi-hard negatives do not harm");
        Part::new(claim, tuned(&format!("{loss} (sh)")) - tuned(loss), -1.0)
    };
    let others = LOSSES[1..].iter().map(|(loss, _)| over(loss));
    others.chain([mined("NT-Logistic"), mined("margin")]).collect()
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    vec![bars(table, "linear classifier on h, %", &[H])]
}
