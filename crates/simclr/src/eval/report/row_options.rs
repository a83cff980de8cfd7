//! Options that some of the rows depend on only: results that share such a row are comparable if they share these options.

use serde_json::Value;

use super::results::{Results, Row, TransferRow};

/// Figures that an option changes.
enum Dependents {
    /// Those of columns with fewer than all labels, in any row but chance.
    FewLabels,
    /// Those of the rows with a name that begins with one of these.
    Rows(&'static [&'static str]),
    /// Networks fine-tuned on transfer sets.
    TunedTransfer,
}

/// Section below `[eval]`, its keys, and what depends on them. Others decide which rows there are, or are facts of the protocol.
const OPTIONS: [(&str, &[&str], Dependents); 6] = [
    ("", &["draws", "label_lists"], Dependents::FewLabels),
    ("trained", &["batch", "epochs"], Dependents::Rows(&["linear on crops", "fine-tuned"])),
    ("trained", &["seeds"], Dependents::Rows(&["linear on crops", "fine-tuned", "supervised"])),
    ("trained", &["linear_rates", "linear_decays"], Dependents::Rows(&["linear on crops"])),
    (
        "trained",
        &["finetune_recipe", "finetune_rates", "sweep_below", "finetune_draws"],
        Dependents::Rows(&["fine-tuned"]),
    ),
    (
        "transfer_finetune",
        &["batch", "steps", "rates", "decays", "fresh_steps", "fresh_rates", "fresh_decays"],
        Dependents::TunedTransfer,
    ),
];

/// The options of `one` and `other` that differ although both have figures that depend on them: name and both values. What the
/// results of an older version do not state is not compared.
pub(super) fn differing<'r>(one: &'r Results, other: &'r Results) -> Vec<(String, &'r Value, &'r Value)> {
    let shared = OPTIONS.iter().filter(|(_, _, dependents)| dependents.are_in(one, other));
    let keys = shared.flat_map(|(section, keys, _)| keys.iter().map(move |key| (*section, *key)));
    keys.filter_map(|(section, key)| {
        let (a, b) = (option(one, section, key)?, option(other, section, key)?);
        let dot = if section.is_empty() { "" } else { "." };
        (a != b).then(|| (format!("eval.{section}{dot}{key}"), a, b))
    })
    .collect()
}

fn option<'r>(of: &'r Results, section: &str, key: &str) -> Option<&'r Value> {
    let section = if section.is_empty() { &of.options } else { of.options.get(section)? };
    section.get(key)
}

impl Dependents {
    /// Whether both results have the same such figure.
    fn are_in(&self, one: &Results, other: &Results) -> bool {
        match self {
            Self::FewLabels => shared_rows(one, other).any(|(a, b)| share_few_labels(a, b)),
            Self::Rows(names) => {
                shared_rows(one, other).any(|(row, _)| names.iter().any(|name| row.name.starts_with(*name)))
            }
            Self::TunedTransfer => tuned(one).any(|row| tuned(other).any(|other| row.same_set(other))),
        }
    }
}

/// Rows of the same name, but for chance, which has no labels.
fn shared_rows<'r>(one: &'r Results, other: &'r Results) -> impl Iterator<Item = (&'r Row, &'r Row)> {
    let rows = one.rows.iter().filter(|row| row.name != "chance");
    rows.filter_map(|row| Some((row, other.row(&row.name)?)))
}

/// The transfer sets that networks were fine-tuned on.
fn tuned(of: &Results) -> impl Iterator<Item = &TransferRow> {
    of.transfer.iter().filter(|row| row.finetuned.is_some() || row.fresh.is_some())
}

fn share_few_labels(one: &Row, other: &Row) -> bool {
    one.by_labels.iter().any(|cell| !cell.has_all_labels() && other.in_column_of(cell).is_some())
}
