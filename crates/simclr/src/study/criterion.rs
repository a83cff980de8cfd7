//! Criteria of a verdict, stated before the results: differences between arms, paired by seed, compared with a margin and with their
//! spread over seeds.

use serde::{Deserialize, Serialize};

use super::table::{Summary, Table};

/// Fewest seeds of a verdict other than [`Verdict::Open`].
pub const MIN_SEEDS: usize = 3;
/// Standard errors of the mean difference that count as certain.
const ERRORS: f64 = 2.0;

/// A number for each seed.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantity {
    /// A figure of an arm.
    Of(String, &'static str),
    /// Of the arm that has the highest mean.
    Best(Vec<String>, &'static str),
    /// Mean over arms.
    Mean(Vec<String>, &'static str),
    /// Largest minus smallest of the arms.
    Range(Vec<String>, &'static str),
    /// The same for every seed.
    Constant(f64),
    /// A multiple.
    Times(f64, Box<Self>),
    /// The first minus the second.
    Minus(Box<Self>, Box<Self>),
}

/// `figure` of `arm`.
pub fn of(arm: impl Into<String>, figure: &'static str) -> Quantity {
    Quantity::Of(arm.into(), figure)
}

/// `figure` of the best of `arms`.
pub fn best(arms: &[&str], figure: &'static str) -> Quantity {
    Quantity::Best(arms.iter().map(|arm| (*arm).to_owned()).collect(), figure)
}

impl std::ops::Mul<Quantity> for f64 {
    type Output = Quantity;

    fn mul(self, of: Quantity) -> Quantity {
        Quantity::Times(self, Box::new(of))
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self::Minus(Box::new(self), Box::new(other))
    }
}

impl Quantity {
    /// The values by seed; none if a figure is missing.
    pub fn values(&self, table: &Table) -> Option<Vec<f64>> {
        let all = |arms: &[String], figure: &str| -> Option<Vec<Vec<f64>>> {
            arms.iter().map(|arm| table.values(arm, figure)).collect()
        };
        let each_seed = |of: Vec<Vec<f64>>, combine: &dyn Fn(Vec<f64>) -> f64| -> Option<Vec<f64>> {
            let seeds = of.iter().map(Vec::len).min()?;
            Some((0..seeds).map(|seed| combine(of.iter().map(|arm| arm[seed]).collect())).collect())
        };
        match self {
            Self::Of(arm, figure) => table.values(arm, figure),
            Self::Constant(value) => {
                let seeds = table.arms.iter().map(|(_, seeds)| seeds.len()).max()?;
                Some(vec![*value; seeds])
            }
            Self::Best(arms, figure) => {
                let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
                all(arms, figure)?.into_iter().max_by(|a, b| mean(a).total_cmp(&mean(b)))
            }
            Self::Mean(arms, figure) => {
                each_seed(all(arms, figure)?, &|values| values.iter().sum::<f64>() / values.len() as f64)
            }
            Self::Range(arms, figure) => each_seed(all(arms, figure)?, &|values| {
                let fold =
                    |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick).unwrap_or(f64::NAN);
                fold(f64::max) - fold(f64::min)
            }),
            Self::Times(factor, of) => Some(of.values(table)?.iter().map(|value| factor * value).collect()),
            Self::Minus(a, b) => {
                let (a, b) = (a.values(table)?, b.values(table)?);
                Some(a.iter().zip(&b).map(|(a, b)| a - b).collect())
            }
        }
    }
}

/// One claim: that a quantity exceeds a margin.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// In words.
    pub claim: String,
    /// Usually a difference of two arms.
    pub quantity: Quantity,
    /// In points. Negative: the claim is that nothing is lost but this much.
    pub margin: f64,
    /// Whether the verdict depends on it; otherwise it is reported only.
    pub decides: bool,
}

impl Part {
    /// A claim on which the verdict depends.
    pub fn new(claim: impl Into<String>, quantity: Quantity, margin: f64) -> Self {
        Self { claim: claim.into(), quantity, margin, decides: true }
    }

    /// A claim that is reported only: the pilot showed that this scale cannot decide it.
    pub fn reported(claim: impl Into<String>, quantity: Quantity, margin: f64) -> Self {
        Self { decides: false, ..Self::new(claim, quantity, margin) }
    }

    /// The outcome on a table.
    pub fn judge(&self, table: &Table) -> Judged {
        let summary = self.quantity.values(table).and_then(|values| Summary::of(&values));
        let outcome = summary.map_or(Outcome::Open, |summary| outcome(&summary, self.margin));
        Judged { claim: self.claim.clone(), margin: self.margin, decides: self.decides, summary, outcome }
    }
}

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Above the margin, and clear of the spread.
    Holds,
    /// Clearly below the margin.
    Fails,
    /// Neither.
    Open,
}

/// A claim that "the difference exceeds `margin`" holds if the mean does and lies more than two standard errors above 0 (above the
/// margin, if that is negative); it fails if the mean lies more than two standard errors below the margin.
fn outcome(found: &Summary, margin: f64) -> Outcome {
    let certain = ERRORS * found.error();
    if found.count < MIN_SEEDS || !found.mean.is_finite() {
        Outcome::Open
    } else if found.mean > margin && found.mean - certain > margin.min(0.0) {
        Outcome::Holds
    } else if found.mean + certain < margin {
        Outcome::Fails
    } else {
        Outcome::Open
    }
}

/// A claim with its outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of Part, and the outcome")]
pub struct Judged {
    pub claim: String,
    pub margin: f64,
    pub decides: bool,
    /// None: a figure is missing.
    pub summary: Option<Summary>,
    pub outcome: Outcome,
}

