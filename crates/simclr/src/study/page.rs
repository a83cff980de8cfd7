//! Pages of a study, as HTML in a single file and as markdown, and the overview of all studies.

use std::path::PathBuf;

use serde_json::json;

use super::{
    criterion::{Judged, Outcome, RULE},
    design::{Study, columns},
    report::{FILE, Report},
    workspace::Workspace,
};
use crate::{
    EvalError,
    checkpoint::write_atomically,
    html::{Rows, escaped, page, table},
    picture::Picture,
};

/// Writes `report` and its pages into the folder of the study below that of `workspace`; returns the page.
///
/// # Errors
/// Files that cannot be written, a picture that cannot be drawn.
pub fn write(workspace: &Workspace, study: &Study, report: &Report) -> Result<PathBuf, EvalError> {
    let folder = workspace.out().join(study.name);
    fs_err::create_dir_all(&folder)?;
    let encode = |reason| EvalError::Encoding { what: format!("picture of {}", study.name), reason };
    let pictures = (study.pictures)(&workspace.scale, &report.table);
    let pictures: Vec<String> =
        pictures.iter().map(Picture::svg).collect::<Result<_, _>>().map_err(encode)?;
    let page = folder.join("report.html");
    write_atomically(&folder.join(FILE), format!("{:#}\n", json!(report)).as_bytes())?;
    write_atomically(&folder.join("report.md"), markdown(study, report).as_bytes())?;
    write_atomically(&page, html(study, report, &pictures).as_bytes())?;
    Ok(page)
}

/// The page as HTML that needs no other file.
pub fn html(study: &Study, report: &Report, pictures: &[String]) -> String {
    let name = escaped(study.name);
    let mut body = format!("<h1>{name}</h1>\n<p>{}</p>\n", escaped(study.question));
    body.push_str(&format!("<p class=\"verdict\">Verdict: {}</p>\n", report.verdict.text()));
    body.push_str(&format!("<p>{}: {}</p>\n", escaped(study.source), escaped(study.finding)));
    body.push_str(&format!("<h2>Criterion</h2>\n{}<p>{}</p>\n", table(&claims(report)), escaped(RULE)));
    body.push_str("<h2>Pictures</h2>\n");
    for picture in pictures {
        body.push_str(&format!("<div class=\"overflow\">{picture}</div>\n"));
    }
    body.push_str(&format!("<h2>Table</h2>\n{}", table(&figures(study, report))));
    for note in notes(study, report) {
        body.push_str(&format!("<p>{}</p>\n", escaped(&note)));
    }
    body.push_str(&format!("<p>Command: <code>{}</code></p>\n", escaped(&report.command)));
    page(study.name, "", &body)
}

/// The page as markdown, without its pictures.
pub fn markdown(study: &Study, report: &Report) -> String {
    let mut page = format!("# {}\n\n{}\n\n", study.name, study.question);
    page.push_str(&format!("**Verdict: {}.**\n\n", report.verdict.text()));
    page.push_str(&format!("{}: {}\n\n", study.source, study.finding));
    page.push_str(&format!("## Criterion\n\n{}\n{RULE}\n\n", markdown_table(&claims(report))));
    page.push_str(&format!("## Table\n\n{}\n", markdown_table(&figures(study, report))));
    for note in notes(study, report) {
        page.push_str(&format!("{note}\n\n"));
    }
    page.push_str(&format!("Command: `{}`. Pictures: `report.html`.\n", report.command));
    page
}

/// The overview of `studies`, with their results where they have been run.
pub fn overview(studies: &[(&Study, Option<Report>)]) -> String {
    let mut rows = vec![
        ["study", "question", "paper", "here", "verdict", "seeds", "command"].map(str::to_owned).to_vec(),
    ];
    rows.extend(studies.iter().map(|(study, report)| overview_row(study, report.as_ref())));
    let table = markdown_table(&rows);
    format!(
        "# Studies\n\n{RULE} Figures are differences in points, mean ± standard deviation over seeds.\n\n{table}"
    )
}

