//! Rows of thumbnails with captions.

use super::{Analysis, thumbnails::Thumbnails};
use crate::{explore::nearest::Near, html::escaped};

/// Letters of a name in a caption at most.
const LETTERS: usize = 60;

/// An image in large letters, and some of its neighbours; thumbnails are framed in green or red for the same or another class.
pub(super) fn row(
    analysis: &Analysis<'_>,
    thumbnails: &Thumbnails,
    row: usize,
    note: &str,
    count: usize,
) -> String {
    let near = analysis.near[row].iter().take(count);
    let tiles: String = near.map(|near| neighbour(analysis, thumbnails, row, *near)).collect();
    let own = figure(&image(analysis, thumbnails, row), "");
    format!(
        "<div class=\"row\">{own}<div class=\"text\">{}<br>{}</div>{tiles}</div>\n",
        escaped(&named(analysis, row)),
        escaped(note)
    )
}

/// The name, shortened, with the part where there are several, and the class.
pub(super) fn named(analysis: &Analysis<'_>, row: usize) -> String {
    let set = &analysis.set;
    let part = if set.parts.len() > 1 { format!(" ({})", set.split(row).name()) } else { String::new() };
    let class = set.class(row).map(|class| format!(", {class}")).unwrap_or_default();
    format!("{}{part}{class}", shortened(set.name(row), LETTERS))
}

/// The last `letters` of a longer name.
pub(super) fn shortened(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    format!("…{}", name.chars().skip(count - letters).collect::<String>())
}

/// A thumbnail alone.
pub(super) fn image(analysis: &Analysis<'_>, thumbnails: &Thumbnails, row: usize) -> String {
    thumbnails.tile(row, &named(analysis, row), "")
}

fn neighbour(analysis: &Analysis<'_>, thumbnails: &Thumbnails, own: usize, (row, cosine): Near) -> String {
    let labels = &analysis.set.labels;
    let frame = match (labels[own], labels[row]) {
        (Some(one), Some(other)) if one == other => ";outline:3px solid #009e73",
        (Some(_), Some(_)) => ";outline:3px solid #d55e00",
        _ => "",
    };
    figure(&thumbnails.tile(row, &named(analysis, row), frame), &format!("{cosine:.3}"))
}

fn figure(image: &str, caption: &str) -> String {
    format!("<figure>{image}<figcaption>{}</figcaption></figure>", escaped(caption))
}
