//! Sections on neighbours of examples, odd images, near-duplicates and possible label errors.

use super::{
    Analysis,
    gallery::{image, named, row},
    thumbnails::Thumbnails,
};
use crate::{
    explore::findings::{Pair, Suspect},
    html::{escaped, table},
};

/// Neighbours shown of an example, and of another image.
const OF_EXAMPLE: usize = 8;
const OF_OTHERS: usize = 5;
/// Pairs and suspects with thumbnails, and by name only.
const PAIRS: usize = 40;
const SUSPECTS: usize = 30;
const LISTED: usize = 500;

/// Rows that the sections show, the most important first.
pub(super) fn rows(analysis: &Analysis<'_>) -> Vec<usize> {
    let near = |row: usize, count: usize| {
        let near = analysis.near[row].iter().take(count);
        std::iter::once(row).chain(near.map(|near| near.0)).collect::<Vec<_>>()
    };
    let examples = analysis.examples.iter().flat_map(|row| near(*row, OF_EXAMPLE));
    let odd = analysis.odd.iter().flat_map(|(row, _)| near(*row, OF_OTHERS));
    let pairs = analysis.pairs.iter().take(PAIRS).flat_map(|pair| pair.rows);
    let suspects = analysis.suspects.iter().take(SUSPECTS).flat_map(|found| near(found.row, OF_OTHERS));
    examples.chain(odd).chain(pairs).chain(suspects).collect()
}

/// Nearest neighbours of examples.
pub(super) fn examples(analysis: &Analysis<'_>, thumbnails: &Thumbnails) -> String {
    let (shown, classes) = (analysis.examples.len(), analysis.set.classes.len());
    let labelled = analysis.agreement.is_some();
    let which = if labelled {
        format!("A random image of each of {shown} of {classes} classes")
    } else {
        format!("{shown} random images")
    };
    let mut text = format!(
        "<p>{which}, and its nearest images by the cosine of h, which is below each.{}</p>\n",
        if labelled { " Green frame: the same class; red: another." } else { "" }
    );
    if let Some(share) = analysis.agreement {
        text.push_str(&format!(
            "<p>{:.1} % of the labelled images have the class of most of their {} nearest images (not counting themselves).</p>\n",
            100.0 * share,
            analysis.options.k
        ));
    }
    text.extend(analysis.examples.iter().map(|at| row(analysis, thumbnails, *at, "", OF_EXAMPLE)));
    text
}

/// The images farthest from all others.
pub(super) fn odd(analysis: &Analysis<'_>, thumbnails: &Thumbnails) -> String {
    let k = analysis.options.k;
    let mut text = format!(
        "<p>The {} images with the largest distance (1 - cosine) to neighbour number {k}, and their nearest images: damaged files, wrong \
         crops, rare things.</p>\n",
        analysis.odd.len()
    );
    for (at, distance) in &analysis.odd {
        let note = format!("distance {distance:.3}");
        text.push_str(&row(analysis, thumbnails, *at, &note, OF_OTHERS));
    }
    text
}

/// Pairs above the threshold.
pub(super) fn duplicates(analysis: &Analysis<'_>, thumbnails: &Thumbnails) -> String {
    let (pairs, set) = (&analysis.pairs, &analysis.set);
    let across = |pair: &&Pair| set.split(pair.rows[0]) != set.split(pair.rows[1]);
    let differ = |pair: &&Pair| {
        let [one, other] = pair.rows.map(|row| set.labels[row]);
        one.is_some() && other.is_some() && one != other
    };
    let mut text = format!(
        "<p>{} pairs of images have a cosine of at least {} (each among the {} nearest of one of the two). {} of them lie in different \
         parts of the set, {} have different labels.</p>\n",
        pairs.len(),
        analysis.options.duplicates,
        analysis.options.k,
        pairs.iter().filter(across).count(),
        pairs.iter().filter(differ).count(),
    );
    let shown = |pair: &Pair| {
        let [one, other] = pair.rows.map(|row| image(analysis, thumbnails, row));
        let names = pair.rows.map(|row| escaped(&named(analysis, row)));
        format!(
            "<div class=\"row pair\">{one}{other}<div class=\"text\">{:.4}<br>{}<br>{}</div></div>\n",
            pair.cosine, names[0], names[1]
        )
    };
    text.push_str("<div class=\"pairs\">");
    text.extend(pairs.iter().take(PAIRS).map(shown));
    text.push_str("</div>\n");
    let line = |pair: &Pair| {
        let names = pair.rows.map(|row| named(analysis, row));
        vec![names[0].clone(), names[1].clone(), format!("{:.4}", pair.cosine)]
    };
    text + &rest(pairs, PAIRS, &["image", "image", "cosine"], line)
}

/// Images with neighbours of another class.
pub(super) fn suspects(analysis: &Analysis<'_>, thumbnails: &Thumbnails) -> String {
    let Some(share) = analysis.agreement else {
        return "<p>The set has no labels, so there is nothing to compare with.</p>\n".into();
    };
    let found = &analysis.suspects;
    let mut text = format!(
        "<p>{} images of which at least {:.0} % of the {} nearest labelled images agree on another class. These are candidates: the \
         encoder also confuses classes by itself (neighbours agree with {:.1} % of all labels).</p>\n",
        found.len(),
        100.0 * analysis.options.agreement,
        analysis.options.k,
        100.0 * share
    );
    for suspect in found.iter().take(SUSPECTS) {
        text.push_str(&row(analysis, thumbnails, suspect.row, &vote(analysis, suspect), OF_OTHERS));
    }
    let line = |suspect: &Suspect| vec![named(analysis, suspect.row), vote(analysis, suspect)];
    text + &rest(found, SUSPECTS, &["image, label", "vote"], line)
}

/// Such as `9 of 10 neighbours: cat`.
fn vote(analysis: &Analysis<'_>, suspect: &Suspect) -> String {
    format!("{} of {} neighbours: {}", suspect.votes, suspect.of, analysis.set.classes[suspect.other])
}

/// A folded table of the items after the first `shown`; states how many are left out.
fn rest<T>(items: &[T], shown: usize, headings: &[&str], line: impl Fn(&T) -> Vec<String>) -> String {
    let more = items.get(shown..).unwrap_or_default();
    if more.is_empty() {
        return String::new();
    }
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let lines: Vec<Vec<String>> =
        std::iter::once(headings).chain(more.iter().take(LISTED).map(line)).collect();
    let listed = lines.len() - 1;
    format!("<details><summary>{listed} of {} more</summary>{}</details>\n", more.len(), table(&lines))
}