fn overview_row(study: &Study, report: Option<&Report>) -> Vec<String> {
    let link = format!("[{0}]({0}/report.md)", study.name);
    let paper = format!("{}: {}", study.source, study.finding);
    let found = report.map_or_else(
        || [study.name, "", "not run", "", ""].map(str::to_owned),
        |report| {
            let here: Vec<String> = report.parts.iter().filter(|part| part.decides).map(here).collect();
            let verdict = report.verdict.text().to_owned();
            [link, here.join("; "), verdict, report.seeds.to_string(), format!("`{}`", report.command)]
        },
    );
    let [name, here, verdict, seeds, command] = found;
    vec![name, study.question.to_owned(), paper, here, verdict, seeds, command]
}

/// Such as `crop + colour over crop: 7.4 ± 0.3 (holds)`.
fn here(part: &Judged) -> String {
    format!("{}: {} ({})", part.claim, found(part), outcome(part.outcome))
}

fn found(part: &Judged) -> String {
    part.summary.map_or_else(|| "-".to_owned(), |summary| summary.text())
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Holds => "holds",
        Outcome::Fails => "fails",
        Outcome::Open => "open",
    }
}

fn claims(report: &Report) -> Rows {
    let headings = ["claim", "found", "more than", "outcome", ""].map(str::to_owned).to_vec();
    let row = |part: &Judged| {
        let kind = if part.decides { "decides" } else { "reported only" };
        let outcome = outcome(part.outcome).to_owned();
        vec![part.claim.clone(), found(part), part.margin.to_string(), outcome, kind.to_owned()]
    };
    std::iter::once(headings).chain(report.parts.iter().map(row)).collect()
}

fn figures(study: &Study, report: &Report) -> Rows {
    let table = &report.table;
    let columns = columns(table);
    let published = !study.published.is_empty();
    let headings = std::iter::once(String::new()).chain(columns.iter().cloned());
    let mut rows: Rows = vec![headings.chain(published.then(|| "published".to_owned())).collect()];
    for (arm, _) in &table.arms {
        let cell =
            |figure: &String| table.summary(arm, figure).map_or_else(|| "-".to_owned(), |found| found.text());
        let number =
            study.published.iter().find(|(name, _)| name == arm).map(|(_, number)| number.to_string());
        let last = published.then(|| number.unwrap_or_default());
        rows.push(std::iter::once(arm.clone()).chain(columns.iter().map(cell)).chain(last).collect());
    }
    rows
}

fn notes(study: &Study, report: &Report) -> Vec<String> {
    let (train, test, classes) = report.images;
    let scale = &report.scale;
    let recipe = format!(
        "Recipe ({} budget): at most {} of the {train} training images, {} epochs, {} images per step; {test} test images, \
         {classes} classes, chance {:.1}. Seeds 1 to {}; mean ± standard deviation over seeds; accuracies in points. Linear \
         classifiers: L-BFGS on standardised features. simclr {}.",
        scale["budget"].as_str().unwrap_or_default(),
        scale["images"],
        scale["epochs"],
        scale["batch"],
        report.chance(),
        report.seeds,
        report.simclr
    );
    vec![study.caution.to_owned(), recipe]
}

fn markdown_table(rows: &[Vec<String>]) -> String {
    let row = |cells: &Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let Some((headings, rest)) = rows.split_first() else { return String::new() };
    let rule = format!("| {} |\n", vec!["---"; headings.len()].join(" | "));
    row(headings) + &rule + &rest.iter().map(row).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_markdown_are_escaped() {
        let rows = vec![vec!["a|b".to_owned(), "x<y".to_owned()], vec!["1".to_owned(), "2".to_owned()]];
        assert_eq!(markdown_table(&rows), "| a\\|b | x<y |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
