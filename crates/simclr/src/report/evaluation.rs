//! The section on label efficiency, from stored results of `evaluate`; nothing is computed for it.

use super::{Analysis, training::svg};
use crate::{
    EvalError,
    eval::report::{
        Cell, Row, history,
        results::{Results, columns},
    },
    html::{escaped, table},
    picture::Picture,
};

pub(super) fn section(analysis: &Analysis<'_>) -> Result<String, EvalError> {
    let found = match history::read(analysis.run) {
        Ok(all) => chosen(analysis, all),
        Err(EvalError::NotEvaluated { .. }) => None,
        Err(error) => return Ok(format!("<p>{}</p>\n{}", escaped(&error.to_string()), command(analysis))),
    };
    let Some((results, is_of_set)) = found else {
        return Ok(format!("<p>The run has not been evaluated.</p>\n{}", command(analysis)));
    };
    let mut text = introduction(analysis, &results, is_of_set);
    let rows: Vec<&Row> =
        results.rows.iter().filter(|row| !row.by_labels.is_empty() || row.knn.is_some()).collect();
    let columns = columns(rows.iter().flat_map(|row| &row.by_labels));
    let kinds = std::iter::once("kNN".to_owned()).chain(columns.iter().map(|column| column.column_name()));
    let kinds: Vec<String> = kinds.collect();
    let cells = |row: &Row| -> Vec<Option<Cell>> {
        let by_labels = columns.iter().map(|column| row.in_column_of(column).cloned());
        std::iter::once(row.knn.clone()).chain(by_labels).collect()
    };
    let bar = |cell: Option<Cell>| cell.map(|cell| (100.0 * cell.mean, 100.0 * cell.std));
    let groups = rows.iter().map(|row| (row.name.clone(), cells(row).into_iter().map(bar).collect()));
    let title = "test accuracy, %".to_owned();
    text.push_str(&svg(&Picture::Bars { title, kinds: kinds.clone(), groups: groups.collect() })?);
    let line = |row: &&Row| {
        let cells = cells(row).into_iter().map(|cell| cell.map_or("-".to_owned(), |cell| cell.text()));
        std::iter::once(row.name.clone()).chain(cells).collect()
    };
    let headings = std::iter::once(String::new()).chain(kinds).collect();
    let lines: Vec<Vec<String>> = std::iter::once(headings).chain(rows.iter().map(line)).collect();
    Ok(text + &table(&lines))
}

/// Of the results on this set, or else of all, those with most figures, the newest of equals.
fn chosen(analysis: &Analysis<'_>, mut all: Vec<Results>) -> Option<(Results, bool)> {
    let fingerprint = analysis.set.parts[0].1.fingerprint();
    let is_own = |results: &Results| results.data.train_fingerprint == fingerprint;
    let own = all.iter().any(is_own);
    all.retain(|results| is_own(results) == own);
    let figures = |results: &Results| -> usize {
        results.rows.iter().map(|row| row.by_labels.len() + usize::from(row.knn.is_some())).sum()
    };
    // The newest are first, and `max_by_key` takes the last of equals.
    let chosen = (0..all.len()).rev().max_by_key(|at| figures(&all[*at]))?;
    Some((all.swap_remove(chosen), own))
}

fn introduction(analysis: &Analysis<'_>, results: &Results, is_of_set: bool) -> String {
    let data = &results.data;
    let mut text = format!(
        "Accuracy on {} test images of {} classes ({}), step {}; controls: the same encoder with random weights, raw pixels, chance. \
         Figures are stored results of simclr evaluate.",
        data.test_images, data.classes, data.path, results.run.step
    );
    if !is_of_set {
        text.push_str(" They are of another set than the rest of this page.");
    }
    let missing =
        ["random-init h", "raw pixels", "chance"].into_iter().filter(|name| results.row(name).is_none());
    for name in missing {
        text.push_str(&format!(" The control `{name}` was not evaluated."));
    }
    let encoder = &analysis.set.encoder;
    if results.run.step != encoder.origin().step {
        text.push_str(&format!(
            " The newest checkpoint, of step {}, has not been evaluated.",
            encoder.origin().step
        ));
    }
    let rest = if is_of_set { String::new() } else { command(analysis) };
    format!("<p>{}</p>\n{rest}", escaped(&text))
}

fn command(analysis: &Analysis<'_>) -> String {
    let (run, data) = (analysis.run.path().display(), analysis.data.display());
    let command = escaped(&format!("simclr evaluate {run} --data {data}"));
    format!("<p>Figures on this set, which needs labels, are computed by <code>{command}</code>.</p>\n")
}