/// Of a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every deciding claim holds.
    Reproduced,
    /// A deciding claim fails.
    NotReproduced,
    /// The spread is too large, or there are fewer than three seeds.
    Open,
}

impl Verdict {
    /// Of the deciding claims among `parts`.
    pub fn of(parts: &[Judged]) -> Self {
        let mut deciding = parts.iter().filter(|part| part.decides).map(|part| part.outcome).peekable();
        if deciding.peek().is_none() {
            return Self::Open;
        }
        let outcomes: Vec<Outcome> = deciding.collect();
        if outcomes.contains(&Outcome::Fails) {
            Self::NotReproduced
        } else if outcomes.contains(&Outcome::Open) {
            Self::Open
        } else {
            Self::Reproduced
        }
    }

    /// As on a page.
    pub fn text(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::NotReproduced => "not reproduced at this scale",
            Self::Open => "not resolved",
        }
    }
}

/// The rule in words, for a page.
pub const RULE: &str = "Differences are paired by seed. A claim \"more than m points\" holds if the mean difference is above m and more \
                        than two standard errors above 0 (above m, if m is negative); it fails if the mean lies more than two standard \
                        errors below m; otherwise, and with fewer than three seeds, it is open. The verdict is \"reproduced\" if all \
                        deciding claims hold, \"not reproduced at this scale\" if one fails, else \"not resolved\".";

#[cfg(test)]
mod tests {
    use super::{super::table::Figures, *};

    fn table(arms: &[(&str, &[f64])]) -> Table {
        let seeds = |values: &[f64]| values.iter().map(|value| Figures::of("x", *value)).collect();
        Table { arms: arms.iter().map(|(name, values)| ((*name).to_owned(), seeds(values))).collect() }
    }

    fn judged(values: &[f64], margin: f64) -> Outcome {
        Part::new("", of("a", "x"), margin).judge(&table(&[("a", values)])).outcome
    }

    #[test]
    fn a_claim_holds_above_margin_and_spread() {
        // Mean 5, standard deviation 1, standard error 0.577.
        let values = [4.0, 5.0, 6.0];
        assert_eq!(judged(&values, 4.0), Outcome::Holds);
        assert_eq!(judged(&values, 5.0), Outcome::Open, "the mean is not above the margin");
        assert_eq!(judged(&values, 6.1), Outcome::Open, "6.1 lies within two standard errors of the mean");
        assert_eq!(judged(&values, 6.2), Outcome::Fails);
        assert_eq!(judged(&[-8.0, 5.0, 21.0], 4.0), Outcome::Open, "a large spread");
    }

    #[test]
    fn nothing_but_a_negative_margin_is_lost() {
        assert_eq!(judged(&[-0.6, -0.5, -0.4], -1.0), Outcome::Holds);
        assert_eq!(judged(&[-1.4, -0.5, 0.4], -1.0), Outcome::Open, "-1.54 is possible");
        assert_eq!(judged(&[-3.1, -3.0, -2.9], -1.0), Outcome::Fails);
    }

    #[test]
    fn fewer_than_three_seeds_or_missing_figures_decide_nothing() {
        assert_eq!(judged(&[9.0, 9.0], 1.0), Outcome::Open);
        assert_eq!(judged(&[f64::NAN; 3], 1.0), Outcome::Open);
        let missing = Part::new("", of("a", "y"), 0.0).judge(&table(&[("a", &[1.0; 3])]));
        assert_eq!((missing.outcome, missing.summary), (Outcome::Open, None));
    }

    #[test]
    fn quantities_are_evaluated_by_seed() {
        let table = table(&[("a", &[1.0, 2.0, 3.0]), ("b", &[2.0, 4.0, 0.0]), ("c", &[0.0, 0.0, 9.0])]);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let values = |quantity: Quantity| quantity.values(&table).unwrap();
        assert_eq!(values(of("a", "x") - of("b", "x")), [-1.0, -2.0, 3.0]);
        assert_eq!(values(best(&["a", "b", "c"], "x")), [0.0, 0.0, 9.0], "by the mean, not seed by seed");
        assert_eq!(values(Quantity::Mean(names(&["a", "b"]), "x")), [1.5, 3.0, 1.5]);
        assert_eq!(values(Quantity::Range(names(&["a", "b", "c"]), "x")), [2.0, 4.0, 9.0]);
        assert_eq!(values(Quantity::Constant(2.0) - of("a", "x")), [1.0, 0.0, -1.0]);
        assert_eq!(values(3.0 * of("a", "x")), [3.0, 6.0, 9.0]);
    }

    #[test]
    fn one_failure_decides_and_reported_claims_do_not() {
        let part =
            |outcome, decides| Judged { claim: String::new(), margin: 0.0, decides, summary: None, outcome };
        let verdict = |outcomes: &[Outcome]| {
            let parts: Vec<Judged> = outcomes.iter().map(|outcome| part(*outcome, true)).collect();
            Verdict::of(&[&parts[..], &[part(Outcome::Fails, false)]].concat())
        };
        use Outcome::{Fails, Holds, Open};
        assert_eq!(verdict(&[Holds, Holds]), Verdict::Reproduced);
        assert_eq!(verdict(&[Holds, Open]), Verdict::Open);
        assert_eq!(verdict(&[Fails, Open]), Verdict::NotReproduced);
        assert_eq!(verdict(&[]), Verdict::Open, "nothing decides");
    }
}
