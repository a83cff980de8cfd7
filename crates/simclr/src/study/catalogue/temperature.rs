//! Normalisation and temperature (arXiv 2002.05709, section 5.1, table 5).

use super::super::{
    arm::{Arm, H, PRETEXT, Probe},
    criterion::{Part, best, of},
    design::{Study, bars, line},
    scale::Scale,
    table::Table,
};
use crate::picture::Picture;

pub(super) const STUDY: Study = Study {
    name: "temperature",
    question: "What do the temperature and the normalisation of z do to the contrastive task and to the features?",
    source: "SimCLR, table 5",
    finding: "with a lower temperature the entropy falls and the contrastive accuracy rises; without normalisation the contrastive task is \
              solved best and the features are worst",
    caution: "Features of temperatures 0.05 to 1 lay within 1.5 points in the pilot, and the contrastive accuracy is not monotonic below \
              0.1. That features are worse without normalisation did not show in the pilot: it is reported only.",
    arms,
    parts,
    pictures,
    published: &[
        ("temperature 0.05", 59.7),
        ("temperature 0.1", 64.4),
        ("temperature 0.5", 60.7),
        ("temperature 1", 58.0),
        ("not normalised, 10", 57.2),
    ],
};

const TEMPERATURES: [f64; 4] = [0.05, 0.1, 0.5, 1.0];
const ENTROPY: &str = "entropy";

fn name(temperature: f64) -> String {
    format!("temperature {temperature}")
}

fn arms(scale: &Scale) -> Vec<Arm> {
    let key = |temperature: f64| [format!("loss.temperature={temperature:?}")];
    let normalised = TEMPERATURES.map(|t| Arm::fit(scale, name(t), &[]).with(key(t)));
    let free = [1.0, 10.0]
        .map(|t| Arm::fit(scale, format!("not normalised, {t}"), &["loss.normalize=false"]).with(key(t)));
    normalised.into_iter().chain(free).map(|arm| arm.measured(Probe::Entropy)).collect()
}

fn parts(_: &Scale) -> Vec<Part> {
    let falls = |low: f64, high: f64| {
        let claim = format!("contrastive accuracy: {low} over {high}");
        Part::new(claim, of(name(low), PRETEXT) - of(name(high), PRETEXT), 1.0)
    };
    let rises = |low: f64, high: f64| {
        let claim = format!("entropy in nats: {high} over {low}");
        Part::new(claim, of(name(high), ENTROPY) - of(name(low), ENTROPY), 0.0)
    };
    let lower = ["temperature 0.05", "temperature 0.1", "temperature 0.5"];
    vec![
        falls(0.1, 0.5),
        falls(0.5, 1.0),
        rises(0.05, 0.1),
        rises(0.1, 0.5),
        rises(0.5, 1.0),
        Part::new(
            "features: the best lower temperature not below 1",
            best(&lower, H) - of(name(1.0), H),
            -1.0,
        ),
        Part::reported(
            "features: temperature 0.5 over no normalisation",
            of(name(0.5), H) - of("not normalised, 10", H),
            1.0,
        ),
    ]
}

fn pictures(_: &Scale, table: &Table) -> Vec<Picture> {
    let arms = TEMPERATURES.map(|temperature| (temperature, name(temperature)));
    let lines = |title: &str, unit: &str, figures: &[&str]| Picture::Lines {
        title: title.to_owned(),
        axes: ["temperature".to_owned(), unit.to_owned()],
        log: true,
        series: figures.iter().map(|figure| line(table, figure, &arms, figure)).collect(),
    };
    vec![
        lines("features and contrastive task by temperature, %", "%", &[H, PRETEXT]),
        lines("entropy of the contrastive distribution", "nats", &[ENTROPY]),
        bars(table, "linear classifier on h, %", &[H]),
    ]
}
